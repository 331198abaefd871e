"""Tell whether a file is still the one that was checked, and open none but ordinary files.

A file's stamp is its size, the time of its last change and its inode. A write through a memory
map may leave all three as they were for a while, and who sets the time back hides a change of the
content: neither can be seen here.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection
from pathlib import Path
from typing import IO, NamedTuple

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# File systems that may number a file anew while it stays the same: after the kernel has forgotten
# it, or, on an overlay, once a hard link to it is made. fuseblk is NTFS and the like, which do not.
_NUMBERED_ANEW = re.compile(r"fuse|fuse\..*|overlay|aufs|9p|cifs|smb3?|vboxsf|virtiofs|fakeowner")
_MOUNTS = Path("/proc/self/mountinfo")


class FileStamp(NamedTuple):
    """What tells a file from what it is after a change.

    No time of the inode's own change: our hard links change that. No device: a network file system
    that is mounted again has another one.
    """

    num_bytes: int
    changed_ns: int
    inode: int

    @classmethod
    def of(cls, state: os.stat_result) -> FileStamp:
        """Return the stamp of a file with this state."""
        return cls(state.st_size, state.st_mtime_ns, state.st_ino)


def take_stamp(path: Path) -> FileStamp | None:
    """Return the stamp of a file, its links followed; None where there is none."""
    try:
        return FileStamp.of(path.stat())
    except OSError:
        return None


def find_change(path: Path, expected: FileStamp | None) -> str:
    """Return how a file differs from its stamp, a clause; nothing where it does not.

    Args:
        path: the file; its links are followed.
        expected: None where there was no file.
    """
    return compare_stamps(path, expected, take_stamp(path))


def compare_stamps(path: Path, expected: FileStamp | None, got: FileStamp | None) -> str:
    """Return how two stamps of ``path`` differ, a clause; nothing where they are the same."""
    if expected is None or got is None:
        return "" if expected is got else "it is new" if expected is None else "it is gone"
    if got.num_bytes != expected.num_bytes:
        return f"it had {expected.num_bytes:,} bytes, and has {got.num_bytes:,}"
    if got.changed_ns != expected.changed_ns:
        return "it was written again, with as many bytes"
    if got.inode != expected.inode and not _is_numbered_anew(path):
        return "another file stands in its place, with as many bytes"
    return ""


def explain_change(path: Path, change: str) -> str:
    """Return the sentences of an error: ``path`` was changed, how, and what to do."""
    return (
        f"{path} was changed while it was read: {change}. Wait until what writes it has ended, "
        "then rerun."
    )


def _is_numbered_anew(path: Path) -> bool:
    """Return whether the file system of ``path`` keeps no file's inode."""
    place, found, mounts = os.path.realpath(path), ("", ""), read_mounts()
    for point, kind in mounts:
        is_above = place == point or place.startswith(point.rstrip("/") + "/")
        # Of two mounts in one place the later one is seen.
        if is_above and len(point) >= len(found[0]):
            found = point, kind
    # Without a word of the system an inode says nothing.
    return not mounts or bool(_NUMBERED_ANEW.fullmatch(found[1]))


def read_mounts() -> list[tuple[str, str]]:
    """Return where something is mounted and the kind of its file system, in the system's order.

    Also a directory that is bound to another of the same file system. Empty where the system does
    not say.
    """
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return []
    mounts = list[tuple[str, str]]()
    for line in lines:
        fields, _, rest = line.partition(b" - ")
        words = fields.split(b" ")
        if len(words) > 4:
            # The fifth word is the place; a space in it stands there as \040.
            place = re.sub(rb"\\([0-3][0-7]{2})", lambda code: bytes([int(code[1], 8)]), words[4])
            mounts.append((os.fsdecode(place), os.fsdecode(rest.partition(b" ")[0])))
    return mounts


def describe_odd(path: Path, but: Collection[str] = ()) -> str:
    """Return what stands where a file is expected, such as ``a named pipe``; nothing for a file.

    Args:
        path: its links are followed.
        but: kinds that are left out.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return ""
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "")
    return "" if kind in but else kind


def open_ordinary(path: Path, *, buffering: int = -1) -> IO[bytes]:
    """Open an ordinary file for reading; what might block, or never end, is refused unread.

    Raises:
        OSError: as for any file; for a pipe, a device, a socket or a directory it says so.
    """
    return open(path, "rb", buffering=buffering, opener=_open_ordinary)


def _open_ordinary(name: str, flags: int) -> int:
    # Before it is opened: to open a device may already do something.
    kind = describe_odd(Path(name))
    if kind == "a directory":
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if kind:
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", name)
    # It may be another one by now; the flag keeps a pipe from waiting, and files ignore it.
    descriptor = os.open(name, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a file", name)
    return descriptor
