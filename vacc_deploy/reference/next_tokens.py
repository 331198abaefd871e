"""Compare the next-token distributions of two models from their last hidden states.

The head is read in slices of the vocabulary, so that a table of 150,000 rows is never in memory as
a whole, and sums over the vocabulary are kept in float64 with a running maximum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.models.config import EMBEDDING, FINAL_NORM, LM_HEAD
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.reference.decoder import rms_norm

_SLICE_BYTES = 64 << 20
_TOKENS_AT_ONCE = 256


@dataclass(frozen=True)
class NextTokenScores:
    """What two models predict for the same text.

    Attributes:
        num_tokens: predictions that were compared.
        perplexity_float: of the float model on the text.
        perplexity_deployed: of the deployed weights on the text.
        mean_kl: mean over the tokens of KL(float ‖ deployed), in nats.
        kl_standard_error: the standard error of that mean, tokens taken as independent.
        max_kl: the largest of the tokens' KL.
        top1: share of tokens where both predict the same next token, 0 to 1.
        token_kl: the KL of every prediction, float64 [num_tokens], for paired comparisons; no part
            of ``to_dict``.
    """

    num_tokens: int
    perplexity_float: float
    perplexity_deployed: float
    mean_kl: float
    kl_standard_error: float
    max_kl: float
    top1: float
    token_kl: torch.Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def perplexity_change(self) -> float:
        """Relative change of the perplexity, 0.01 for one per cent more."""
        return self.perplexity_deployed / self.perplexity_float - 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; a figure that is no number is None."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "token_kl"}
        values["perplexity_change"] = self.perplexity_change
        return {key: value if math.isfinite(value) else None for key, value in values.items()}


class _RunningSoftmax:
    """log Σ exp(z), the largest logit and its place, over slices of the vocabulary."""

    def __init__(self, num_tokens: int) -> None:
        self.maximum = torch.full((num_tokens,), -math.inf, dtype=torch.float64)
        self.total = torch.zeros(num_tokens, dtype=torch.float64)
        self.argmax = torch.zeros(num_tokens, dtype=torch.int64)

    def add(self, tokens: slice, logits: torch.Tensor, first: int) -> tuple[torch.Tensor, ...]:
        """Add a slice of logits float64 [tokens, slice].

        Returns:
            exp(z − maximum) of the slice, and the factor by which older sums shrink.
        """
        largest, place = logits.max(dim=1)
        old = self.maximum[tokens]
        self.argmax[tokens] = torch.where(largest > old, place + first, self.argmax[tokens])
        new = torch.maximum(old, largest)
        shrink = torch.exp(old - new)
        weights = torch.exp(logits - new[:, None])
        self.total[tokens] = self.total[tokens] * shrink + weights.sum(1)
        self.maximum[tokens] = new
        return weights, shrink

    def log_sum(self) -> torch.Tensor:
        """Return log Σ exp(z), float64 [tokens]."""
        return self.maximum + self.total.log()


def compare_next_tokens(
    reference: Checkpoint,
    hidden_float: torch.Tensor,
    deployed: Checkpoint,
    hidden_deployed: torch.Tensor,
    tokens: torch.Tensor,
    progress: Progress = SILENT,
) -> NextTokenScores:
    """Return the scores of all predictions within the windows.

    With p the float model's distribution and z the logits,
    KL = Σ p·(z_float − z_deployed) − log Σ exp z_float + log Σ exp z_deployed.

    Args:
        reference: the float checkpoint.
        hidden_float: its hidden states after the last layer, float32 [rows, seq, hidden].
        deployed: the deployed checkpoint.
        hidden_deployed: its hidden states, of the same shape.
        tokens: the text, int64 [rows, seq].
        progress: told of every slice of the vocabulary.
    """
    left, left_head = _head_inputs(reference, hidden_float)
    right, right_head = _head_inputs(deployed, hidden_deployed)
    targets = tokens[:, 1:].flatten()
    count, vocab_size = len(targets), reference.config.vocab_size
    soft_left, soft_right = _RunningSoftmax(count), _RunningSoftmax(count)
    weighted = torch.zeros(count, dtype=torch.float64)
    picked = torch.zeros(2, count, dtype=torch.float64)
    width = max(1, _SLICE_BYTES // (4 * reference.config.hidden_size))
    progress.start("Scoring", vocab_size, "vocabulary rows")
    for first in range(0, vocab_size, width):
        tables = [
            checkpoint.read_slice(head, first, first + width).float()
            for checkpoint, head in ((reference, left_head), (deployed, right_head))
        ]
        for start in range(0, count, _TOKENS_AT_ONCE):
            part = slice(start, min(start + _TOKENS_AT_ONCE, count))
            z_left = (left[part] @ tables[0].T).double()
            z_right = (right[part] @ tables[1].T).double()
            weights, shrink = soft_left.add(part, z_left, first)
            soft_right.add(part, z_right, first)
            weighted[part] = weighted[part] * shrink + (weights * (z_left - z_right)).sum(1)
            _pick(picked[0], part, targets, z_left, first)
            _pick(picked[1], part, targets, z_right, first)
        progress.advance(len(tables[0]))
    progress.finish()
    log_left, log_right = soft_left.log_sum(), soft_right.log_sum()
    divergence = weighted / soft_left.total - log_left + log_right
    return NextTokenScores(
        num_tokens=count,
        perplexity_float=_perplexity(log_left - picked[0]),
        perplexity_deployed=_perplexity(log_right - picked[1]),
        mean_kl=divergence.mean().item(),
        kl_standard_error=divergence.std().item() / math.sqrt(count) if count > 1 else 0.0,
        max_kl=divergence.max().item(),
        top1=(soft_left.argmax == soft_right.argmax).double().mean().item(),
        token_kl=divergence,
    )


def _head_inputs(checkpoint: Checkpoint, hidden_states: torch.Tensor) -> tuple[torch.Tensor, str]:
    """Return what the head is applied to, [rows · (seq − 1), hidden], and the head's name."""
    config = checkpoint.config
    norm = checkpoint.read(FINAL_NORM).float()
    inputs = rms_norm(hidden_states[:, :-1], norm, config.rms_norm_eps).flatten(0, 1)
    return inputs, EMBEDDING if config.tie_word_embeddings else LM_HEAD


def _pick(
    into: torch.Tensor, part: slice, targets: torch.Tensor, logits: torch.Tensor, first: int
) -> None:
    """Note the logits of the targets that lie in this slice of the vocabulary."""
    local = targets[part] - first
    inside = (local >= 0) & (local < logits.shape[1])
    rows = inside.nonzero().flatten()
    into[part.start + rows] = logits[rows, local[rows]]


def _perplexity(losses: torch.Tensor) -> float:
    try:
        return math.exp(losses.mean().item())
    except OverflowError:
        return math.inf
