"""Compare the next-token distributions of two models from their last hidden states.

The head is read in slices of the vocabulary, so that a table of 150,000 rows is never in memory as
a whole. Logits are float32 products; sums over the vocabulary are float64 with a running maximum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.models.config import EMBEDDING, FINAL_NORM, LM_HEAD
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.reference.decoder import batches, rms_norm
from vacc_deploy.reference.ranges import HEAD, INPUT, LOGITS
from vacc_deploy.reference.watch import RangeTally

# float32 bytes of the head's table to hold at a time, and predictions whose logits are held.
SLICE_BYTES, TOKENS_AT_ONCE = 64 << 20, 256


@dataclass(frozen=True)
class NextTokenScores:
    """What two models predict for the same text.

    Attributes:
        num_tokens: predictions that were compared.
        mean_kl: mean over the tokens of KL(float ‖ deployed), in nats.
        kl_standard_error: standard error of that mean, tokens taken as independent.
        max_kl: largest KL of one token.
        top1: share of tokens where both predict the same next token, 0 to 1; NaN predicts none.
        token_kl: KL of every prediction, float64 [num_tokens], for paired comparisons.
        token_top: the token that each model expects, int64 [num_tokens, 2], float and deployed; −1
            for NaN. ``to_dict`` leaves out both figures of single tokens.
    """

    num_tokens: int
    perplexity_float: float
    perplexity_deployed: float
    mean_kl: float
    kl_standard_error: float
    max_kl: float
    top1: float
    token_kl: torch.Tensor | None = field(default=None, repr=False, compare=False)
    token_top: torch.Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def perplexity_change(self) -> float:
        """Relative change of the perplexity, 0.01 for one per cent more."""
        return self.perplexity_deployed / self.perplexity_float - 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; a figure that is not a number is None."""
        values = {name: getattr(self, name) for name in figure_names()}
        values["perplexity_change"] = self.perplexity_change
        return {key: value if math.isfinite(value) else None for key, value in values.items()}


def figure_names() -> list[str]:
    """Return the names of the figures that ``to_dict`` has of a comparison."""
    return [item.name for item in fields(NextTokenScores) if not item.name.startswith("token_")]


def head_name(checkpoint: Checkpoint) -> str:
    """Return the name of the table that a model's head is."""
    return EMBEDDING if checkpoint.config.tie_word_embeddings else LM_HEAD


def final_norm(checkpoint: Checkpoint, hidden_states: torch.Tensor) -> torch.Tensor:
    """Return what the head is applied to, of the same shape as ``hidden_states`` [..., hidden]."""
    weight = checkpoint.read(FINAL_NORM).float()
    return rms_norm(hidden_states, weight, checkpoint.config.rms_norm_eps)


class _Side:
    """A model: what its head is applied to, and sums over the logits seen so far.

    Attributes:
        states: final hidden states behind the last norm, float32 [predictions, hidden].
        maximum, argmax: the largest logit of each prediction, float64, and its index.
        total: Σ exp(z − maximum), float64 [predictions].
        picked: logit of the token that really follows, float64 [predictions].
    """

    def __init__(self, checkpoint: Checkpoint, hidden_states: torch.Tensor, targets: torch.Tensor):
        """Begin.

        Args:
            checkpoint: the model.
            hidden_states: after its last layer, float32 [predictions, hidden].
            targets: int64 [predictions].
        """
        count = len(targets)
        self.states = final_norm(checkpoint, hidden_states)
        # −∞: the first slice shrinks the empty sum by exp(−∞) = 0.
        self.maximum = torch.full((count,), -math.inf, dtype=torch.float64)
        self.argmax = torch.zeros(count, dtype=torch.int64)
        self.total = torch.zeros(count, dtype=torch.float64)
        self.picked = torch.zeros(count, dtype=torch.float64)
        self._checkpoint, self._targets = checkpoint, targets
        self._head = head_name(checkpoint)

    def read_head(self, first: int, stop: int) -> torch.Tensor:
        """Return rows of the head's table, float32 [slice, hidden]."""
        return self._checkpoint.read_slice(self._head, first, stop).float()

    def add(self, part: slice, table: torch.Tensor, first: int) -> tuple[torch.Tensor, ...]:
        """Add the logits of a slice of the vocabulary, which begins at ``first``.

        Returns:
            the logits z and exp(z − maximum), float64 [tokens, slice], and the factor by which
            older sums shrink.
        """
        logits = (self.states[part] @ table.T).double()  # [tokens, hidden] -> [tokens, slice]
        # Index of each target in this slice; outside of it below 0 or past the end.
        local = self._targets[part] - first
        inside = (local >= 0) & (local < logits.shape[1])
        rows = inside.nonzero().flatten()  # [tokens whose target lies in this slice]
        # `rows` counts from the first prediction of the part.
        self.picked[part.start + rows] = logits[rows, local[rows]]
        largest, index = logits.max(dim=1)  # [tokens, slice] -> [tokens]
        # Strictly larger below: of equal logits in two slices the earlier one stays.
        old = self.maximum[part]
        self.argmax[part] = torch.where(largest > old, index + first, self.argmax[part])
        new = torch.maximum(old, largest)
        # Older terms were taken relative to a smaller maximum: bring them to the new one first.
        shrink = torch.exp(old - new)
        # [tokens, slice], none above 1, so that no sum overflows.
        weights = torch.exp(logits - new[:, None])
        self.total[part] = self.total[part] * shrink + weights.sum(1)
        self.maximum[part] = new
        return logits, weights, shrink

    def log_sum(self) -> torch.Tensor:
        """Return log Σ exp(z), float64 [predictions]."""
        return self.maximum + self.total.log()

    def top(self) -> torch.Tensor:
        """Return the most likely token, int64 [predictions]; −1 where NaN predicts none."""
        return torch.where(torch.isfinite(self.log_sum()), self.argmax, -1)

    def perplexity(self) -> float:
        """Return exp of the mean −log p of the tokens that really follow."""
        try:
            # Overflows above 709 nats a token, which only a damaged model reaches.
            return math.exp((self.log_sum() - self.picked).mean().item())
        except OverflowError:
            return math.inf


