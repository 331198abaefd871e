"""Open a deployed directory beside its float model, its files compared with its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vacc_deploy.checkpoint.changes import unchanged
from vacc_deploy.checkpoint.manifest import read_manifest
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError, UnsupportedModelError
from vacc_deploy.models.vacc_config import check_vacc_config
from vacc_deploy.outputs.damages import find_damages
from vacc_deploy.progress import Progress
from vacc_deploy.reference.compare import check_pair


def open_deployed(
    directory: Path, reference: Checkpoint, progress: Progress
) -> tuple[Checkpoint | None, Sequence[str]]:
    """Return the deployed model and its damages; refuse before the files are hashed what can be.

    None where damages keep it from being opened.

    Raises:
        CheckpointError: it cannot be read, or is another architecture than the float model.
    """
    is_listed = read_manifest(directory) is not None
    try:
        deployed = Checkpoint.open(directory)
        check_vacc_config(directory, deployed.config)
    except (CheckpointError, UnsupportedModelError):
        # The list of what is damaged says more than the first problem.
        if is_listed and (damages := find_damages(directory, progress)):
            return None, damages
        raise
    check_pair(reference, deployed)
    with unchanged(deployed):
        return deployed, find_damages(directory, progress) if is_listed else []


def advise_restore(directory: Path) -> str:
    """Return what to do about damaged files, a sentence for the notes."""
    return (
        "nothing was compared, because figures of changed files mean nothing. Copy the files named "
        f"here into {directory} again, or move it away and run the command that wrote it again "
        "(--overwrite deletes no file that was changed)."
    )
