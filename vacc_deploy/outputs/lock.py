"""Let one run at a time write in a directory, also where the file system has no locks.

The means is ``flock`` on the marker of the directory. Where the system has no such call, it is a
file that only one run can create, with host and process. Such files are numbered: who finds
that the owner of number n is gone creates number n + 1, which again only one run can. Nobody
removes the file of another before it has its own, so two runs never both take over.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import LOCK_BYTES
from vacc_deploy.errors import CheckpointError, OutputError
from vacc_deploy.json_files import read_json
from vacc_deploy.outputs.file_system import is_running, naming, sync_file, this_host
from vacc_deploy.outputs.run_files import LOCK_NAME, is_regular
from vacc_deploy.results import format_seconds

# Of the means that exists: another process has it. Any other error says that it does not exist.
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_TAKEN_BY_ANOTHER = "Another run is writing {}. Wait for it to end."
# Each failed try means that another run was faster.
_TRIES = 5
# A link is not followed, and a pipe that nobody writes to is not waited for.
_NO_DETOUR = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Lock:
    """A lock on a directory.

    Attributes:
        file: the lock file, None where ``flock`` holds the lock.
        note: what the user should know of the lock, or an empty text.
    """

    def __init__(self, descriptor: int, file: Path | None = None, note: str = "") -> None:
        self._descriptor, self.file, self.note = descriptor, file, note
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY)

    def free_descriptor(self) -> None:
        """Give back a descriptor that is kept so that the directory can be listed and removed.

        A run may have ended because it got no more of them.
        """
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def remove_file(self) -> None:
        """Remove the lock file, while the directory is still ours."""
        if self.file is not None:
            with suppress(OSError):
                self.file.unlink(missing_ok=True)

    def close(self) -> None:
        """Give the ``flock`` back."""
        self.free_descriptor()
        os.close(self._descriptor)


def lock_directory(directory: Path, marker: Path) -> Lock:
    """Lock ``directory`` by its ``marker``, a file that is created if need be.

    Raises:
        OutputError: another run has the lock; says which, and what to do. Or the marker is no file.
        OSError: the marker cannot be opened.
    """
    _refuse_detour(marker)
    descriptor = os.open(marker, os.O_CREAT | os.O_RDWR | _NO_DETOUR, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            if err.errno in _TAKEN:
                raise OutputError(_TAKEN_BY_ANOTHER.format(directory)) from err
            file = _create_file(directory)
            return Lock(descriptor, file, _describe(file, err))
        # The marker was removed between open and flock: the lock is on a file without a name.
        if not os.fstat(descriptor).st_nlink:
            raise OutputError(f"Another run has just removed {directory}. Run this again.")
        # A run on a host where flock does not work may be writing here.
        _refuse_living(directory, _lock_files(directory))
        return Lock(descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def describe_running(directory: Path, marker: Path) -> str:
    """Return the error of a directory that another run is writing just now, or an empty text.

    Takes no lock: it may be wrong a moment later.
    """
    try:
        descriptor = os.open(marker, os.O_RDONLY | _NO_DETOUR)
    except OSError:  # nobody has begun to write there, or who claims the lock says why he cannot
        return ""
    try:
        # Shared: two that only look are in nobody's way.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as err:
        if err.errno in _TAKEN:
            return _TAKEN_BY_ANOTHER.format(directory)
    finally:
        os.close(descriptor)
    try:
        _refuse_living(directory, _lock_files(directory))
    except OutputError as err:
        return str(err)
    return ""


def _describe(file: Path, err: OSError) -> str:
    reason = err.strerror or str(err)
    return (
        f"the file system of {file.parent.parent} has no locks (flock: {reason}), so a lock file "
        "kept other runs away."
    )


def _create_file(directory: Path) -> Path:
    """Create the next lock file and remove those before it, whose owners are gone."""
    for _ in range(_TRIES):
        files = _lock_files(directory)
        _refuse_living(directory, files)
        number = int(LOCK_NAME.fullmatch(files[-1].name)[1]) + 1 if files else 1  # type: ignore[index]
        file = directory / f".vacc-deploy-lock-{number}"
        try:
            _write(file)
        except FileExistsError:  # another run was faster
            continue
        # The one before it is still there, unless a third run took over from it meanwhile.
        if all(older.exists() for older in files[-1:]):
            for older in files:
                older.unlink(missing_ok=True)
            return file
        file.unlink()
    raise OutputError(f"Other runs are beginning to write {directory}. Run this again.")


def _write(file: Path) -> None:
    """Create a lock file that names this process.

    Raises:
        FileExistsError: it is there already.
    """
    descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        host, space = this_host()
        owner = {
            "host": host,
            "space": space,
            "pid": os.getpid(),
            "start": _start_of(os.getpid()),
        }
        with naming(file):
            os.write(descriptor, json.dumps(owner).encode())
        sync_file(descriptor, file)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _lock_files(directory: Path) -> list[Path]:
    """Return the lock files in ``directory``, the newest last."""
    paths = directory.iterdir()
    found = [(match, path) for path in paths if (match := LOCK_NAME.fullmatch(path.name))]
    for _, path in found:
        _refuse_detour(path)
    return [path for _, path in sorted(found, key=lambda item: int(item[0][1]))]


def _refuse_detour(path: Path) -> None:
    """Refuse a link, a pipe or a directory where a file of the run's own is to be.

    Raises:
        OutputError: such a thing stands there.
    """
    if os.path.lexists(path) and not is_regular(path):
        raise OutputError(
            f"{path} is no file, and no run leaves such a thing. Remove it, then rerun."
        )


def _refuse_living(directory: Path, files: list[Path]) -> None:
    """Raise the error of a directory in which the owner of the newest lock file may still write."""
    if not files:
        return
    file = files[-1]
    try:
        owner = read_json(file, limit_bytes=LOCK_BYTES)
    except (CheckpointError, FileNotFoundError):
        owner = None
    try:
        begun = file.stat().st_mtime
    except FileNotFoundError:  # its owner has just ended
        return
    owner = owner if isinstance(owner, dict) else {}
    if _is_gone(owner):
        return
    age = format_seconds(max(time.time() - begun, 0.0))
    is_here = (owner.get("host"), owner.get("space")) == this_host()
    who = "a process that has not yet given its name"
    if owner:
        who = f"process {owner.get('pid')!r:.20} on the host {str(owner.get('host')):.100}"
    advice = "Wait for it to end."
    if not is_here:  # nobody can tell from here whether it still runs
        remove = shlex.join(["rm", str(file)])
        advice += f" If it is gone, remove its lock file, then rerun:\n  {remove}"
    raise OutputError(f"Another run is writing {directory}: {who}, begun {age} ago. {advice}")


def _is_gone(owner: dict[str, Any]) -> bool:
    """Return whether the owner of a lock file is a process of this host that has ended.

    Of another host, or of another container, nobody can tell from here.
    """
    if (owner.get("host"), owner.get("space")) != this_host():
        return False
    process = owner.get("pid")
    if type(process) is not int or process <= 0:
        return False
    # A later process may have got the same number; it began at another time.
    return not is_running(process) or owner.get("start") != _start_of(process)


def _start_of(process: int) -> str:
    """Return when a process of this host began, in the system's own count; "" if unknown."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            # The name of the program comes before it, in brackets, and may hold anything.
            return file.read(4096).rpartition(b")")[2].split()[19].decode("ascii", "replace")
    except (OSError, IndexError):
        return ""