def compare_next_tokens(
    reference: Checkpoint,
    hidden_float: torch.Tensor,
    deployed: Checkpoint,
    hidden_deployed: torch.Tensor,
    tokens: torch.Tensor,
    *,
    progress: Progress = SILENT,
    tally: RangeTally | None = None,
    slice_bytes: int = SLICE_BYTES,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> NextTokenScores:
    """Return the scores of all predictions within the windows.

    Args:
        reference: the float checkpoint.
        hidden_float: its hidden states after the last layer, float32 [rows, seq, hidden].
        deployed: the deployed checkpoint.
        hidden_deployed: its hidden states, of the same shape.
        tokens: the text, int64 [rows, seq].
        progress: learns of every slice of the vocabulary.
        tally: counts the input and the output of the deployed head.
        slice_bytes: float32 bytes of the head's table to hold at a time, for each side.
        tokens_at_once: predictions whose logits are held at a time.
    """
    targets = tokens[:, 1:].flatten()  # [rows, seq] -> [predictions]
    # The last position of a window predicts a token that is not in it:
    # [rows, seq, hidden] -> [rows, seq − 1, hidden] -> [predictions, hidden]
    float_side = _Side(reference, hidden_float[:, :-1].flatten(0, 1), targets)
    deployed_side = _Side(deployed, hidden_deployed[:, :-1].flatten(0, 1), targets)
    count, vocab_size = len(targets), reference.config.vocab_size
    # Σ exp(z_float − maximum) · (z_float − z_deployed) over the slices so far.
    weighted_gap = torch.zeros(count, dtype=torch.float64)
    width = _slice_width(reference, slice_bytes)
    if tally:
        tally.see(None, HEAD, INPUT, deployed_side.states)
    progress.start("Scoring", vocab_size, "vocabulary rows")
    for first in range(0, vocab_size, width):
        table_float = float_side.read_head(first, first + width)
        table_deployed = deployed_side.read_head(first, first + width)
        for part in batches(count, tokens_at_once):
            z_float, weights, shrink = float_side.add(part, table_float, first)
            z_deployed, _, _ = deployed_side.add(part, table_deployed, first)
            if tally:
                tally.see(None, HEAD, LOGITS, z_deployed)
            gap = (weights * (z_float - z_deployed)).sum(1)  # [tokens, slice] -> [tokens]
            weighted_gap[part] = weighted_gap[part] * shrink + gap
        progress.advance(len(table_float))
    progress.finish()
    # With p the float model's distribution,
    # KL = Σ p·(z_float − z_deployed) − log Σ exp z_float + log Σ exp z_deployed.
    # Equal models give exactly 0: each difference is 0, and the two sums are the same number.
    # float64 [predictions], in nats.
    divergence = weighted_gap / float_side.total - float_side.log_sum() + deployed_side.log_sum()
    return _sum_up(float_side, deployed_side, divergence)


def _sum_up(float_side: _Side, deployed_side: _Side, divergence: torch.Tensor) -> NextTokenScores:
    """Return the scores of two sides that have seen the whole vocabulary.

    Args:
        float_side: the float model.
        deployed_side: the deployed model.
        divergence: KL of each prediction, float64 [predictions].
    """
    count = len(divergence)
    token_top = torch.stack([float_side.top(), deployed_side.top()], dim=1)  # [predictions, 2]
    same_top = (token_top[:, 0] == token_top[:, 1]) & (token_top.amin(1) >= 0)
    return NextTokenScores(
        num_tokens=count,
        perplexity_float=float_side.perplexity(),
        perplexity_deployed=deployed_side.perplexity(),
        mean_kl=divergence.mean().item(),
        # std() of a single prediction is NaN.
        kl_standard_error=divergence.std().item() / math.sqrt(count) if count > 1 else 0.0,
        max_kl=divergence.max().item(),
        top1=same_top.double().mean().item(),
        token_kl=divergence,
        token_top=token_top,
    )


def score_targets(
    checkpoint: Checkpoint, hidden_states: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how probable given tokens are to one model.

    Args:
        checkpoint: the model.
        hidden_states: after its last layer, float32 [predictions, hidden].
        targets: the tokens that follow, int64 [predictions].

    Returns:
        log p of each target, float64 [predictions], and whether no token has a larger one, bool
        [predictions].
    """
    side, width = _Side(checkpoint, hidden_states, targets), _slice_width(checkpoint, SLICE_BYTES)
    for first in range(0, checkpoint.config.vocab_size, width):
        table = side.read_head(first, first + width)
        for part in batches(len(targets), TOKENS_AT_ONCE):
            side.add(part, table, first)
    return side.picked - side.log_sum(), side.argmax == targets


def _slice_width(checkpoint: Checkpoint, slice_bytes: int) -> int:
    """Return how many rows of the head fill ``slice_bytes`` of float32."""
    return max(1, slice_bytes // (4 * checkpoint.config.hidden_size))
