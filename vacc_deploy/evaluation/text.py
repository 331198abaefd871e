"""Perplexity, KL and equal top tokens by domain: a text file for each, both models side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vacc_deploy.evaluation.pair import Pair, explain_nan, open_pair
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.reference.activations import AUTO, choose_activations
from vacc_deploy.reference.compare import compare_on_tokens
from vacc_deploy.reference.next_tokens import NextTokenScores
from vacc_deploy.reference.threads import threads_for
from vacc_deploy.reference.windows import check_text, read_windows
from vacc_deploy.results import format_seconds, format_table

_HEADERS = (
    *("domain", "tokens", "perplexity float", "deployed", "change"),
    *("KL(float ‖ deployed)", "same top token"),
)


@dataclass(frozen=True)
class TextResult:
    """What two models predict for texts of several domains.

    Attributes:
        files: name of the file of each domain.
        scores: of each domain.
        activations: what the deployed model's linears were given, ``float`` or ``int8``.
        seconds: wall time of both models.
    """

    pair: Pair
    files: Mapping[str, str]
    scores: Mapping[str, NextTokenScores]
    activations: str
    notes: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        domains = {
            name: {"file": self.files[name], **scores.to_dict()}
            for name, scores in self.scores.items()
        }
        return {
            "task": "text",
            **self.pair.to_dict(),
            "activations": self.activations,
            "domains": domains,
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return one row a domain."""
        rows = [
            (
                name,
                f"{scores.num_tokens:,}",
                f"{scores.perplexity_float:.4f}",
                f"{scores.perplexity_deployed:.4f}",
                f"{scores.perplexity_change:+.3%}",
                f"{scores.mean_kl:.6f} ± {scores.kl_standard_error:.6f}",
                f"{scores.top1:.2%}",
            )
            for name, scores in self.scores.items()
        ]
        lines = [self.pair.describe(), format_table(_HEADERS, rows), ""]
        lines.append(f"activations {self.activations}, {format_seconds(self.seconds)}")
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])


def evaluate_text(
    deployed_dir: Path,
    domains: Mapping[str, Path],
    *,
    reference_dir: Path | None = None,
    max_tokens: int = 2048,
    sequence_length: int = 512,
    activations: str = AUTO,
    progress: Progress = SILENT,
) -> TextResult:
    """Compare both models on the text of each domain, as ``verify`` does on one.

    Args:
        deployed_dir: a directory that ``quantize`` or ``prepare`` wrote.
        domains: UTF-8 text of each domain.
        reference_dir: the float model; default the one that the manifest names.
        max_tokens: tokens of each text to use.
        sequence_length: tokens of one window.
        activations: as ``verify`` takes it.
        progress: learns of every file that is checked, then of the layers for each domain.

    Raises:
        CalibrationError: a text cannot be read or is too short.
        CheckpointError: a directory is damaged, or a model gives NaN.
        UsageError: no float model is known.
    """
    for path in domains.values():
        check_text(path)
    with open_pair(deployed_dir, reference_dir, progress) as pair:
        chosen = choose_activations(activations, pair.deployed)
        windows, notes = {}, list(pair.notes)
        for name, path in domains.items():
            windows[name], more = read_windows(
                pair.deployed, path, max_tokens=max_tokens, sequence_length=sequence_length
            )
            notes += more
        started = time.monotonic()
        with threads_for(pair.reference.config):
            scores = {
                name: _compare(pair, name, tokens, chosen, progress)
                for name, tokens in windows.items()
            }
        return TextResult(
            pair=pair,
            files={name: path.name for name, path in domains.items()},
            scores=scores,
            activations=chosen,
            notes=tuple(dict.fromkeys(notes)),
            seconds=time.monotonic() - started,
        )


def _compare(
    pair: Pair, name: str, tokens: torch.Tensor, activations: str, progress: Progress
) -> NextTokenScores:
    """Return the scores of a domain.

    Raises:
        CheckpointError: a model gives NaN, of which no figure can be made.
    """
    scores = compare_on_tokens(
        pair.reference, pair.deployed, tokens, progress, activations=activations
    ).scores
    if scores.token_top is not None:
        for side, (_, checkpoint) in enumerate(pair.models()):
            if (scores.token_top[:, side] < 0).any():
                raise explain_nan(checkpoint, f"the text {name}")
    return scores
