"""Why the file system refuses a file or a directory, and what to do about it."""

from __future__ import annotations

import errno
import os
import pwd
import shlex
import stat
from pathlib import Path

_DENIED = (errno.EACCES, errno.EPERM)
# What to do where the system itself refuses or fails, by its number.
_NO_SPACE = "Free space, or choose another --output, then run the command again."
_FAILING = (
    "The disk, or the connection to it, fails: look into the system's log (dmesg), then run the "
    "command again, if need be with a copy on another disk."
)
_OPEN_FILES = "Raise the limit on open files (ulimit -n), then run the command again."
_GONE = "Something else changed it meanwhile. Put it right, then run the command again."
_ADVICE = {
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EIO: _FAILING,
    errno.ESTALE: _FAILING,
    errno.EMFILE: _OPEN_FILES,
    errno.ENFILE: _OPEN_FILES,
    errno.ENOENT: _GONE,
    errno.ENOTDIR: _GONE,
    errno.EISDIR: _GONE,
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f), or choose an --output on "
    "a file system that holds larger ones, then run the command again.",
    errno.EROFS: "Choose an --output on a file system that can be written, then run the command "
    "again.",
    errno.ENOLCK: "Choose an --output on a file system with locks, then run the command again.",
    errno.EBUSY: "End what uses it, then run the command again.",
}


def real_path(path: Path) -> Path:
    """Return ``path`` with its links followed, also where they lead in a circle.

    ``Path.resolve`` fails there in some releases of Python. What opens the path says why it cannot.
    """
    return Path(os.path.realpath(path))


def is_there(path: Path | str) -> bool:
    """Return whether something lies at a path of the user's, which may be too long for a file.

    Raises:
        OSError: the system refuses to tell.
    """
    try:
        os.stat(path)
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            return False
        raise
    except ValueError:  # a zero byte, which no name has
        return False
    return True


def is_denied(err: BaseException | None) -> bool:
    """Return whether an error is the system's word for a missing permission."""
    return isinstance(err, OSError) and err.errno in _DENIED


def advise(err: OSError) -> str:
    """Return what to do about an error of the system that is no missing permission, a sentence."""
    return _ADVICE.get(err.errno or 0, "Put this right, then run the command again.")


def explain_unreadable(path: Path, err: OSError, *, otherwise: str = "") -> str:
    """Return the sentences of an error: ``path`` cannot be read, why, and what to do.

    Args:
        path: file or directory that was to be read.
        err: what the system said.
        otherwise: what to do where the reason is no missing permission, sentences; default: what
            helps against what the system said.
    """
    if not is_denied(err):
        reason = str(err.strerror or err).rstrip(".")
        return f"{path} cannot be read: {reason}. {otherwise or advise(err)}"
    closed = _find_closed_directory(path)
    place = closed or path
    reason, owner, is_own = _look(place, path)
    if is_own:
        advice = f"Run {_chmod('u+rx' if os.path.isdir(place) else 'u+r', place)}, then rerun."
    elif closed or os.path.isdir(place):
        advice = f"Ask {owner} for access to {place}, or for a copy elsewhere."
    else:
        advice = f"Ask {owner} to run {_chmod('a+r', place)}, or for a copy elsewhere."
    return f"{path} cannot be read: {reason}. {advice}"


def explain_dangling(path: Path) -> str:
    """Return the sentences of an error: ``path`` is a link to nothing; empty where it is not."""
    if not path.is_symlink() or is_there(path):
        return ""
    what = f"{path} is a link to {os.readlink(path)}"
    if is_circle(path):
        return f"{what}, which leads back to itself. Remove it, then download the file again."
    directory = shlex.quote(str(path.parent))
    return (
        f"{what}, which does not exist: the directory was copied "
        "without the files that its links lead to, as from the Hugging Face cache. Copy it again "
        # Without the option cp refuses to write where such a link stands.
        f"from there with: cp -rL --remove-destination SOURCE/. {directory}\n"
        "Or download the file again."
    )


def is_circle(path: Path) -> bool:
    """Return whether the links of ``path`` lead in a circle."""
    try:
        path.stat()
    except OSError as err:
        return err.errno == errno.ELOOP
    return False


def explain_denied(path: Path) -> str:
    """Return the sentences of an error of which no more is known than the file it was about."""
    place = _find_closed_directory(path) or path
    # What the system refuses to tell counts as missing.
    place = place if os.path.exists(place) else place.parent
    reason, owner, is_own = _look(place, path)
    # Whether it was to be read or written is not known. X: of a directory, also to enter it.
    advice = f"Run {_chmod('u+rwX', place)}, then rerun." if is_own else f"Ask {owner} for access."
    return f"{path}: {reason}. {advice}"


def explain_closed(directory: Path) -> str | None:
    """Return the error of a directory whose files this user may not see, else None."""
    try:
        # The dot makes the system look into the directory.
        os.stat(os.path.join(directory, "."))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as err:
        return explain_unreadable(directory, err)
    return None


def explain_unwritable(
    path: Path, err: OSError | None = None, *, choose: str, what: str = ""
) -> str:
    """Return the sentences of an error: ``path`` cannot be written, why, and what to do.

    Args:
        path: file or directory that was to be made or replaced, as the user named it.
        err: what the system said; None where its refusal is foreseen.
        choose: what else to do, a clause such as "Choose another --output".
        what: what cannot be done, a clause; default ``PATH cannot be written``.
    """
    what = what or f"{path} cannot be written"
    parent = next(place for place in path.absolute().parents if os.path.isdir(place))
    reason = os.strerror(errno.EROFS)
    if err is not None and not is_denied(err):
        reason = err.strerror or str(err)
    elif not os.statvfs(parent).f_flag & os.ST_RDONLY:
        reason = ""
    if reason:
        return f"{what}: {reason}. {choose}."
    place = _find_closed_directory(parent) or parent
    reason, owner, is_own = _look(place, path)
    other = f"run {_chmod('u+rwx', place)}" if is_own else f"ask {owner} for write access"
    return f"{what}: {reason}. {choose}, or {other}."


def _find_closed_directory(path: Path) -> Path | None:
    """Return the first directory on the way to ``path`` that does not let this user through."""
    for place in reversed(path.absolute().parents):
        if not os.access(place, os.X_OK):
            return place
    return None


def _look(place: Path, path: Path) -> tuple[str, str, bool]:
    """Return why ``place`` keeps ``path`` closed, the owner, and whether that is this user.

    The reason is, for example, ``Permission denied (mode 0600, owned by alice)``.
    """
    denied = os.strerror(errno.EACCES)
    try:
        state = place.stat()
    except OSError:
        return denied, "its owner", False
    try:
        owner = pwd.getpwuid(state.st_uid).pw_name
    except KeyError:
        owner = f"user {state.st_uid}"
    where = "" if place == path else f"{place} has "
    mode = f"mode {stat.S_IMODE(state.st_mode):04o}"
    return f"{denied} ({where}{mode}, owned by {owner})", owner, state.st_uid == os.geteuid()


def _chmod(rights: str, place: Path) -> str:
    return shlex.join(["chmod", rights, str(place)])
