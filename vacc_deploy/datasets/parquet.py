"""Rows of a Parquet file, only the columns that are needed, read by pyarrow in another process.

Every size that the file states is compared with a limit before it is used. What it does not state,
or states falsely, meets the bounds of ``parquet_worker``'s process.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import (
    PARQUET_CPU_PER_MB,
    PARQUET_CPU_SECONDS,
    PARQUET_FOOTER_BYTES,
    PARQUET_GROUP_BYTES,
    PARQUET_GROUPS,
    PARQUET_MEMORY,
    PARQUET_MEMORY_TIMES,
    PARQUET_RATIO,
    RECORD_BYTES,
)
from vacc_deploy.datasets import parquet_worker as worker
from vacc_deploy.datasets.extras import has_package, missing_package
from vacc_deploy.datasets.files import unreadable
from vacc_deploy.datasets.odd import Entry, OddRecordError
from vacc_deploy.errors import REASON_SHOWN, CalibrationError, shorten
from vacc_deploy.json_files import parse_json

PARQUET_MAGIC = b"PAR1"
# Of a smaller file so much is read whatever its size.
MIN_GROUP_BYTES = 16 << 20
MAX_LISTED_COLUMNS = 12
# As what the child sends a value that JSON does not know: an object with this key only.
_STAND_IN = "\0type"
_REWRITE = "Write the file again with smaller row groups, or give JSON lines."
# Signals by which a library ends its own process; all others come from outside.
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)


def read_rows(
    path: Path,
    expected: str,
    columns: Collection[str],
    meter: Callable[[int], None] | None = None,
) -> Iterator[Entry]:
    """Yield where each row stands, and the row as a dictionary or why it cannot be read.

    Args:
        path: Parquet file.
        expected: what a row holds, for errors.
        columns: names of the columns to read, in lower case; those that the file lacks are left
            out.
        meter: is told the bytes of each row as JSON before the row is made, and may raise.

    Raises:
        CalibrationError: pyarrow is missing, the file has none of the columns, is damaged, holds
            or states sizes over the limits, or takes too much memory or time.
    """
    number = 0
    with closing(_read_frames(path, columns)) as frames:
        for kind, data in frames:
            if kind == worker.HEAD:
                _check_head(parse_json(data), path, expected, columns)
            elif kind == worker.GROUP:
                num_bytes, group = json.loads(data)
                _check_group(num_bytes, group, path)
            else:
                number += 1
                if meter is not None:
                    meter(len(data))
                yield f"row {number}", _read_row(kind, data, number, path)


def list_columns(path: Path) -> list[str] | None:
    """Return the names of a file's columns; None where they cannot be read."""
    if not has_package("pyarrow"):
        return None
    try:
        # To the end, so that the process stays for the next file.
        (_, head), *_ = _read_frames(path, None)
        return [str(name) for name in parse_json(head)["names"]]
    except (CalibrationError, ValueError):
        return None


def _read_frames(
    path: Path, columns: Collection[str] | None
) -> Generator[tuple[bytes, bytes], None, None]:
    """Yield the frames of a file but the last one; what ends the process becomes our error."""
    if not has_package("pyarrow"):
        raise missing_package("pyarrow", path, "a Parquet file")
    try:
        with path.open("rb") as raw:
            num_bytes = _check_footer(raw, path)
    except OSError as err:
        raise unreadable(path, err) from err
    wanted = None if columns is None else sorted(columns)
    # By bytes, since the child may take another encoding for names.
    request: dict[str, Any] = {"path": os.fsencode(os.path.abspath(path)).hex(), "columns": wanted}
    seconds = PARQUET_CPU_SECONDS + PARQUET_CPU_PER_MB * num_bytes // 10**6
    memory = PARQUET_MEMORY + PARQUET_MEMORY_TIMES * num_bytes
    request["row_bytes"] = int(RECORD_BYTES)
    try:
        with closing(worker.read_frames(request, seconds=seconds, num_bytes=memory)) as frames:
            for kind, data in frames:
                if kind == worker.FAILURE:
                    raise _explain_failure(json.loads(data), memory, path)
                if kind != worker.END:
                    yield kind, data
    except worker.ProcessEndedError as err:
        raise _explain_end(err.code, seconds, path) from None
    except OSError as err:
        raise CalibrationError(
            f"The process that reads {path} cannot be started: {err}. Free what the system lacks, "
            "such as memory or open files."
        ) from err


