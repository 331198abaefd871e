"""An output directory that appears whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vacc_deploy.errors import OutputError
from vacc_deploy.results import format_bytes

MANIFEST_NAME = "vacc_deploy.json"
_MARKER = ".vacc-deploy-partial"


def check_output(output_dir: Path, *, overwrite: bool, inputs: tuple[Path, ...] = ()) -> None:
    """Refuse an output that exists, contains an input, or cannot be created.

    Raises:
        OutputError: says which rule is broken and what to do.
    """
    target = output_dir.resolve()
    for source in inputs:
        if source.resolve() == target or target in source.resolve().parents:
            raise OutputError(f"The output {output_dir} is the input {source} or contains it.")
        if source.resolve() in target.parents:
            raise OutputError(
                f"The output {output_dir} lies inside the input {source}, which is never changed. "
                "Choose another --output."
            )
    parent = target.parent
    if not parent.is_dir():
        raise OutputError(f"{parent} does not exist. Create it, or choose another --output.")
    if output_dir.is_symlink() or (output_dir.exists() and not output_dir.is_dir()):
        raise OutputError(f"{output_dir} exists and is no directory. Choose another --output.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{parent} cannot be written to. Choose another --output.")
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return
    if not overwrite:
        raise OutputError(
            f"{output_dir} exists and is not empty. Give --overwrite to replace it, or choose "
            "another --output."
        )
    if not (output_dir / MANIFEST_NAME).is_file():
        raise OutputError(
            f"{output_dir} is not empty and was not written by vacc-deploy (it has no "
            f"{MANIFEST_NAME}), so --overwrite will not delete it. Remove it yourself, or choose "
            "another --output."
        )


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


@contextmanager
def output_directory(
    output_dir: Path, *, overwrite: bool = False, inputs: tuple[Path, ...] = ()
) -> Iterator[Path]:
    """Yield ``<output_dir>.partial``; rename it to ``output_dir`` when the block ends well.

    After an error or an interruption the partial directory is removed and an older output is
    left as it was.

    Raises:
        OutputError: the output may not be written, the disk is full, or another run is writing it.
    """
    check_output(output_dir, overwrite=overwrite, inputs=inputs)
    partial = output_dir.resolve().with_name(output_dir.resolve().name + ".partial")
    lock, finished = _claim(partial), False
    try:
        yield partial
        # Something else may have come to stand there since the first check.
        check_output(output_dir, overwrite=overwrite, inputs=inputs)
        (partial / _MARKER).unlink()
        _sync_directory(partial)
        _put_in_place(partial, output_dir.resolve())
        finished = True
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        written = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
        raise OutputError(
            f"The disk is full: {format_bytes(written)} of {output_dir} were written, then the "
            "file system refused more. Nothing was kept. Free space or choose another --output."
        ) from err
    finally:
        # Under the lock, and never after success: another run may own the name by then.
        if not finished:
            shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


def _claim(partial: Path) -> int:
    """Create the partial directory and return a lock on it; clear what a killed run left."""
    marker = partial / _MARKER
    if partial.exists() and not marker.is_file():
        raise OutputError(f"{partial} exists and is not ours. Remove it, then rerun.")
    partial.mkdir(exist_ok=True)
    lock = os.open(marker, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        os.close(lock)
        raise OutputError(f"Another run is writing {partial}. Wait for it to end.") from err
    if not os.fstat(lock).st_nlink:
        os.close(lock)
        raise OutputError(f"Another run has just removed {partial}. Run this again.")
    for path in partial.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != marker:
            path.unlink()
    return lock


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(partial: Path, target: Path) -> None:
    """Rename ``partial`` to ``target``; an older output goes only after the new one stands."""
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    if not target.exists():
        partial.rename(target)
        _sync_directory(target.parent)
        return
    aside = target.with_name(f".{target.name}.replaced-{os.getpid()}")
    try:
        target.rename(aside)
        partial.rename(target)
    except BaseException:
        # An interruption between the two must not leave the user without either.
        if not target.exists():
            aside.rename(target)
        raise
    _sync_directory(target.parent)
    shutil.rmtree(aside, ignore_errors=True)
