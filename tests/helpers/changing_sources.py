"""Sources that change while a command reads them, at moments that a listener of progress makes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from vacc_deploy.progress import KeptLayers, Progress

# Each takes a file and changes it; after ``flip`` and ``replace`` it has as many bytes as before.
CHANGES: dict[str, Callable[[Path], None]] = {}


def _change(function: Callable[[Path], None]) -> Callable[[Path], None]:
    CHANGES[function.__name__] = function
    return function


@_change
def truncate(path: Path) -> None:
    """Cut the file in the middle, as a download that begins anew does."""
    os.truncate(path, path.stat().st_size // 2)


@_change
def append(path: Path) -> None:
    """Let the file grow."""
    with path.open("ab") as file:
        file.write(b"more")


@_change
def flip(path: Path) -> None:
    """Overwrite the last byte in place."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


@_change
def replace(path: Path) -> None:
    """Rename another file of the same size, and of the same time, into its place."""
    state, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    other = path.with_name("other")
    other.write_bytes(data)
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.rename(path)


@_change
def remove(path: Path) -> None:
    """Remove the file."""
    path.unlink()


class ChangeAt(Progress):
    """Calls ``change`` once, at a moment of a long job.

    Attributes:
        kept: the layers that a quantization keeps.
    """

    def __init__(self, change: Callable[[], object], description: str, advances: int = 0) -> None:
        """Wait for the job whose description this is, and for so many of its steps."""
        self._change, self._description, self._left = change, description, advances
        self._is_begun = self.is_done = False
        self.kept = KeptLayers()

    def start(self, description: str, total: int, unit: str) -> None:
        self._is_begun = description == self._description
        if not self._left:
            self._act()

    def advance(self, amount: int = 1, note: str = "") -> None:
        if self._is_begun:
            self._left -= 1
            if self._left <= 0:
                self._act()

    def _act(self) -> None:
        if self._is_begun and not self.is_done:
            self.is_done = True
            self._change()
