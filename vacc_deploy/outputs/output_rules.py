"""Where an output may be written, and what --overwrite may replace."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from vacc_deploy.checkpoint.manifest import MANIFEST_NAME
from vacc_deploy.errors import OutputError, list_problems
from vacc_deploy.outputs.file_system import check_name
from vacc_deploy.outputs.partial import partial_path
from vacc_deploy.outputs.proof import prove
from vacc_deploy.outputs.text_file import check_parent, refuse_link, unwritable
from vacc_deploy.outputs.trial import check_place
from vacc_deploy.permissions import real_path
from vacc_deploy.progress import SILENT, Progress

if TYPE_CHECKING:
    from vacc_deploy.checkpoint.reader import Checkpoint

# Of the names that an output has while it is written or replaced: .NAME.replaced-<process>.
_ADDED_BYTES = 24


def check_output(
    output_dir: Path,
    *,
    overwrite: bool,
    source: Checkpoint | None,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> tuple[str, ...]:
    """Refuse an output that exists, contains an input, or cannot be created.

    Args:
        output_dir: the directory to write.
        overwrite: accept an output of an earlier run, if all in it is proven to be unchanged.
        source: what the command reads, which must stay as it is, also where its files are links;
            None for a command that reads no checkpoint.
        dry_run: accept an output that exists, since nothing will be written.
        progress: learns of the files of an older output that are read.

    Returns a note for the plan of a dry run, where the run itself would be refused.

    Raises:
        OutputError: says which rule is broken and what to do.
    """
    check_name(output_dir.absolute(), _ADDED_BYTES)
    target, partial = real_path(output_dir), partial_path(output_dir)
    for kept in source.input_paths() if source else ():
        if real_path(kept) == target or target in real_path(kept).parents:
            raise OutputError(
                f"The output {output_dir} is the input {kept} or contains it. Choose another "
                "--output."
            )
        if real_path(kept) in target.parents:
            raise OutputError(
                f"The output {output_dir} lies inside the input {kept}, which is never changed. "
                "Choose another --output."
            )
    if target == Path.cwd() or target in Path.cwd().parents:
        raise OutputError(
            f"The output {output_dir} is the working directory or contains it. Choose another "
            "--output."
        )
    parent = target.parent
    check_parent(parent)
    refuse_link(output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise OutputError(f"{output_dir} exists and is not a directory. Choose another --output.")
    check_place(output_dir, target, partial)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise unwritable(output_dir)
    problem = _find_obstacle(output_dir, progress, overwrite=overwrite)
    if problem and not dry_run:
        raise OutputError(problem)
    return (f"without --dry-run this is refused: {problem}",) if problem else ()


def _find_obstacle(output_dir: Path, progress: Progress, *, overwrite: bool) -> str:
    """Return why what stands at ``output_dir`` may not be replaced, or an empty text."""
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return ""
    if not overwrite:
        return (
            f"{output_dir} exists and is not empty. Give --overwrite to replace it, or choose "
            "another --output."
        )
    if not os.path.lexists(output_dir / MANIFEST_NAME):
        return (
            f"{output_dir} is not empty and was not written by vacc-deploy (it has no "
            f"{MANIFEST_NAME}), so --overwrite will not delete it. Remove it yourself, or choose "
            "another --output."
        )
    proof = prove(output_dir, progress)
    if proof.problems:
        return (
            f"{output_dir} holds what is not proven to be ours and unchanged, so --overwrite will "
            f"not delete it:\n{list_problems(proof.problems)}\nMove these files away, or choose "
            "another --output."
        )
    for directory in (output_dir, *proof.directories):
        if not os.access(directory, os.W_OK | os.X_OK):  # its files could not be removed
            return str(unwritable(directory / MANIFEST_NAME))
    return ""
