"""Find the largest activations of a model while ``walk_layer`` runs it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from vacc_deploy.models.config import ModelConfig
from vacc_deploy.reference.activations import RoundedLayer
from vacc_deploy.reference.decoder import (
    OUTPUT,
    QKV,
    STAGE_LINEARS,
    DecoderLayer,
    Linear,
    Positions,
    ReadTensor,
)
from vacc_deploy.reference.ranges import INPUT, RESIDUAL, SCORES, ActivationRange

_STAGE_OF = {name: stage for stage, names in STAGE_LINEARS.items() for name in names}
# Attention scores that are held at a time: 16 MiB of float32.
_NUM_SCORES = 1 << 22


@dataclass
class _Size:
    """The largest absolute value, and the sum of squares, of the tensors seen so far."""

    max_abs: torch.Tensor
    squares: float = 0.0
    count: int = 0


@dataclass
class RangeTally:
    """The sizes of all tensors of a model, by layer, stage and name."""

    _sizes: dict[tuple[int | None, str, str], _Size] = field(default_factory=dict)

    def see(self, layer: int | None, stage: str, tensor: str, values: torch.Tensor) -> None:
        """Count a tensor, float of any shape, or a part of one."""
        low, high = torch.aminmax(values)  # NaN where a value is
        largest = torch.maximum(-low, high)
        size = self._sizes.setdefault((layer, stage, tensor), _Size(largest))
        size.max_abs = torch.maximum(size.max_abs, largest)
        size.squares += torch.linalg.vector_norm(values).item() ** 2
        size.count += values.numel()

    def ranges(self) -> list[ActivationRange]:
        """Return what was seen, in the order in which it was seen first."""
        return [
            ActivationRange(*key, size.max_abs.item(), math.sqrt(size.squares / size.count))
            for key, size in self._sizes.items()
        ]


class WatchedLayer(DecoderLayer):
    """A decoder layer that shows a tally what its linears take and give.

    The attention scores and the residual stream behind the attention are shown too; the layer's own
    output is the caller's to show.
    """

    def __init__(
        self,
        config: ModelConfig,
        index: int,
        positions: Positions,
        read: ReadTensor,
        *,
        tally: RangeTally,
    ) -> None:
        """Bind a layer to its weights and to the tally; see ``DecoderLayer``."""
        super().__init__(config, index, positions, read)
        self._tally = tally
        self._query: torch.Tensor | None = None  # of the batch that is in the attention

    def linear(self, name: str) -> Linear:
        """Return one of ``LAYER_LINEARS``, whose inputs and outputs are shown."""
        plain = super().linear(name)
        return _WatchedLinear(plain.weight, plain.bias, plain, lambda *seen: self._see(name, *seen))

    def mlp_input(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return what gate and up are applied to: [rows, seq, hidden]."""
        self._tally.see(self.index, OUTPUT, RESIDUAL, hidden_states)
        return super().mlp_input(hidden_states)

    def _see(self, name: str, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        stage = _STAGE_OF[name]
        if name == STAGE_LINEARS[stage][0]:  # the others of the stage have the same
            self._tally.see(self.index, stage, INPUT, inputs)
        self._tally.see(self.index, stage, name, outputs)
        if name == "q_proj":
            self._query = self._turn(outputs, self._head_norms[0])
        elif name == "k_proj" and self._query is not None:
            self._see_scores(self._query, self._turn(outputs, self._head_norms[1]))
            self._query = None

    def _turn(self, states: torch.Tensor, norm: torch.Tensor | None) -> torch.Tensor:
        """Return queries or keys as attention sees them, [rows, heads, seq, head_dim]."""
        rows, seq, _ = states.shape
        heads = self._norm_heads(states.view(rows, seq, -1, self.config.head_dim), norm)
        return self.positions.rotate(heads.transpose(1, 2))

    def _see_scores(self, query: torch.Tensor, key: torch.Tensor) -> None:
        """Show query · key of all pairs, also of those that the mask hides.

        The vendor's modeling file computes them all, and divides by √head_dim afterwards.

        Args:
            query: [rows, heads, seq, head_dim].
            key: [rows, kv heads, seq, head_dim].
        """
        rows, num_kv, seq, head_dim = key.shape
        # Grouped queries share a key: [rows, kv heads, groups · seq, head_dim]
        query = query.reshape(rows, num_kv, -1, head_dim)
        step = max(1, _NUM_SCORES // seq)
        for row in range(rows):
            for head in range(num_kv):
                for part in query[row, head].split(step):  # [queries, head_dim]
                    self._tally.see(self.index, QKV, SCORES, part @ key[row, head].T)


class WatchedRoundedLayer(WatchedLayer, RoundedLayer):
    """The same of a layer that rounds the inputs of its linears; they are shown before that."""


@dataclass
class _WatchedLinear(Linear):
    plain: Linear
    show: Callable[[torch.Tensor, torch.Tensor], None]

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what the linear returns: [..., out]."""
        outputs = self.plain(inputs)
        self.show(inputs, outputs)
        return outputs
