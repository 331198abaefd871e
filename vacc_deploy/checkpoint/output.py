"""Outputs that appear whole or not at all, and the rules on what --overwrite may replace."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vacc_deploy.checkpoint.text_file import check_parent, sync_directory, unwritable
from vacc_deploy.errors import CheckpointError, OutputError, list_problems
from vacc_deploy.json_files import read_json
from vacc_deploy.results import format_bytes

MANIFEST_NAME = "vacc_deploy.json"
MAX_MANIFEST_BYTES = 16 << 20
# The names of what a run writes in its partial directory for itself begin so. These files are
# removed right after the last rename; a kill in between leaves them in the output.
RUN_FILE_PREFIX = ".vacc-deploy-"
_MARKER = f"{RUN_FILE_PREFIX}partial"


def check_output(
    output_dir: Path, *, overwrite: bool, inputs: tuple[Path, ...] = (), dry_run: bool = False
) -> tuple[str, ...]:
    """Refuse an output that exists, contains an input, or cannot be created.

    Args:
        output_dir: the directory to write.
        overwrite: accept an output of an earlier run with nothing else in it.
        inputs: directories and files that must stay as they are.
        dry_run: accept an output that exists, since nothing will be written.

    Returns a note for the plan of a dry run, where the run itself would be refused.

    Raises:
        OutputError: says which rule is broken and what to do.
    """
    target = output_dir.resolve()
    for source in inputs:
        if source.resolve() == target or target in source.resolve().parents:
            raise OutputError(
                f"The output {output_dir} is the input {source} or contains it. Choose another "
                "--output."
            )
        if source.resolve() in target.parents:
            raise OutputError(
                f"The output {output_dir} lies inside the input {source}, which is never changed. "
                "Choose another --output."
            )
    if target == Path.cwd() or target in Path.cwd().parents:
        raise OutputError(
            f"The output {output_dir} is the working directory or contains it. Choose another "
            "--output."
        )
    parent = target.parent
    check_parent(parent)
    if output_dir.is_symlink() or (output_dir.exists() and not output_dir.is_dir()):
        raise OutputError(f"{output_dir} exists and is not a directory. Choose another --output.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise unwritable(output_dir)
    problem = _find_obstacle(output_dir, overwrite=overwrite)
    if problem and not dry_run:
        raise OutputError(problem)
    return (f"without --dry-run this is refused: {problem}",) if problem else ()


def _find_obstacle(output_dir: Path, *, overwrite: bool) -> str:
    """Return why what stands at ``output_dir`` may not be replaced, or an empty text."""
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return ""
    if not overwrite:
        return (
            f"{output_dir} exists and is not empty. Give --overwrite to replace it, or choose "
            "another --output."
        )
    if not (output_dir / MANIFEST_NAME).is_file():
        return (
            f"{output_dir} is not empty and was not written by vacc-deploy (it has no "
            f"{MANIFEST_NAME}), so --overwrite will not delete it. Remove it yourself, or choose "
            "another --output."
        )
    if foreign := _foreign_files(output_dir):
        return (
            f"{output_dir} holds what {MANIFEST_NAME} does not list, so --overwrite will not "
            f"delete it:\n{list_problems(foreign)}\nMove it away, or choose another --output."
        )
    return ""


def _foreign_files(directory: Path) -> list[str]:
    """Return the names that no manifest lists and no run leaves.

    A directory within an output has a manifest of its own, which that of the output lists. What
    differs from run to run lies beside the manifest, unlisted: ``<command>_timing.json``.
    """
    try:
        manifest = read_json(directory / MANIFEST_NAME, limit_bytes=MAX_MANIFEST_BYTES)
    except CheckpointError:
        manifest = None
    manifest = manifest if isinstance(manifest, dict) else {}
    files = manifest.get("files")
    listed = {MANIFEST_NAME, f"{manifest.get('command')}_timing.json"}
    listed |= set(files if isinstance(files, dict) else ())
    foreign = []
    for path in directory.iterdir():
        is_directory = path.is_dir() and not path.is_symlink()
        if is_directory and f"{path.name}/{MANIFEST_NAME}" in listed:
            foreign += [f"{path.name}/{name}" for name in _foreign_files(path)]
        elif is_directory or not (path.name in listed or path.name.startswith(RUN_FILE_PREFIX)):
            foreign.append(path.name)
    return foreign


def check_space(output_dir: Path, needed_bytes: int) -> None:
    """Refuse to begin where the file system has less than ``needed_bytes`` free.

    Raises:
        OutputError: gives the bytes needed and free.
    """
    free = shutil.disk_usage(output_dir.resolve().parent).free
    if free < needed_bytes:
        raise OutputError(
            f"{output_dir} needs {format_bytes(needed_bytes)}, its file system has "
            f"{format_bytes(free)} free. Free space or choose another --output."
        )


def partial_path(output_dir: Path) -> Path:
    """Return the directory in which a run makes ``output_dir``."""
    target = output_dir.resolve()
    return target.with_name(f"{target.name}.partial")


@contextmanager
def output_directory(
    output_dir: Path,
    *,
    overwrite: bool = False,
    inputs: tuple[Path, ...] = (),
    keeps: Callable[[], bool] | None = None,
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

    Raises:
        OutputError: the output may not be written, the disk is full, or another run is writing it.
    """
    check_output(output_dir, overwrite=overwrite, inputs=inputs)
    target, partial = output_dir.resolve(), partial_path(output_dir)
    lock, finished = _claim(partial), False
    try:
        _recover_replaced(target)
        if keeps is None:
            clear_partial(partial)
        # An older output may stand there again, or something else have come to, at both times.
        check_output(output_dir, overwrite=overwrite, inputs=inputs)
        yield partial
        check_output(output_dir, overwrite=overwrite, inputs=inputs)
        sync_directory(partial)
        _put_in_place(partial, target)
        finished = True
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        written = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
        is_kept = keeps is not None and keeps()
        raise OutputError(
            f"The disk is full: {format_bytes(written)} of {output_dir} were written, then the "
            f"file system refused more. {'What is finished' if is_kept else 'Nothing'} was kept. "
            "Free space or choose another --output."
        ) from err
    finally:
        # Under the lock, and never after success: another run may own the name by then.
        if not finished and not (keeps is not None and keeps()):
            with suppress(OSError):
                remove_path(partial)
        os.close(lock)


