"""Where an output may be written, and what --overwrite may replace."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from vacc_deploy.bounds import MANIFEST_BYTES
from vacc_deploy.checkpoint.manifest import MANIFEST_NAME
from vacc_deploy.errors import CheckpointError, OutputError, list_problems
from vacc_deploy.json_files import read_json
from vacc_deploy.outputs.file_system import check_name
from vacc_deploy.outputs.text_file import check_parent, unwritable
from vacc_deploy.permissions import real_path

# The names of what a run writes in its partial directory for itself begin so. These files are
# removed right after the last rename; a kill in between leaves them in the output.
RUN_FILE_PREFIX = ".vacc-deploy-"
# Of the names that an output has while it is written or replaced: .NAME.replaced-<process>.
_ADDED_BYTES = 24


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
    check_name(output_dir.absolute(), _ADDED_BYTES)
    target = real_path(output_dir)
    for source in inputs:
        if real_path(source) == target or target in real_path(source).parents:
            raise OutputError(
                f"The output {output_dir} is the input {source} or contains it. Choose another "
                "--output."
            )
        if real_path(source) in target.parents:
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
    if output_dir.is_symlink():
        raise OutputError(
            f"{output_dir} is a link to {os.readlink(output_dir)}, and an output never replaces a "
            "link. Remove it, or choose another --output."
        )
    if output_dir.exists() and not output_dir.is_dir():
        raise OutputError(f"{output_dir} exists and is not a directory. Choose another --output.")
    if os.path.ismount(target):
        raise OutputError(
            f"{output_dir} is a mount point, so the finished output cannot take its place. Choose "
            f"a directory in it, for example --output {shlex.quote(str(output_dir / 'model'))}."
        )
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
    if foreign := foreign_files(output_dir):
        return (
            f"{output_dir} holds what {MANIFEST_NAME} does not list, so --overwrite will not "
            f"delete it:\n{list_problems(foreign)}\nMove it away, or choose another --output."
        )
    return ""


def foreign_files(directory: Path) -> list[str]:
    """Return the names that no manifest lists and no run leaves.

    A directory within an output has a manifest of its own, which that of the output lists. What
    differs from run to run lies beside the manifest, unlisted: ``<command>_timing.json``.
    """
    try:
        manifest = read_json(directory / MANIFEST_NAME, limit_bytes=MANIFEST_BYTES)
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
            foreign += [f"{path.name}/{name}" for name in foreign_files(path)]
        elif is_directory or not (path.name in listed or path.name.startswith(RUN_FILE_PREFIX)):
            foreign.append(path.name)
    return foreign