def _check_head(head: dict[str, Any], path: Path, expected: str, columns: Collection[str]) -> None:
    """Refuse a file without any of the columns, or of too many row groups."""
    names = [str(name) for name in head["names"]]
    if not any(name.lower() in columns for name in names):
        listed = ", ".join(shorten(name) for name in names[:MAX_LISTED_COLUMNS]) or "none"
        raise CalibrationError(
            f"{path} is a Parquet file with the columns {listed:.400}; expected {expected}. "
            "Check that the file is of the kind that you named."
        )
    _check_groups(head["groups"], path)


def _check_footer(raw: Any, path: Path) -> int:
    """Return the size of a file; refuse one without its end, or with a footer that is too large."""
    num_bytes = raw.seek(0, os.SEEK_END)
    raw.seek(max(0, num_bytes - 8))
    length, magic = int.from_bytes(raw.read(4), "little"), raw.read(4)
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
    return int(num_bytes)


def _check_groups(count: int, path: Path) -> None:
    """Refuse a file of very many row groups."""
    if count > PARQUET_GROUPS:
        raise CalibrationError(
            f"{path} is a Parquet file of {count:,} row groups, expected at most "
            f"{PARQUET_GROUPS:,}. Write the file again with larger row groups, or give JSON lines."
        )


def _check_group(num_bytes: int, number: int, path: Path) -> None:
    """Refuse a row group that states more bytes than are read, or than the file can hold."""
    # The file may lie: the process that reads it has bounds of its own.
    limit = min(PARQUET_GROUP_BYTES, max(MIN_GROUP_BYTES, path.stat().st_size * PARQUET_RATIO))
    if num_bytes > limit:
        raise CalibrationError(
            f"{path}, row group {number + 1} states {num_bytes:,} bytes, expected at most "
            f"{limit:,}. Write the file again with smaller row groups, or give JSON lines."
        )


def _read_row(kind: bytes, data: bytes, number: int, path: Path) -> Any:
    """Return the row of a frame as a dictionary, or why it cannot be read."""
    if kind == worker.LONG_ROW:
        raise CalibrationError(
            f"{path}, row {number} holds {int(data):,} bytes, expected at most {RECORD_BYTES:,} in "
            "the columns that are read. Check that this is the published file."
        )
    try:
        value = parse_json(data)
    except ValueError as err:
        return OddRecordError(f"cannot be read: {err}")
    if kind == worker.ODD_ROW:
        return OddRecordError(str(value))
    return _restore(value) if kind == worker.STRANGE_ROW else value


def _restore(value: Any) -> Any:
    """Return a value with an object of that type's name for all that was no JSON."""
    if isinstance(value, list):
        return [_restore(item) for item in value]
    if not isinstance(value, dict):
        return value
    if list(value) == [_STAND_IN]:
        # Readers ask for the name only, to say why a record is odd.
        return type(str(value[_STAND_IN]).replace("\0", "")[:40], (), {})()
    return {name: _restore(item) for name, item in value.items()}


def _explain_failure(failure: dict[str, Any], memory: int, path: Path) -> CalibrationError:
    """Return the error of a file that pyarrow could not read."""
    if failure["is_short"]:
        return CalibrationError(
            f"The process that reads {path} gets less than {memory >> 20:,} MiB of memory here. "
            "Free memory, or raise the limit of the system (ulimit -v), then rerun."
        )
    if not failure["text"]:
        return CalibrationError(
            f"{path} is a Parquet file that takes more than {memory >> 20:,} MiB of memory to "
            f"read, expected at most that for its size. {_REWRITE}"
        )
    line = shorten(str(failure["text"]).splitlines()[0].rstrip("."), REASON_SHOWN)
    return CalibrationError(
        f"{path} is a Parquet file that cannot be read: {line}. Download it again."
    )


def _explain_end(code: int | None, seconds: int, path: Path) -> CalibrationError:
    """Return the error of a process that ended before the file did."""
    process = f"The process that reads {path}"
    if code is None:
        return CalibrationError(f"{process} was stopped and does not go on. Rerun.")
    if code == -signal.SIGXCPU:
        return CalibrationError(
            f"{path} is a Parquet file that takes more than {seconds} s of processor time to read, "
            f"expected at most that for its size. {_REWRITE}"
        )
    if code >= 0:
        return CalibrationError(
            f"{process} ended with the code {code}. Check the package: "
            "python3 -c 'import pyarrow.parquet'"
        )
    name = signal.Signals(-code).name
    if -code in _CRASHES:
        return CalibrationError(
            f"{path} is a Parquet file that cannot be read: pyarrow ends its process ({name}). "
            "Download it again."
        )
    return CalibrationError(
        f"{process} was ended from outside ({name}), as a system does that lacks memory. Free "
        "memory, then rerun."
    )
