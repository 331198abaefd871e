"""One small text file that appears whole or not at all, and what outputs share with it."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from vacc_deploy.checkpoint.writer import remove_abandoned, write_text
from vacc_deploy.errors import OutputError
from vacc_deploy.permissions import explain_unwritable, is_denied


def replace_text(path: Path, text: str, *, overwrite: bool, head: str) -> None:
    """Write one small text file, whole or not at all.

    Args:
        path: the file; its directory exists.
        text: its content.
        overwrite: an older file of ours may be replaced.
        head: how a file of ours begins; with "" any file counts as ours.

    Raises:
        OutputError: what exists may not be replaced, or the directory is missing or closed to us.
    """
    check_parent(path.parent)
    if os.path.lexists(path):
        if not path.is_file():
            raise OutputError(f"{path} exists and is not a file. Choose another --output.")
        if not overwrite:
            raise OutputError(f"{path} exists already. Add --overwrite to replace it.")
        with path.open("rb") as file:
            is_ours = file.read(len(head.encode())) == head.encode()
        if not is_ours:
            raise OutputError(
                f"{path} was not written by vacc-deploy, so --overwrite will not replace it. "
                "Remove it yourself, or choose another --output."
            )
    remove_abandoned(path)
    # Beside the target: a rename is atomic within one file system only.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{os.getpid()}.partial")
    try:
        write_text(partial, text)
        os.replace(partial, path)
    except OSError as err:
        if is_denied(err):
            raise unwritable(path, err) from err
        err.filename = str(path)  # the name that the user knows
        raise
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    sync_directory(path.parent)


def check_parent(parent: Path) -> None:
    """Refuse an output whose parent is missing or no directory."""
    if parent.exists() and not parent.is_dir():
        raise OutputError(f"{parent} is not a directory. Choose another --output.")
    if not parent.is_dir():
        raise OutputError(f"{parent} does not exist. Create it, or choose another --output.")


def unwritable(path: Path, err: OSError | None = None) -> OutputError:
    """Return the error of an output that this user may not write."""
    return OutputError(explain_unwritable(path, err, choose="Choose another --output"))


def sync_directory(directory: Path) -> None:
    """Bring the names in ``directory`` to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
