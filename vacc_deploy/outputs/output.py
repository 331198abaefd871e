"""Outputs that appear whole or not at all."""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
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
from vacc_deploy.outputs.lock import Lock, describe_running, is_lock_file, lock_directory
from vacc_deploy.outputs.output_rules import RUN_FILE_PREFIX, check_output, foreign_files
from vacc_deploy.outputs.text_file import unwritable
from vacc_deploy.permissions import is_denied, real_path
from vacc_deploy.results import format_bytes

_MARKER = f"{RUN_FILE_PREFIX}partial"
# Of a shard that a run can be resumed with.
SHARD_RECORD_PREFIX = f"{RUN_FILE_PREFIX}shard-"


def partial_path(output_dir: Path) -> Path:
    """Return the directory in which a run makes ``output_dir``."""
    target = real_path(output_dir)
    return target.with_name(f"{target.name}.partial")


def find_writer(partial: Path) -> str:
    """Return the error of a partial directory that another run is writing now, or nothing."""
    return describe_running(partial, partial / _MARKER)


@contextmanager
def output_directory(
    output_dir: Path,
    *,
    overwrite: bool = False,
    inputs: tuple[Path, ...] = (),
    keeps: Callable[[], bool] | None = None,
    say: Say = ignore,
) -> Iterator[Path]:
    """Yield ``<output_dir>.partial``; rename it to ``output_dir`` when the block ends well.

    After an error or an interruption the partial directory is removed and an older output is
    left as it was.

    Args:
        output_dir: the directory to write.
        overwrite: see ``check_output``.
        inputs: see ``check_output``.
        keeps: for runs that can be resumed. Asked after an error whether the partial directory
            holds work to be kept. With it, what an earlier run left is the block's to clear.
        say: receives a note for each thing that the file system cannot do.

    Raises:
        OutputError: the output may not be written, the disk is full, or another run is writing it.
            Or it is finished and cannot be renamed, which the message says: nothing is lost then.
    """
    check_output(output_dir, overwrite=overwrite, inputs=inputs)
    target, partial = real_path(output_dir), partial_path(output_dir)
    if keeps is None and not overwrite:
        _refuse_kept(partial)
    lock, finished = _claim(partial, say), False
    try:
        _recover_replaced(target)
        if keeps is None:
            clear_partial(partial)
        # An older output may stand there again, or something else have come to, at both times.
        check_output(output_dir, overwrite=overwrite, inputs=inputs)
        yield partial
        check_output(output_dir, overwrite=overwrite, inputs=inputs)
        sync_directory(partial)
        try:
            _put_in_place(partial, target)
        except OSError as err:
            finished = True  # it lacks its name only
            lock.remove_file()
            raise _unnamed(output_dir, partial, err, is_ours_alone=keeps is None) from err
        finished = True
        sync_directory(target.parent)
        remove_leftovers(target)
    except OSError as err:
        if err.errno not in FULL:
            raise
        raise _full(output_dir, partial, is_kept=keeps is not None and keeps()) from err
    finally:
        # Under the lock, and never after success: another run may own the name by then.
        if not finished:
            _let_go(partial, lock, is_kept=keeps is not None and keeps())
        lock.close()
        # Some file systems let nobody remove a file that is open, as the marker was until now.
        if finished and target.is_dir():
            _remove_run_files(target)


def _refuse_kept(partial: Path) -> None:
    """Refuse to clear what a run that can be resumed has finished."""
    if count := len(list(partial.glob(f"{SHARD_RECORD_PREFIX}*.json"))):
        raise OutputError(
            find_writer(partial)
            or f"{partial} holds finished weight files ({count}) of an interrupted quantize, which "
            "--resume can go on with. Choose another --output, or give --overwrite to lose them."
        )


def _full(output_dir: Path, partial: Path, *, is_kept: bool) -> OutputError:
    written = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    return OutputError(
        f"The disk is full: {format_bytes(written)} of {output_dir} were written, then the "
        f"file system refused more. {'What is finished' if is_kept else 'Nothing'} was kept. "
        "Free space or choose another --output."
    )


