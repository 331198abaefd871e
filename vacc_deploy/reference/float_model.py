"""Find the float model that a directory was made from."""

from __future__ import annotations

import os
from pathlib import Path

from vacc_deploy.checkpoint.manifest import MANIFEST_NAME, read_manifest
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError, UnsupportedModelError, UsageError, add_sentence
from vacc_deploy.permissions import explain_closed, real_path


def open_reference(reference_dir: Path | None, deployed_dir: Path) -> Checkpoint:
    """Open the float model: the one that is given, else the one that the manifest names.

    Raises:
        CheckpointError: it is not there, or damaged.
        UsageError: none is given, and ``deployed_dir`` names none.
    """
    if reference_dir is None:
        return _open_recorded_reference(deployed_dir)
    return Checkpoint.open(reference_dir)


def _open_recorded_reference(deployed_dir: Path) -> Checkpoint:
    """Open the directory that the manifest of ``deployed_dir`` names as its source."""
    source = (read_manifest(deployed_dir) or {}).get("source")
    path = source.get("path") if isinstance(source, dict) else None
    if not isinstance(path, str):
        Checkpoint.open(deployed_dir)  # says so if this is no checkpoint at all
        raise UsageError(
            f"{deployed_dir} does not say which float model it was made from (no "
            f"{MANIFEST_NAME}). Give --reference DIR."
        )
    # The manifest holds the way from the output, links resolved, to its source.
    directory = Path(os.path.normpath(real_path(deployed_dir) / path))
    if not explain_closed(directory) and not directory.is_dir():
        raise CheckpointError(
            f"{deployed_dir} was made from {directory}, which is not there. Give --reference DIR."
        )
    try:
        return Checkpoint.open(directory)
    except (CheckpointError, UnsupportedModelError) as err:
        raise CheckpointError(
            add_sentence(
                f"{deployed_dir} was made from {directory}, which cannot be read: {err}",
                "Or give another copy of the float model with --reference DIR.",
            )
        ) from err
