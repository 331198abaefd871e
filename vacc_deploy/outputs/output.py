"""Outputs that appear whole or not at all."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vacc_deploy.errors import OutputError, name_some
from vacc_deploy.outputs.file_system import FULL, Say, ignore, sync_directory
from vacc_deploy.outputs.output_rules import check_output
from vacc_deploy.outputs.partial import (
    claim,
    clear_partial,
    let_go,
    partial_path,
    refuse_kept,
)
from vacc_deploy.outputs.proof import is_whole, remove_proven
from vacc_deploy.outputs.run_files import MARKER, is_regular, is_run_file
from vacc_deploy.outputs.trial import (
    aside_path,
    clear_trials,
    find_replaced,
    give_name_back,
    keep_aside,
    try_renames,
)
from vacc_deploy.permissions import real_path
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.results import format_bytes

if TYPE_CHECKING:
    from vacc_deploy.checkpoint.reader import Checkpoint


def try_output(
    output_dir: Path,
    *,
    overwrite: bool,
    source: Checkpoint | None,
    progress: Progress = SILENT,
) -> None:
    """Refuse what ``check_output`` refuses, and try what only the end of a run needs.

    For commands that work before they enter ``output_directory``. Nothing stays. ``progress``
    learns of what an earlier run left.

    Raises:
        OutputError: see ``output_directory``.
    """
    check_output(output_dir, overwrite=overwrite, source=source, progress=progress)
    target, partial = real_path(output_dir), partial_path(output_dir)
    was_there, was_cut_short = os.path.lexists(partial), is_regular(partial / MARKER)
    lock = claim(partial)
    try:
        notes = _settle_replaced(target, was_cut_short=was_cut_short)
        _try_again(notes, progress.say, output_dir, overwrite=overwrite, source=source)
    finally:
        let_go(partial, lock, is_kept=was_there)
        lock.close()


@contextmanager
def output_directory(
    output_dir: Path,
    *,
    overwrite: bool = False,
    source: Checkpoint | None,
    keeps: Callable[[], bool] | None = None,
    say: Say = ignore,
) -> Iterator[Path]:
    """Yield ``<output_dir>.partial``; rename it to ``output_dir`` when the block ends well.

    After an error or an interruption the partial directory is removed and an older output is
    left as it was.

    Args:
        output_dir: the directory to write.
        overwrite: see ``check_output``.
        source: see ``check_output``.
        keeps: for runs that can be resumed. Asked after an error whether the partial directory
            holds work to be kept. With it, what an earlier run left is the block's to clear.
        say: receives a note for each thing that the file system cannot do.

    Raises:
        OutputError: the output may not be written, the disk is full, or another run is writing it.
            Or it is finished and cannot be renamed, which the message says: nothing is lost then.
    """
    check_output(output_dir, overwrite=overwrite, source=source)
    target, partial = real_path(output_dir), partial_path(output_dir)
    if keeps is None and not overwrite:
        refuse_kept(partial)
    was_cut_short = is_regular(partial / MARKER)
    lock, finished = claim(partial, say), False
    try:
        notes = _settle_replaced(target, was_cut_short=was_cut_short)
        _try_again(notes, say, output_dir, overwrite=overwrite, source=source)
        if keeps is None:
            clear_partial(partial)
        yield partial
        check_output(output_dir, overwrite=overwrite, source=source)
        sync_directory(partial)
        try:
            _put_in_place(partial, target)
        except OSError as err:
            finished = True  # it lacks its name only
            lock.remove_file()
            raise _unnamed(output_dir, partial, err, is_ours_alone=keeps is None) from err
        finished = True
        sync_directory(target.parent)
        remove_leftovers(target, say)
    except OSError as err:
        if err.errno not in FULL:
            raise
        raise _full(output_dir, partial, is_kept=keeps is not None and keeps()) from err
    finally:
        # Under the lock, and never after success: another run may own the name by then.
        if not finished:
            let_go(partial, lock, is_kept=keeps is not None and keeps())
        lock.close()
        # Some file systems let nobody remove a file that is open, as the marker was until now.
        if finished and target.is_dir():
            _remove_run_files(target)


def _full(output_dir: Path, partial: Path, *, is_kept: bool) -> OutputError:
    written = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    return OutputError(
        f"The disk is full: {format_bytes(written)} of {output_dir} were written, then the "
        f"file system refused more. {'What is finished' if is_kept else 'Nothing'} was kept. "
        "Free space or choose another --output."
    )


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
    older = "".join(f" The older output lies in {aside}." for aside in find_replaced(target))
    return OutputError(
        f"{output_dir} is finished, but the file system does not let {partial} be renamed "
        f"({err.strerror or err}). Nothing is lost: the whole output lies in {partial}.{older} Put "
        f"it in its place:\n  {' && '.join(steps)}"
    )


def remove_leftovers(output_dir: Path, say: Say) -> None:
    """Remove what a run has still to remove after its last rename: its own files, an older output.

    Needs no lock: once the new output stands, nobody has another use for these. ``say`` receives
    the name of an older output of which something stays.
    """
    target = real_path(output_dir)
    _remove_run_files(target)
    for aside in find_replaced(target):
        problems = list[str]()
        try:
            problems = remove_proven(aside) if target.exists() else []
        except FileNotFoundError:  # another run has removed it
            continue
        except OSError as err:
            problems = [str(err)]
        if problems:
            say(_keep(aside, target, f" ({name_some(problems, 3)})"))


def _keep(aside: Path, target: Path, why: str = "") -> str:
    """Give what stays of an older output a name that no run looks for; return the note on it."""
    return (
        f"{keep_aside(aside, target)} holds what stays of an older output{why}. Move away what is "
        "yours, then remove it."
    )


def _remove_run_files(directory: Path) -> None:
    """Remove the run's own files; one that stays does no harm to a finished output."""
    for path in directory.iterdir():
        if is_run_file(path):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _settle_replaced(target: Path, *, was_cut_short: bool) -> list[str]:
    """Finish what a run killed while replacing an older output left; needs the lock.

    Killed between the two renames, the older output has no name of its own: it gets its name back.
    Killed after them, it is removed. Where no output stands for another reason, the user has
    deleted it: then an older one is not to come back, and is kept under another name.

    Args:
        target: the real path of the output.
        was_cut_short: whether a partial directory was left, as by a run killed between the renames.

    Returns:
        a note for each older output that is there yet.

    Raises:
        OutputError: the file system does not let one have its name back; says how to give it.
    """
    notes = list[str]()
    clear_trials(target)
    for aside in find_replaced(target):
        if was_cut_short and not os.path.lexists(target) and is_whole(aside):
            give_name_back(aside, target)
            sync_directory(target.parent)
            notes.append(
                f"{target} has its name back: a run that was to replace it was killed before its "
                "end."
            )
    if target.exists():
        remove_leftovers(target, notes.append)
        return notes
    return notes + [_keep(aside, target) for aside in find_replaced(target)]


def _try_again(
    notes: Sequence[str], say: Say, output_dir: Path, *, overwrite: bool, source: Checkpoint | None
) -> None:
    """Check and try an output once what earlier runs left is settled, and say the notes on that.

    An older output may stand there again, or something else have come to. A refusal begins with the
    notes, which nobody would see otherwise.
    """
    try:
        check_output(output_dir, overwrite=overwrite, source=source)
    except OutputError as err:
        raise OutputError(" ".join((*notes, str(err)))) from err
    for note in notes:
        say(note)
    try_renames(output_dir, real_path(output_dir))


def _put_in_place(partial: Path, target: Path) -> None:
    """Rename ``partial`` to ``target``; an older output goes only after the new one stands.

    The run's own files go last: until then a killed run can tell what it was about.
    """
    aside = aside_path(target)
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
