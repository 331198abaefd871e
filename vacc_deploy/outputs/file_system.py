"""What a file system may refuse although a local disk allows it, and the next best means.

Network mounts, FUSE and SMB lack some calls. Each reports that with an error number of its own.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from vacc_deploy.errors import OutputError
from vacc_deploy.permissions import real_path
from vacc_deploy.results import format_bytes

# Receives a note for the user: one sentence, which begins in lower case.
Say = Callable[[str], object]
FULL = (errno.ENOSPC, errno.EDQUOT)
# What the longest path below an output adds to its own: a file in two directories, half-written.
_INNER_BYTES = 256
# Which file it is and in which state: device, number, size, and the times of its last changes.
State = tuple[int, int, int, int, int]
# What systems answer where they have no such call. EIO is not among them: that is a failed disk.
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY)
# Of a directory also these: some systems cannot open one, or cannot sync what is open to read only.
_NO_DIRECTORY_SYNC = (
    *UNSUPPORTED,
    *(errno.EBADF, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS),
)


def ignore(note: str) -> None:
    """Take a note that nobody reads."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of the system the name of the file: a failed ``write`` has none."""
    try:
        yield
    except OSError as err:
        if err.filename is None:
            err.filename = str(path)
        raise


def sync_file(descriptor: int, path: Path) -> str:
    """Bring an open file to the disk; return why its file system cannot, an empty text if it did.

    Args:
        descriptor: of the file.
        path: its name, for an error.

    Raises:
        OSError: it can, and failed.
    """
    try:
        os.fsync(descriptor)
    except OSError as err:
        return _name_lack(err, path, UNSUPPORTED)
    return ""


def _name_lack(err: OSError, path: Path, unsupported: Collection[int]) -> str:
    """Return what a file system lacks, if that is what an error says; else raise it with a name."""
    if err.errno is None or err.errno not in unsupported:
        err.filename = str(path)
        raise err
    return os.strerror(err.errno)


def sync_path(path: Path) -> str:
    """Bring a file to the disk by its name; see ``sync_file``."""
    with path.open("rb") as file:
        return sync_file(file.fileno(), path)


def sync_directory(directory: Path) -> str:
    """Bring the names in ``directory`` to the disk; return why its file system cannot, or "".

    Raises:
        OSError: it can, and failed.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as err:
        return _name_lack(err, directory, _NO_DIRECTORY_SYNC)
    return ""


def describe_unsynced(place: Path, reason: str) -> str:
    """Return the note on an output that cannot be brought to the disk."""
    return (
        f"the file system of {place} cannot confirm that everything is on the disk (fsync: "
        f"{reason}). After a power failure or a lost connection make the output again."
    )


def check_space(output: Path, needed_bytes: int) -> None:
    """Refuse to begin where the file system has less than ``needed_bytes`` free.

    Raises:
        OutputError: gives the bytes needed and free.
    """
    try:
        usage = shutil.disk_usage(real_path(output).parent)
    except OSError as err:
        if err.errno not in UNSUPPORTED:
            raise
        return
    # A mount that counts no blocks at all does not know what is free.
    if usage.total and usage.free < needed_bytes:
        raise OutputError(
            f"{output} needs {format_bytes(needed_bytes)}, its file system has "
            f"{format_bytes(usage.free)} free. Free space or choose another --output."
        )


def check_name(path: Path, added_bytes: int) -> None:
    """Refuse a name to which the file system does not let ``added_bytes`` be added.

    While an output is written it has a longer name, and its files have names below it.

    Raises:
        OutputError: gives the longest name.
    """
    limit, longest_path = _limit(path.parent, "PC_NAME_MAX", 255), _limit("/", "PC_PATH_MAX", 4096)
    length, longest = len(os.fsencode(path.absolute())), longest_path - _INNER_BYTES
    if length > longest:
        raise OutputError(
            f"{path}: the whole path of the output has {length:,} bytes, expected at most "
            f"{longest:,}, so that those of its files have at most {longest_path:,}. Choose a "
            "shorter --output."
        )
    length, longest = len(os.fsencode(path.name)), limit - added_bytes
    if length > longest:
        raise OutputError(
            f"{path}: the name of the output has {length} bytes, expected at most {longest} (a "
            f"name has at most {limit} here, and the output has a longer one while it is written). "
            "Choose a shorter --output."
        )


def _limit(path: Path | str, name: str, usual: int) -> int:
    try:
        return os.pathconf(path, name)
    except (OSError, ValueError):
        return usual


def state_of(path: Path) -> State:
    """Return the state of a file or a link; a link is not followed."""
    state = path.lstat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def host_tag() -> str:
    """Return eight hex digits that stand for this host, or for this container on it."""
    return hashlib.sha256("\n".join(this_host()).encode(errors="replace")).hexdigest()[:8]


def this_host() -> tuple[str, str]:
    """Return this host's name, and the name space in which its process numbers mean something."""
    try:
        # Containers may share the name of their host, but see only their own processes.
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return os.uname().nodename, space


def is_running(process: int) -> bool:
    """Return whether a process of this number runs on this host."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return True
