"""The directory in which a run makes an output: claimed by one run, cleared, kept or removed."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from vacc_deploy.checkpoint.manifest import MANIFEST_NAME
from vacc_deploy.errors import OutputError
from vacc_deploy.outputs.file_system import (
    FULL,
    Say,
    describe_unsynced,
    ignore,
    sync_directory,
    sync_path,
)
from vacc_deploy.outputs.lock import Lock, describe_running, lock_directory
from vacc_deploy.outputs.run_files import (
    MARKER,
    RUN_FILE_PREFIX,
    SHARD_RECORD_PREFIX,
    has_run_name,
    is_lock_file,
    is_regular,
    is_run_file,
)
from vacc_deploy.outputs.text_file import unwritable
from vacc_deploy.permissions import is_denied, real_path


def partial_path(output_dir: Path) -> Path:
    """Return the directory in which a run makes ``output_dir``."""
    target = real_path(output_dir)
    return target.with_name(f"{target.name}.partial")


def find_writer(partial: Path) -> str:
    """Return the error of a partial directory that another run is writing now, or nothing."""
    return describe_running(partial, partial / MARKER)


def refuse_kept(partial: Path) -> None:
    """Refuse to clear what a run that can be resumed has finished."""
    if count := sum(map(is_run_file, partial.glob(f"{SHARD_RECORD_PREFIX}*.json"))):
        raise OutputError(
            find_writer(partial)
            or f"{partial} holds finished weight files ({count}) of an interrupted quantize, which "
            "--resume can go on with. Choose another --output, or give --overwrite to lose them."
        )


def _refuse_foreign(partial: Path) -> None:
    """Refuse a partial directory that no run has left; nothing in it is touched.

    Raises:
        OutputError: it is a link, no directory, or without the marker of a run.
    """
    if partial.is_symlink():
        raise OutputError(
            f"{partial} is a link to {os.readlink(partial)}, and nothing is written through a "
            "link. Remove it, then rerun."
        )
    paths = list(partial.iterdir()) if partial.is_dir() else []
    for path in filter(has_run_name, paths):
        if not is_regular(path):
            raise OutputError(
                f"{partial} exists and is not ours: {path.name} in it is no file. Remove it, then "
                "rerun."
            )
    # A run that was killed while it removed the directory has left nothing but its own files.
    if partial.is_dir() and (is_regular(partial / MARKER) or all(map(is_run_file, paths))):
        return
    if MANIFEST_NAME in (path.name for path in paths):
        raise OutputError(
            f"{partial} is the finished output of an earlier run, which could not be renamed. "
            "Give it the name that it was to have, or remove it, then rerun."
        )
    raise OutputError(f"{partial} exists and is not ours. Remove it, then rerun.")


def claim(partial: Path, say: Say = ignore) -> Lock:
    """Create the partial directory and return a lock on it."""
    marker, was_there = partial / MARKER, os.path.lexists(partial)
    if was_there:
        _refuse_foreign(partial)
    try:
        partial.mkdir(exist_ok=True)
    except OSError as err:
        if err.errno in FULL:
            raise
        raise unwritable(partial, err) from err
    try:
        lock = lock_directory(partial, marker)
    except OSError as err:
        if not was_there:
            with suppress(OSError):
                marker.unlink(missing_ok=True)
                partial.rmdir()  # not what a run that came since has in it
        if is_denied(err):  # another user may have left the directory
            raise unwritable(marker, err) from err
        raise
    try:
        # What the file system cannot do now it cannot do later: one note tells of all the files.
        unsynced = sync_directory(partial) or sync_path(marker)
    except BaseException:
        let_go(partial, lock, is_kept=was_there)
        lock.close()
        raise
    if lock.note:
        say(lock.note)
    if unsynced:
        say(describe_unsynced(partial.parent, unsynced))
    return lock


def let_go(partial: Path, lock: Lock, *, is_kept: bool) -> None:
    """Leave a partial directory after an error: removed, or free for the run that goes on."""
    lock.free_descriptor()
    if not is_kept:
        with suppress(OSError):
            remove_path(partial)
            return  # another run may own the name by now, and have a lock file there
    lock.remove_file()


def clear_partial(partial: Path, *, keep: Collection[str] = ()) -> None:
    """Remove what a claimed partial directory holds but the files ``keep``, paths within it.

    First go the run's own files, so that a half-cleared directory never claims finished work.
    """
    kept = {partial / name for name in (MARKER, *keep)}
    kept |= {path for path in partial.iterdir() if is_lock_file(path)}
    # The directories of formats that hold such a file stay too.
    kept |= {path.parent for path in kept}
    for pattern in (f"{RUN_FILE_PREFIX}*", "*", "*/*"):
        for path in list(partial.glob(pattern)):
            # A link is never followed, whatever it claims to be.
            if path.is_symlink() or path not in kept:
                remove_path(path)
        sync_directory(partial)


def remove_path(path: Path) -> None:
    """Remove a file, a link (not what it points to) or a directory with all it holds.

    What shows whose a directory is goes last, should a kill cut this short.
    """
    if path.is_dir() and not path.is_symlink():
        signs = (MANIFEST_NAME, MARKER)
        for inner in sorted(path.iterdir(), key=lambda p: (is_lock_file(p), p.name in signs)):
            remove_path(inner)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
