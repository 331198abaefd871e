"""The two models of an evaluation: a deployed directory and the float model it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vacc_deploy.checkpoint.attn_factor import describe_factors, read_alike
from vacc_deploy.checkpoint.changes import unchanged
from vacc_deploy.checkpoint.manifest import MANIFEST_NAME, model_name, read_manifest
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError, list_problems
from vacc_deploy.progress import Progress
from vacc_deploy.reference.deployed import advise_restore, open_deployed
from vacc_deploy.reference.float_model import open_reference
from vacc_deploy.reference.source_check import explain_foreign


@dataclass(frozen=True)
class Pair:
    """Two models that are evaluated side by side.

    Attributes:
        notes: by which rules the directories are read, and what could not be checked.
    """

    reference: Checkpoint
    deployed: Checkpoint
    notes: tuple[str, ...]

    def models(self) -> tuple[tuple[str, Checkpoint], tuple[str, Checkpoint]]:
        """Return both with their names."""
        return ("float", self.reference), ("deployed", self.deployed)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that every result of a task begins with."""
        return {
            "model": model_name(self.deployed.directory),
            "deployed_dir": str(self.deployed.directory),
            "reference_dir": str(self.reference.directory),
        }

    def describe(self) -> str:
        """Return the first line of a result."""
        return f"Evaluated {self.deployed.directory} beside {self.reference.directory}"


def explain_nan(checkpoint: Checkpoint, what: str) -> CheckpointError:
    """Return the error of a model that gives no number for ``what``."""
    return CheckpointError(
        f"{checkpoint.directory} gives NaN or infinity for {what}. Find the damaged weights with "
        "vacc-deploy verify."
    )


@contextmanager
def open_pair(deployed_dir: Path, reference_dir: Path | None, progress: Progress) -> Iterator[Pair]:
    """Open both models; see at the end of the block that their files stayed what they were.

    Args:
        deployed_dir: a directory that ``quantize`` or ``prepare`` wrote.
        reference_dir: the float model; default the one that the manifest names.
        progress: learns of every file that is compared with the manifest.

    Raises:
        CheckpointError: a directory is damaged or changed, or the float model is another one than
            the source.
        UsageError: no float model is known.
    """
    reference = open_reference(reference_dir, deployed_dir)
    with unchanged(reference):
        deployed, damages = open_deployed(deployed_dir, reference, progress)
        if deployed is None or damages:
            raise CheckpointError(
                f"{deployed_dir} is not what was written:\n{list_problems(damages)}\n"
                f"{advise_restore(deployed_dir).capitalize()}"
            )
        reference = read_alike(reference, deployed)
        notes = list(dict.fromkeys((*reference.notes, *deployed.notes)))
        if factors := describe_factors(reference, deployed):
            notes.append(factors)
        has_manifest = read_manifest(deployed_dir) is not None
        if foreign := explain_foreign(reference, deployed, has_manifest=has_manifest):
            if has_manifest:
                raise CheckpointError(foreign)
            notes.append(foreign)
        if not has_manifest:
            notes.append(f"{deployed_dir} has no {MANIFEST_NAME}: its files could not be checked.")
        with unchanged(deployed):
            yield Pair(reference, deployed, tuple(notes))
