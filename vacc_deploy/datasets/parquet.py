"""Rows of a Parquet file, read in small batches, only the columns that are needed.

Every size that the file states is compared with a limit before it is used.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import (
    PARQUET_FOOTER_BYTES,
    PARQUET_GROUP_BYTES,
    PARQUET_GROUPS,
    PARQUET_RATIO,
)
from vacc_deploy.datasets.extras import find_package, load_package
from vacc_deploy.datasets.files import unreadable
from vacc_deploy.datasets.odd import Entry, OddRecordError
from vacc_deploy.errors import REASON_SHOWN, CalibrationError, shorten

PARQUET_MAGIC = b"PAR1"
# Of a smaller file so much is read whatever its size.
MIN_GROUP_BYTES = 16 << 20
MAX_LISTED_COLUMNS = 12
# Few: a nested value that a dictionary holds once may be repeated in each row of a batch.
BATCH_ROWS = 8


def read_rows(path: Path, expected: str, columns: Collection[str]) -> Iterator[Entry]:
    """Yield where each row stands, and the row as a dictionary or why it cannot be read.

    Args:
        path: Parquet file.
        expected: what a row holds, for errors.
        columns: names of the columns to read, in lower case; those that the file lacks are left
            out.

    Raises:
        CalibrationError: pyarrow is missing, the file has none of the columns, is damaged or
            states sizes over the limits.
    """
    with _open_file(path) as file:
        names = [name for name in file.schema_arrow.names if name.lower() in columns]
        if not names:
            listed = (
                ", ".join(shorten(name) for name in file.schema_arrow.names[:MAX_LISTED_COLUMNS])
                or "none"
            )
            raise CalibrationError(
                f"{path} is a Parquet file with the columns {listed:.400}; expected {expected}. "
                "Check that the file is of the kind that you named."
            )
        _check_groups(file.metadata.num_row_groups, path)
        number = 0
        for group in range(file.metadata.num_row_groups):
            _check_group(file.metadata.row_group(group).total_byte_size, group, path)
            batches = file.iter_batches(BATCH_ROWS, row_groups=[group], columns=names)
            for batch in batches:
                for position in range(batch.num_rows):
                    number += 1
                    yield f"row {number}", _to_values(batch.slice(position, 1))


def list_columns(path: Path) -> list[str] | None:
    """Return the names of a file's columns; None where they cannot be read."""
    if find_package("pyarrow") is None:
        return None
    try:
        with _open_file(path) as file:
            return list(file.schema_arrow.names)
    except CalibrationError:
        return None


@contextmanager
def _open_file(path: Path) -> Iterator[Any]:
    """Open a file whose footer is small enough; errors of pyarrow become ours."""
    pyarrow = load_package("pyarrow", path, "a Parquet file")
    parquet = importlib.import_module("pyarrow.parquet")
    try:
        opened = path.open("rb")
    except OSError as err:
        raise unreadable(path, err) from err
    try:
        with opened as raw:
            _check_footer(raw, path)
            # Text stays in its dictionary: a value that is repeated is in memory once.
            is_text = (pyarrow.types.is_string, pyarrow.types.is_large_string)
            fields = parquet.read_schema(raw)
            names = [field.name for field in fields if any(test(field.type) for test in is_text)]
            raw.seek(0)
            yield parquet.ParquetFile(raw, read_dictionary=names)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as err:
        raise CalibrationError(
            f"{path} is a Parquet file that cannot be read: {_first_line(err)}. Download it again."
        ) from err


def _check_footer(raw: Any, path: Path) -> None:
    """Refuse a file without its end, or with a footer that is too large to be read."""
    num_bytes = raw.seek(0, os.SEEK_END)
    raw.seek(max(0, num_bytes - 8))
    length, magic = int.from_bytes(raw.read(4), "little"), raw.read(4)
    raw.seek(0)
    if magic != PARQUET_MAGIC or length + 12 > num_bytes:
        raise CalibrationError(
            f"{path} is a Parquet file that is cut off: it does not end with its footer. Download "
            "it again."
        )
    if length > PARQUET_FOOTER_BYTES:
        raise CalibrationError(
            f"{path} is a Parquet file with a footer of {length:,} bytes, expected at most "
            f"{PARQUET_FOOTER_BYTES:,}. Check that this is the published file."
        )


def _check_groups(count: int, path: Path) -> None:
    """Refuse a file of very many row groups."""
    if count > PARQUET_GROUPS:
        raise CalibrationError(
            f"{path} is a Parquet file of {count:,} row groups, expected at most "
            f"{PARQUET_GROUPS:,}. Write the file again with larger row groups, or give JSON lines."
        )


def _check_group(num_bytes: int, number: int, path: Path) -> None:
    """Refuse a row group that states more bytes than are read, or than the file can hold."""
    # Not of its columns: pyarrow ends the process where it looks at those of a damaged file.
    limit = min(PARQUET_GROUP_BYTES, max(MIN_GROUP_BYTES, path.stat().st_size * PARQUET_RATIO))
    if num_bytes > limit:
        raise CalibrationError(
            f"{path}, row group {number + 1} states {num_bytes:,} bytes, expected at most "
            f"{limit:,}. Write the file again with smaller row groups, or give JSON lines."
        )


def _to_values(row: Any) -> Any:
    """Return one row as a dictionary, or why its text cannot be read."""
    try:
        return row.to_pylist()[0]
    except UnicodeDecodeError as err:
        return OddRecordError(f"is not UTF-8: {err}")


def _first_line(err: Exception) -> str:
    line = (str(err).strip().splitlines() or [type(err).__name__])[0].rstrip(".")
    return shorten(line, REASON_SHOWN)
