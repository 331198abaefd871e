"""The edges of the bounds on links."""

from __future__ import annotations

import json
from pathlib import Path

from vacc_deploy.bounds import LINK_STEPS
from vacc_deploy.checkpoint.weight_links import WeightLinks
from vacc_deploy.errors import CheckpointError

NAME = "model.safetensors"


def follow_links(tmp_path: Path, over: bool) -> None:
    """Follow a link through as many prepared directories as are allowed, or one more."""
    directory = tmp_path / "0"
    directory.mkdir()
    (directory / NAME).write_bytes(b"")
    for number in range(1, LINK_STEPS + 1 + over):
        source, directory = directory, tmp_path / str(number)
        directory.mkdir()
        (directory / NAME).symlink_to(tmp_path / "0" / NAME)
        manifest = {"format_version": 1, "options": {"link_mode": "symlink"}}
        manifest["source"] = {"path": f"../{source.name}"}
        (directory / "vacc_deploy.json").write_text(json.dumps(manifest))
    if outside := WeightLinks().explain_outside(directory / NAME):
        raise CheckpointError(outside)


EDGES = {"LINK_STEPS": follow_links}