def _claim(partial: Path) -> int:
    """Create the partial directory and return a lock on it."""
    marker = partial / _MARKER
    is_empty = partial.is_dir() and not any(partial.iterdir())
    if partial.exists() and not marker.is_file() and not is_empty:
        raise OutputError(f"{partial} exists and is not ours. Remove it, then rerun.")
    try:
        partial.mkdir(exist_ok=True)
        lock = os.open(marker, os.O_CREAT | os.O_RDWR, 0o644)
    except PermissionError as err:
        raise unwritable(marker, err) from err  # another user may have left the directory
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        os.close(lock)
        raise OutputError(f"Another run is writing {partial}. Wait for it to end.") from err
    # The marker was removed between open and flock: the lock is on a file without a name.
    if not os.fstat(lock).st_nlink:
        os.close(lock)
        raise OutputError(f"Another run has just removed {partial}. Run this again.")
    return lock


def clear_partial(partial: Path, *, keep: Collection[str] = ()) -> None:
    """Remove what a claimed partial directory holds but the files ``keep``, paths within it.

    First go the run's own files, so that a half-cleared directory never claims finished work.
    """
    kept = {partial / name for name in (_MARKER, *keep)}
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
        for inner in sorted(path.iterdir(), key=lambda inner: inner.name in signs):
            remove_path(inner)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(output_dir: Path) -> None:
    """Remove what a run has still to remove after its last rename: its own files, an older output.

    Needs no lock: once the new output stands, nobody has another use for these.
    """
    target = output_dir.resolve()
    for path in target.glob(f"{RUN_FILE_PREFIX}*"):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
    for aside in _replaced(target):
        if target.exists() and not _foreign_files(aside):
            with suppress(OSError):
                remove_path(aside)


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
        partial.rename(target)
    except BaseException:
        # An interruption between the two must not leave the user without either.
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise
    sync_directory(target.parent)
    remove_leftovers(target)
