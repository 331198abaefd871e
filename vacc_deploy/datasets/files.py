"""How calibration files are opened: by their first bytes, within bounds, with one kind of error.

Knows nothing of the data sets.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from vacc_deploy.errors import CalibrationError
from vacc_deploy.permissions import explain_unreadable

# A document is plain text, or the turns of a conversation with "role" and "content".
Message: TypeAlias = dict[str, str]
Document: TypeAlias = str | tuple[Message, ...]
MAX_LINE_BYTES = 16 << 20
GZIP_MAGIC = b"\x1f\x8b"
LFS_POINTER = b"version https://git-lfs"


def check_file(path: Path) -> None:
    """Check that ``path`` is a file with something in it.

    Raises:
        CalibrationError: it is missing, a directory, a pipe or a device, or empty.
    """
    try:
        state = path.stat()
    except (FileNotFoundError, NotADirectoryError) as err:
        raise CalibrationError(
            f"{path} does not exist. Give the path of a calibration file."
        ) from err
    except OSError as err:
        raise unreadable(path, err) from err
    if stat.S_ISDIR(state.st_mode):
        raise CalibrationError(f"{path} is a directory. Give the data file in it.")
    if not stat.S_ISREG(state.st_mode):
        raise CalibrationError(
            f"{path} is not an ordinary file. Give the path of a calibration file."
        )
    if state.st_size == 0:
        raise CalibrationError(f"{path} is empty (0 bytes). Download it again.")


def unreadable(path: Path, err: OSError) -> CalibrationError:
    """Return the error of a file that the operating system does not let us read."""
    return CalibrationError(explain_unreadable(path, err, otherwise="Check the path."))


@contextmanager
def open_data(path: Path, *, unpack: bool = True) -> Iterator[IO[bytes]]:
    """Open a file; with ``unpack`` through gzip where its first bytes say so, not its name.

    Raises:
        CalibrationError: the file cannot be read, or its gzip data are cut off or damaged.
    """
    try:
        with path.open("rb") as raw:
            is_gzip = unpack and raw.read(2) == GZIP_MAGIC
            # Some mirrors unpack a file and leave its .gz: the name does not count.
            raw.seek(0)
            if not is_gzip:
                yield raw
                return
            with gzip.GzipFile(fileobj=raw, mode="rb") as unpacked:
                yield cast(IO[bytes], unpacked)
    except (EOFError, zlib.error, gzip.BadGzipFile) as err:
        raise CalibrationError(
            f"{path} holds gzip data that are cut off or damaged: {err}. Download it again."
        ) from err
    except OSError as err:
        raise unreadable(path, err) from err


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a JSON-lines file, plain or gzip; blank lines are skipped.

    Raises:
        CalibrationError: a line is too long, not UTF-8, not JSON or not an object; names the line.
    """
    number = 0
    with open_data(path) as file:
        # One byte more than allowed tells a line that is too long, without reading all of it.
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise CalibrationError(
                    f"{path}, line {number} is longer than {MAX_LINE_BYTES:,} bytes, expected one "
                    "JSON object a line. Check that this is the published file."
                )
            if not line.isspace():
                yield number, _parse_line(line, number, path)


def _parse_line(line: bytes, number: int, path: Path) -> dict[str, Any]:
    expected = 'expected one JSON object a line, such as {"text": "..."}'
    try:
        # A byte order mark can stand in front of the first line only.
        value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except (ValueError, RecursionError) as err:
        raise CalibrationError(
            f"{path}, line {number} cannot be read: {err}; {expected}. Download the file again."
        ) from err
    if not isinstance(value, dict):
        raise CalibrationError(
            f"{path}, line {number} holds {type(value).__name__}, {expected}. Check that this is "
            "the published file."
        )
    return value


def read_field(record: dict[str, Any], key: str, where: str, *, default: str | None = None) -> str:
    """Return a text field of a JSON record.

    Raises:
        CalibrationError: the field is missing, not text, or not valid Unicode; names the record.
    """
    value = record.get(key)
    value = default if value is None else value
    if not isinstance(value, str):
        keys = ", ".join(sorted(record)[:10]) or "none"
        got = type(value).__name__ if key in record else f"no such key (its keys: {keys})"
        raise CalibrationError(
            f'{where} has no text under "{key}": got {got}. Check that the file is of the kind '
            "that you named."
        )
    try:
        # JSON may escape half of a surrogate pair, which no tokenizer takes.
        value.encode("utf-8")
    except UnicodeEncodeError as err:
        raise CalibrationError(
            f'{where}: the text under "{key}" is not valid Unicode: {err.reason} at character '
            f"{err.start}. Remove this record."
        ) from err
    return value


def compute_sha256(path: Path) -> str:
    """Return the sha256 of a file in hex, read in pieces."""
    digest = hashlib.sha256()
    with open_data(path, unpack=False) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
