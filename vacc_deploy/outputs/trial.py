"""Try at the start what an output needs at its end: hours of work lie between the two.

An output is made beside its place and renamed. So the names, the directories and the rights that
the last renames need are looked at, and the renames themselves are tried.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shlex
import stat
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path

from vacc_deploy.errors import OutputError
from vacc_deploy.outputs.file_system import FULL
from vacc_deploy.outputs.text_file import unwritable
from vacc_deploy.permissions import is_denied
from vacc_deploy.stamps import read_mounts

# An older output has such a name from the rename that makes place for the new one on.
_ASIDE = "replaced-"
# And such a one when it was told to the user, whose it is from then on.
_KEPT = "kept-"
# As long as the name of an older output, so that a trial of it is a trial of both.
_TRIALS = ("trial-00-", "trial-01-")
# FS_IOC_GETFLAGS of <linux/fs.h>, where a long has 8 bytes; of the flags, what chattr sets.
_GET_FLAGS = 0x80086601
_FLAGS = {0x10: "i", 0x20: "a"}


def aside_path(target: Path) -> Path:
    """Return the name that an older output at ``target`` gets while it is replaced."""
    return _free_path(target, _ASIDE, os.getpid())


def keep_aside(aside: Path, target: Path) -> Path:
    """Rename an older output of which something stays, so that no run takes it for its own.

    Returns where it lies, which is ``aside`` where the file system does not let it be renamed.
    """
    kept = _free_path(target, _KEPT, int(aside.name.rpartition("-")[2]))
    try:
        return aside.rename(kept)
    except OSError:
        return aside


def _free_path(target: Path, kind: str, first: int) -> Path:
    # In a container every process may have the same number, and what a user has left there stays.
    names = (f".{target.name}.{kind}{number}" for number in count(first))
    return next(p for p in map(target.with_name, names) if not os.path.lexists(p))


def find_replaced(target: Path) -> list[Path]:
    """Return the older outputs that have such a name, those with most in them first.

    What another user keeps closed is left alone.
    """
    paths = [path for path in _find(target, _ASIDE) if os.access(path, os.R_OK | os.X_OK)]
    return sorted(paths, key=lambda path: (-len(os.listdir(path)), path.name))


def _find(target: Path, kind: str) -> list[Path]:
    name = re.compile(rf"\.{re.escape(target.name)}\.{kind}[0-9]+")
    return [
        path
        for path in target.parent.iterdir()
        if name.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]


def check_place(output_dir: Path, target: Path, partial: Path) -> None:
    """Refuse, without writing anything, a place where the last renames would fail.

    Args:
        output_dir: the output as the user named it.
        target: its real path.
        partial: where it is made.

    Raises:
        OutputError: says what stands in the way.
    """
    parent = target.parent
    for mount in (Path(place) for place, _ in read_mounts()):
        if mount in (target, partial):
            raise _is_mount(output_dir, mount, is_target=mount == target)
        if target in mount.parents or partial in mount.parents:
            raise OutputError(
                f"{mount} is a mount point within an output, which is replaced as a whole. Unmount "
                "it, or choose another --output."
            )
    for path in (target, partial):
        if path.is_dir() and path.lstat().st_dev != parent.stat().st_dev:
            raise OutputError(
                f"{path} lies on another file system than {parent}, so the finished output cannot "
                "take its place. Choose another --output."
            )
        if _is_kept_by_sticky_bit(path):
            raise OutputError(
                f"{path} belongs to another user, and {parent} lets nobody else rename it (sticky "
                "bit). Choose another --output, or ask its owner to remove it."
            )
    for path in (parent, target, partial):
        if flags := _read_flags(path):
            undo = shlex.join(["chattr", f"-{flags}", str(path)])
            raise OutputError(
                f"{output_dir} cannot be written: {path} may not be changed (attribute {flags}). "
                f"Choose another --output, or run: {undo}"
            )


def _is_mount(output_dir: Path, mount: Path, *, is_target: bool) -> OutputError:
    if not is_target:
        return OutputError(
            f"{mount} is a mount point, and {output_dir} is to be made there. Unmount it, or "
            "choose another --output."
        )
    return OutputError(
        f"{output_dir} is a mount point, so the finished output cannot take its place. Choose "
        f"a directory in it, for example --output {shlex.quote(str(output_dir / 'model'))}."
    )


def _is_kept_by_sticky_bit(path: Path) -> bool:
    """Return whether only another user may rename ``path``, as in ``/tmp``."""
    parent, me = path.parent.stat(), os.geteuid()
    if not os.path.lexists(path) or not parent.st_mode & stat.S_ISVTX or me in (0, parent.st_uid):
        return False
    return path.lstat().st_uid != me


def _read_flags(directory: Path) -> str:
    """Return which of ``i`` and ``a`` a directory has (lsattr); nothing where nobody can tell."""
    try:
        how = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(directory, how)
    except OSError:
        return ""
    try:
        answer = fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8))
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    flags = int.from_bytes(answer[:4], sys.byteorder)
    return "".join(letter for flag, letter in _FLAGS.items() if flags & flag)


def try_renames(output_dir: Path, target: Path) -> None:
    """Rename a directory as the end will do, and what stands at ``target`` away and back.

    Needs the lock. A kill in between leaves what ``clear_trials`` and the next run put right.

    Raises:
        OutputError: the file system refuses.
    """
    clear_trials(target)
    first, second = (target.with_name(f".{target.name}.{kind}{os.getpid()}") for kind in _TRIALS)
    try:
        first.mkdir()
        first.rename(second)
        second.rmdir()
    except OSError as err:
        if err.errno in FULL:
            raise
        if is_denied(err):
            raise unwritable(output_dir, err) from err
        raise OutputError(
            f"{output_dir} could not get its name when it is finished: the file system of "
            f"{target.parent} does not let a directory be renamed ({err.strerror or err}). Choose "
            "another --output."
        ) from err
    finally:
        clear_trials(target)
    if target.is_dir():
        _try_to_replace(output_dir, target)


def _try_to_replace(output_dir: Path, target: Path) -> None:
    aside = aside_path(target)
    try:
        target.rename(aside)
    except OSError as err:
        # An overlay does not rename what lies in a lower layer. An empty directory can be removed.
        if err.errno == errno.EXDEV and not any(target.iterdir()):
            return
        raise OutputError(
            f"{output_dir} exists, and the file system does not let it be renamed to make place "
            f"({err.strerror or err}). Remove it yourself, or choose another --output."
        ) from err
    finally:
        # Also after an interruption: the user must not be without it.
        try:
            _give_name_back(aside, target)
        except KeyboardInterrupt:  # only the first signal counts
            give_name_back(aside, target)
            raise
        except OSError:  # perhaps a moment's fault
            give_name_back(aside, target)


def _give_name_back(aside: Path, target: Path) -> None:
    if aside.exists() and not target.exists():
        aside.rename(target)


def give_name_back(aside: Path, target: Path) -> None:
    """Rename an older output to its own name, where nothing stands by now.

    Raises:
        OutputError: the file system refuses; says how to do it.
    """
    try:
        _give_name_back(aside, target)
    except OSError as err:
        way = shlex.join(["mv", str(aside), str(target)])
        raise OutputError(
            f"{target} was renamed to {aside}, and the file system does not let it have its "
            f"name back ({err.strerror or err}). Nothing of it is lost. Rename it:\n  {way}"
        ) from err


def clear_trials(target: Path) -> None:
    """Remove the empty directories that a trial that was killed has left."""
    for kind in _TRIALS:
        for path in _find(target, kind):
            with suppress(OSError):
                path.rmdir()
