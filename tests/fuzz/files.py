"""Where a target's bytes stand as the files of its reader."""

import os
from itertools import zip_longest
from pathlib import Path

from mutations import SEPARATOR

# Files that stay open between executions: to open one costs more than most readers take.
_open = dict[Path, int]()


def place(data: bytes, directory: Path, *names: str) -> None:
    """Write the parts of ``data`` under ``names``; an empty part is a file that is missing."""
    parts = data.split(SEPARATOR, len(names) - 1)
    for name, part in zip_longest(names, parts, fillvalue=b""):
        path = directory / name
        if part:
            write(path, part)
        else:
            _forget(path)
            path.unlink(missing_ok=True)


def write(path: Path, data: bytes) -> None:
    """Let a file hold ``data``."""
    if path not in _open:
        _open[path] = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    os.ftruncate(_open[path], len(data))
    os.pwrite(_open[path], data, 0)


def _forget(path: Path) -> None:
    if (descriptor := _open.pop(path, None)) is not None:
        os.close(descriptor)


def clear(directory: Path) -> None:
    """Remove what other targets, or names that an input chose, have left."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            clear(path)
            path.rmdir()
        else:
            _forget(path)
            path.unlink()
