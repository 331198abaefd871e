"""How calibration files are opened: by their first bytes, within bounds, with one kind of error.

Knows nothing of the data sets.
"""

from __future__ import annotations

import hashlib
import io
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from vacc_deploy.bounds import UNPACK_FREE_BYTES, UNPACK_RATIO
from vacc_deploy.datasets.packed import is_packed, open_packed
from vacc_deploy.errors import CalibrationError
from vacc_deploy.permissions import explain_unreadable

# A document is plain text, or the turns of a conversation with "role" and "content".
Message: TypeAlias = dict[str, str]
Document: TypeAlias = str | tuple[Message, ...]
LFS_POINTER = b"version https://git-lfs"


def check_file(path: Path, *, or_directory: bool = False) -> None:
    """Check that ``path`` is a file with something in it, or with ``or_directory`` a directory.

    Raises:
        CalibrationError: it is missing, a directory, a pipe or a device, or empty.
    """
    try:
        state = path.stat()
    except (FileNotFoundError, NotADirectoryError) as err:
        raise CalibrationError(f"{path} does not exist. Give the path of a data file.") from err
    except OSError as err:
        raise unreadable(path, err) from err
    if stat.S_ISDIR(state.st_mode):
        if or_directory:
            return
        if os.access(path, os.R_OK) and not os.listdir(path):
            raise CalibrationError(f"{path} is an empty directory. Give the path of a data file.")
        raise CalibrationError(f"{path} is a directory. Give the data file in it.")
    if not stat.S_ISREG(state.st_mode):
        raise CalibrationError(f"{path} is not an ordinary file. Give the path of a data file.")
    if state.st_size == 0:
        raise CalibrationError(f"{path} is empty (0 bytes). Download or write it again.")


def advise_utf8(path: Path, reason: str = "", *, encoding: str = "GB18030") -> str:
    """Return what to do with a text that is not UTF-8; the encoding is only the likeliest one.

    Args:
        path: the file.
        reason: what the decoder of Python says.
        encoding: what the text may be in.
    """
    if reason == "unexpected end of data":
        return "The file ends in the middle of a character. Copy or download it again."
    line = shlex.join(["iconv", "-f", encoding, "-t", "UTF-8", str(path)])
    return f"Convert it, then give the new file:\n  {line} > {shlex.quote(path.name + '.utf8')}"


def unreadable(path: Path, err: OSError) -> CalibrationError:
    """Return the error of a file that the operating system does not let us read."""
    return CalibrationError(explain_unreadable(path, err, otherwise="Check the path."))


@contextmanager
def open_data(path: Path, *, unpack: bool = True) -> Iterator[IO[bytes]]:
    """Open a file; with ``unpack`` through gzip or zstd where its first bytes say so, not its name.

    Raises:
        CalibrationError: the file cannot be read, its packed data are cut off or damaged, or the
            package that unpacks zstd is missing.
    """
    try:
        with path.open("rb") as raw:
            magic = raw.read(4) if unpack else b""
            # Some mirrors unpack a file and leave its .gz: the name does not count.
            raw.seek(0)
            if is_packed(magic):
                with open_packed(raw, path, magic) as unpacked:
                    yield _bounded(unpacked, raw, path)
            else:
                yield raw
    except OSError as err:
        raise unreadable(path, err) from err


def _bounded(unpacked: IO[bytes], raw: IO[bytes], path: Path) -> IO[bytes]:
    """Return the same data as a file that refuses to unpack a little to very much."""
    return cast(IO[bytes], io.BufferedReader(_Metered(unpacked, raw, path), 1 << 16))


class _Metered(io.RawIOBase):
    """Compares what was unpacked so far with what was read for it."""

    def __init__(self, unpacked: IO[bytes], raw: IO[bytes], path: Path) -> None:
        self._unpacked, self._raw, self._path, self._num_bytes = unpacked, raw, path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._unpacked.read(len(buffer))
        self._num_bytes += len(data)
        if self._num_bytes > UNPACK_FREE_BYTES + UNPACK_RATIO * self._raw.tell():
            raise CalibrationError(
                f"{self._path} unpacks to more than {UNPACK_RATIO} times its size: no text packs "
                "so well. If you trust the file, unpack it, then give the new file."
            )
        buffer[: len(data)] = data
        return len(data)


def compute_sha256(path: Path) -> str:
    """Return the sha256 of a file in hex, read in pieces."""
    digest = hashlib.sha256()
    with open_data(path, unpack=False) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