def _claim(partial: Path, say: Say = ignore) -> Lock:
    """Create the partial directory and return a lock on it."""
    marker, was_there = partial / _MARKER, partial.exists()
    names = [path.name for path in partial.iterdir()] if partial.is_dir() else []
    # A run that was killed while it removed the directory has left nothing but its own files.
    is_ours = marker.is_file() or all(name.startswith(RUN_FILE_PREFIX) for name in names)
    if partial.exists() and not (partial.is_dir() and is_ours):
        if MANIFEST_NAME in names:
            raise OutputError(
                f"{partial} is the finished output of an earlier run, which could not be renamed. "
                "Give it the name that it was to have, or remove it, then rerun."
            )
        raise OutputError(f"{partial} exists and is not ours. Remove it, then rerun.")
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
                remove_path(partial)
        if is_denied(err):  # another user may have left the directory
            raise unwritable(marker, err) from err
        raise
    try:
        # What the file system cannot do now it cannot do later: one note tells of all the files.
        unsynced = sync_directory(partial) or sync_path(marker)
    except BaseException:
        _let_go(partial, lock, is_kept=was_there)
        lock.close()
        raise
    if lock.note:
        say(lock.note)
    if unsynced:
        say(describe_unsynced(partial.parent, unsynced))
    return lock


def _let_go(partial: Path, lock: Lock, *, is_kept: bool) -> None:
    """Leave a partial directory after an error: removed, or free for the run that goes on."""
    if not is_kept:
        with suppress(OSError):
            remove_path(partial)
            return  # another run may own the name by now, and have a lock file there
    lock.remove_file()


def _unnamed(output_dir: Path, partial: Path, err: OSError, *, is_ours_alone: bool) -> OutputError:
    """Return the error of a finished output that cannot be renamed; let the user move it.

    ``is_ours_alone``: no run goes on with it, so the files of this run are of no more use.
    """
    if is_ours_alone:
        _remove_run_files(partial)
    target = real_path(output_dir)
    steps = [shlex.join(["mv", str(partial), str(target)])]
    if target.is_dir():
        words = ["rm", "-r"] if any(target.iterdir()) else ["rmdir"]
        steps.insert(0, shlex.join([*words, str(target)]))
    return OutputError(
        f"{output_dir} is finished, but the file system does not let {partial} be renamed "
        f"({err.strerror or err}). Nothing is lost: the whole output lies in {partial}. Put it in "
        f"its place:\n  {' && '.join(steps)}"
    )


def clear_partial(partial: Path, *, keep: Collection[str] = ()) -> None:
    """Remove what a claimed partial directory holds but the files ``keep``, paths within it.

    First go the run's own files, so that a half-cleared directory never claims finished work.
    """
    kept = {partial / name for name in (_MARKER, *keep)}
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
        signs = (MANIFEST_NAME, _MARKER)
        for inner in sorted(path.iterdir(), key=lambda p: (is_lock_file(p), p.name in signs)):
            remove_path(inner)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(output_dir: Path) -> None:
    """Remove what a run has still to remove after its last rename: its own files, an older output.

    Needs no lock: once the new output stands, nobody has another use for these.
    """
    target = real_path(output_dir)
    _remove_run_files(target)
    for aside in _replaced(target):
        if target.exists() and not foreign_files(aside):
            with suppress(OSError):
                remove_path(aside)


def _remove_run_files(directory: Path) -> None:
    """Remove the run's own files; one that stays does no harm to a finished output."""
    for path in directory.glob(f"{RUN_FILE_PREFIX}*"):
        if path.is_symlink() or not path.is_dir():
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _replaced(target: Path) -> list[Path]:
    """Return the older outputs that were renamed to make place for ``target``."""
    paths = sorted(target.parent.glob(f".{glob.escape(target.name)}.replaced-*"))
    return [path for path in paths if path.is_dir() and not path.is_symlink()]


def _recover_replaced(target: Path) -> None:
    """Finish what a run killed while replacing an older output left; needs the lock.

    Killed between the two renames, the older output has no name of its own: it gets its name back.
    Killed after them, it is removed.
    """
    for aside in _replaced(target):
        if not target.exists() and (aside / MANIFEST_NAME).is_file():
            aside.rename(target)
            sync_directory(target.parent)
    if target.exists():
        remove_leftovers(target)


def _put_in_place(partial: Path, target: Path) -> None:
    """Rename ``partial`` to ``target``; an older output goes only after the new one stands.

    The run's own files go last: until then a killed run can tell what it was about.
    """
    aside = target.with_name(f".{target.name}.replaced-{os.getpid()}")
    try:
        # An empty directory needs no other name: the system lets a rename replace it.
        if target.exists() and any(target.iterdir()):
            target.rename(aside)
        _rename_directory(partial, target)
    except BaseException:
        # An interruption between the two must not leave the user without either.
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise


def _rename_directory(partial: Path, target: Path) -> None:
    """Rename a directory to a name that is free or that of an empty directory."""
    try:
        partial.rename(target)
    except OSError:
        # Some systems let no rename replace a directory, an empty one neither.
        if not target.is_dir():
            raise
        target.rmdir()
        try:
            partial.rename(target)
        except OSError:
            target.mkdir()
            raise
