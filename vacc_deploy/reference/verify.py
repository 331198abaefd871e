"""Prove on a CPU that a deployed directory computes what the float model computed.

Owns the command's way: find the float model, read the text, compare, judge by limits. The numbers
are those of ``compare`` and ``next_tokens``, the text's windows those of ``windows``.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vacc_deploy.assets import default_text_file
from vacc_deploy.checkpoint.manifest import model_name, read_manifest
from vacc_deploy.checkpoint.output import MANIFEST_NAME
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError, UnsupportedModelError, UsageError
from vacc_deploy.models.vacc_config import check_vacc_config
from vacc_deploy.permissions import explain_closed
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.reference.compare import LayerError, check_pair, compare_on_tokens
from vacc_deploy.reference.next_tokens import NextTokenScores
from vacc_deploy.reference.windows import read_windows
from vacc_deploy.results import format_pairs, format_table


@dataclass(frozen=True)
class Limits:
    """What the scores must meet; None sets no limit."""

    max_kl: float | None = None
    min_top1: float | None = None

    def failures(self, scores: NextTokenScores) -> tuple[str, ...]:
        """Return a line for each limit that is not met; NaN meets none."""
        lines = []
        if self.max_kl is not None and not scores.mean_kl <= self.max_kl:
            lines.append(f"mean KL is {scores.mean_kl:.6f}, the limit is {self.max_kl}")
        if self.min_top1 is not None and not scores.top1 >= self.min_top1:
            lines.append(f"same top token is {scores.top1:.4f}, the limit is {self.min_top1}")
        if not math.isfinite(scores.mean_kl):
            models = {"float": scores.perplexity_float, "deployed": scores.perplexity_deployed}
            # Both are finite where only tokens that the text does not use are damaged.
            damaged = [name for name, value in models.items() if not math.isfinite(value)]
            for name in damaged or ["float or deployed"]:
                lines.append(f"the {name} model's output holds NaN or infinity")
        return tuple(lines)


@dataclass(frozen=True)
class VerifyResult:
    """The comparison of a deployed directory with its float model.

    Attributes:
        text: name of the text file.
        failures: a line for each limit that is not met.
        notes: what a reader of the figures should know.
    """

    model: str
    deployed_dir: Path
    reference_dir: Path
    text: str
    scores: NextTokenScores
    layers: tuple[LayerError, ...]
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        return {
            "model": self.model,
            "deployed_dir": str(self.deployed_dir),
            "reference_dir": str(self.reference_dir),
            "text": self.text,
            **self.scores.to_dict(),
            "layers": [error.to_dict() for error in self.layers],
            "passed": not self.failures,
            "failures": list(self.failures),
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return the figures, and the layers' errors as a table."""
        scores = self.scores
        both = f"{scores.perplexity_float:.4f} float, {scores.perplexity_deployed:.4f} deployed"
        mean = f"{scores.mean_kl:.6f} ± {scores.kl_standard_error:.6f} mean"
        pairs = [
            ("tokens compared", f"{scores.num_tokens:,} of {self.text}"),
            ("perplexity", f"{both} ({scores.perplexity_change:+.3%})"),
            ("KL(float ‖ deployed)", f"{mean}, {scores.max_kl:.4f} largest"),
            ("same top token", f"{scores.top1:.2%}"),
        ]
        rows = [(e.layer, f"{e.relative_error:.2e}", f"{e.sqnr_db:.1f}") for e in self.layers]
        table = format_table(("layer", "relative error", "SQNR dB"), rows)
        text = f"Verified {self.deployed_dir} against {self.reference_dir}\n{table}\n\n"
        text += format_pairs(pairs) + "".join(f"\nNote: {note}" for note in self.notes)
        return text + "".join(f"\nFailed: {failure}" for failure in self.failures)


def verify(
    deployed_dir: Path,
    *,
    reference_dir: Path | None = None,
    text_file: Path | None = None,
    max_tokens: int = 2048,
    sequence_length: int = 512,
    limits: Limits | None = None,
    progress: Progress = SILENT,
) -> VerifyResult:
    """Compare a deployed directory with its float model on a text.

    Args:
        deployed_dir: a directory that ``quantize`` or ``prepare`` wrote.
        reference_dir: the float checkpoint; default the one its manifest names.
        text_file: UTF-8 text; default the text that the package carries.
        max_tokens: tokens of the text to use.
        sequence_length: tokens of one window; a shorter text makes one window.
        limits: what the result must meet; ``failures`` lists what it does not.
        progress: learns of every layer, then of every slice of the vocabulary.

    Raises:
        CheckpointError: a directory is damaged, the two are not the same architecture, or
            ``config_vacc.json`` describes another model.
        CalibrationError: the text cannot be read or is too short.
        UsageError: no reference is known.
    """
    deployed = Checkpoint.open(deployed_dir)
    check_vacc_config(deployed_dir, deployed.config)
    reference = (
        Checkpoint.open(reference_dir) if reference_dir else _open_recorded_reference(deployed_dir)
    )
    check_pair(reference, deployed)
    path = text_file or default_text_file()
    tokens, notes = read_windows(
        deployed, path, max_tokens=max_tokens, sequence_length=sequence_length
    )
    scores, layers = compare_on_tokens(reference, deployed, tokens, progress)
    vocab_size = reference.config.vocab_size
    if scores.perplexity_float > vocab_size:  # worse than guessing by chance
        notes.append(
            f"the float model's perplexity is above its vocabulary of {vocab_size:,}: {path.name} "
            "means nothing to this model. Give a text of its kind with --text."
        )
    return VerifyResult(
        model=model_name(deployed_dir),
        deployed_dir=deployed_dir,
        reference_dir=reference.directory,
        text=path.name,
        scores=scores,
        layers=tuple(layers),
        failures=(limits or Limits()).failures(scores),
        notes=tuple(notes),
    )


def _open_recorded_reference(deployed_dir: Path) -> Checkpoint:
    """Open the directory that the manifest of ``deployed_dir`` names as its source."""
    source = (read_manifest(deployed_dir) or {}).get("source")
    path = source.get("path") if isinstance(source, dict) else None
    if not isinstance(path, str):
        raise UsageError(
            f"{deployed_dir} does not say which float model it was made from (no "
            f"{MANIFEST_NAME}). Give --reference DIR."
        )
    # The manifest holds the way from the output, links resolved, to its source.
    directory = Path(os.path.normpath(deployed_dir.resolve() / path))
    if not explain_closed(directory) and not directory.is_dir():
        raise CheckpointError(
            f"{deployed_dir} was made from {directory}, which is not there. Give --reference DIR."
        )
    try:
        return Checkpoint.open(directory)
    except (CheckpointError, UnsupportedModelError) as err:
        raise CheckpointError(
            f"{deployed_dir} was made from {directory}, which cannot be read: {err} Or give "
            "another copy of the float model with --reference DIR."
        ) from err
