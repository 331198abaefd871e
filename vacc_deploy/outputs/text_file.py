"""One small text file that appears whole or not at all, and what outputs share with it."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from vacc_deploy.bounds import SEALED_TEXT_BYTES
from vacc_deploy.errors import OutputError
from vacc_deploy.outputs.file_system import (
    UNSUPPORTED,
    Say,
    State,
    check_name,
    describe_unsynced,
    host_tag,
    ignore,
    state_of,
    sync_directory,
)
from vacc_deploy.outputs.seal import is_sealed_text
from vacc_deploy.outputs.writer import remove_abandoned, write_bytes, write_text
from vacc_deploy.permissions import explain_unwritable, is_denied

# A file system that has no rename, or none onto a name that is taken.
_NO_RENAME = (*UNSUPPORTED, errno.EEXIST, errno.ENOTEMPTY, errno.EXDEV)
# Of the name beside a file while it is written: dots, random digits, the process, the ending.
_ADDED_BYTES = 44


def replace_text(
    path: Path, text: str, *, overwrite: bool, head: str | None, say: Say = ignore
) -> None:
    """Write one small text file, whole or not at all.

    Args:
        path: the file; its directory exists.
        text: its content.
        overwrite: an older file of ours may be replaced, if nobody has changed it.
        head: how a file of ours begins, which then ends with a seal; with "" every file is ours,
            with None only one that holds ``text`` already.
        say: receives what the file system could not do as usual.

    Raises:
        OutputError: what exists may not be replaced, or the directory is missing or closed to us.
    """
    check_parent(path.parent)
    before = _state_of(path)
    check_text(path, text, overwrite=overwrite, head=head)
    remove_abandoned(path)
    # Beside the target: a rename is atomic within one file system only.
    tag = f"{host_tag()}{secrets.token_hex(4)}"
    partial = path.with_name(f".{path.name}.{tag}.{os.getpid()}.partial")
    try:
        write_text(partial, text)
        if head != "" and _state_of(path) != before:
            raise OutputError(f"{path} was changed just now, so it was not replaced. Run it again.")
        _rename(partial, path, text, say)
    except OSError as err:
        if is_denied(err):
            raise unwritable(path, err) from err
        err.filename = str(path)  # the name that the user knows
        raise
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    try:
        reason = sync_directory(path.parent)
    except OSError as err:
        err.filename = str(path)
        raise
    if reason:
        say(describe_unsynced(path, reason))


def check_text(path: Path, text: str, *, overwrite: bool, head: str | None) -> None:
    """Refuse what ``replace_text`` refuses; its directory may be one that is yet to be made.

    Args:
        path, text, overwrite, head: see ``replace_text``.

    Raises:
        OutputError: what exists may not be replaced, stands in place of a directory, or is closed
            to us.
    """
    place = next(place for place in path.absolute().parents if os.path.lexists(place))
    check_parent(place)
    if not os.access(place, os.W_OK | os.X_OK):
        denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        raise unwritable(path, denied) from denied
    check_name(path, _ADDED_BYTES)
    refuse_link(path)
    if not os.path.lexists(path):
        return
    if not path.is_file():
        raise OutputError(f"{path} exists and is not a file. Choose another --output.")
    if not overwrite:
        raise OutputError(f"{path} exists already. Add --overwrite to replace it.")
    if reason := _find_doubt(path, text, head):
        raise OutputError(
            f"{path} {reason}, so it will not be replaced. Remove it yourself, or choose another "
            "--output."
        )


def refuse_link(path: Path) -> None:
    """Refuse an output in place of a link, wherever that leads."""
    if path.is_symlink():
        raise OutputError(
            f"{path} is a link to {os.readlink(path)}, and an output never replaces a link. Remove "
            "it, or choose another --output."
        )


def _find_doubt(path: Path, text: str, head: str | None) -> str:
    """Return why a file may not be replaced by ``text``, a clause; nothing where it may.

    A file that holds the text already loses nothing.
    """
    if head == "":
        return ""
    with path.open("rb") as file:
        data = file.read(SEALED_TEXT_BYTES + 1)
    if data == text.encode(errors="backslashreplace"):
        return ""
    if head is None:
        return "is not what would be written"
    if not data.startswith(head.encode()):
        return "was not written by vacc-deploy"
    if len(data) > SEALED_TEXT_BYTES or not is_sealed_text(data):
        return "was changed since it was written, or is of an earlier version"
    return ""


def _state_of(path: Path) -> State | None:
    return state_of(path) if os.path.lexists(path) else None


def _rename(partial: Path, path: Path, text: str, say: Say) -> None:
    """Give the written file its name; where that is impossible, write ``path`` itself."""
    try:
        os.replace(partial, path)
    except OSError as err:
        if err.errno not in _NO_RENAME:
            raise
        older = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        try:
            write_text(path, text)
        except BaseException:
            path.unlink(missing_ok=True)
            if older is not None:  # into the room that it had
                write_bytes(path, [older])
            raise
        say(
            f"the file system of {path} cannot rename ({err.strerror or err}), so the file was "
            "written in its place and not all at once."
        )


def check_parent(parent: Path) -> None:
    """Refuse an output whose parent is missing or no directory."""
    if os.path.lexists(parent) and not parent.is_dir():
        raise OutputError(f"{parent} is not a directory. Choose another --output.")
    if not parent.is_dir():
        raise OutputError(f"{parent} does not exist. Create it, or choose another --output.")


def unwritable(path: Path, err: OSError | None = None) -> OutputError:
    """Return the error of an output that this user may not write."""
    return OutputError(explain_unwritable(path, err, choose="Choose another --output"))
