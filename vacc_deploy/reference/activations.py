"""Round the inputs of the linears to int8 while a layer is walked, as int8 runtimes do.

Source: vLLM, the kernel behind its int8 linears (dynamic_scaled_int8_quant): for each token the
scale absmax / 127, rounding to the nearest, halves to the even code. SGLang divides by 127 too;
how it rounds halves was not looked at. compressed-tensors 0.20 divides by 127.5 and cuts at -128
and 127.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.formats.layouts import LAYOUTS
from vacc_deploy.models.config import ModelConfig, linear_name
from vacc_deploy.reference.decoder import DecoderLayer, Linear, Positions, ReadTensor
from vacc_deploy.results import format_table

AUTO, FLOAT, INT8 = "auto", "float", "int8"
ACTIVATIONS = (AUTO, FLOAT, INT8)
# What a token's largest value is divided by.
STEPS = 127.0
# Linears that a person wants to see.
_NUM_SHOWN = 5


@dataclass(frozen=True)
class RoundingError:
    """What rounding the inputs changes in the outputs of one linear.

    Attributes:
        linear: full name.
        relative_error: ‖(x̂ − x)Wᵀ‖ / ‖xWᵀ‖ of a token's input x, mean over all tokens. The mean is
            of ratios, so that one token with huge inputs does not hide the others.
    """

    linear: str
    relative_error: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; an error that is not a number is None."""
        error = self.relative_error if math.isfinite(self.relative_error) else None
        return {"linear": self.linear, "relative_error": error}


def choose_activations(asked: str, deployed: Checkpoint) -> str:
    """Return ``float`` or ``int8``; ``auto`` is what the runtimes of the layout compute with."""
    if asked != AUTO:
        return asked
    return INT8 if _rounds_inputs(deployed.config) else FLOAT


def plain_input_notes(config: ModelConfig) -> tuple[str, ...]:
    """Return what to know of a model that is run without rounding, where its runtimes round."""
    if not _rounds_inputs(config):
        return ()
    return (
        "other runtimes of this directory round the inputs of the linears to int8, here they stay "
        "floats; verify measures what the rounding changes.",
    )


def _rounds_inputs(config: ModelConfig) -> bool:
    layout = config.quantization_format
    return bool(layout) and LAYOUTS[layout].rounds_inputs


def round_tokens(inputs: torch.Tensor) -> torch.Tensor:
    """Return float32 ``inputs`` [..., in] as int8 codes times a scale for each token.

    A token of zeros stays zero; one that holds NaN or infinity becomes NaN.
    """
    scale = inputs.abs().amax(-1, keepdim=True) / STEPS  # [..., 1]
    scale = torch.where(scale == 0, 1.0, scale)
    # Below -127 and above 127 there is nothing to cut, but where STEPS is another number.
    return (inputs / scale).round_().clamp_(-128, 127).mul_(scale)


class RoundedLayer(DecoderLayer):
    """A decoder layer that rounds the input of each linear, and counts what that changes.

    Attributes:
        tallies: what was counted, by the name of the linear; it outlives the linear's weight.
    """

    def __init__(
        self, config: ModelConfig, index: int, positions: Positions, read: ReadTensor
    ) -> None:
        """Bind a layer to its weights; see ``DecoderLayer``."""
        super().__init__(config, index, positions, read)
        self.tallies: dict[str, _Tally] = {}

    def linear(self, name: str) -> Linear:
        """Return one of ``LAYER_LINEARS``, which rounds what it is applied to."""
        if name not in self._linears:
            plain, tally = super().linear(name), self.tallies.setdefault(name, _Tally())
            self._linears[name] = _RoundedLinear(plain.weight, plain.bias, tally)
        return self._linears[name]

    def errors(self) -> list[RoundingError]:
        """Return the errors of the linears that were applied, in the order of the layer."""
        return [
            RoundingError(linear_name(self.index, name), tally.sum / tally.num_tokens)
            for name, tally in self.tallies.items()
        ]


@dataclass
class _Tally:
    """The sum of all tokens' relative errors."""

    sum: float = 0.0
    num_tokens: int = 0


@dataclass
class _RoundedLinear(Linear):
    tally: _Tally

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return rounded ``inputs`` [..., in] times the weight, plus the bias: [..., out]."""
        rounded = round_tokens(inputs)
        # [..., out]. The bias is in neither: it would hide errors where it is large.
        exact, got = F.linear(inputs, self.weight), F.linear(rounded, self.weight)
        signal = torch.linalg.vector_norm(exact, dim=-1).double()  # [...]
        error = torch.linalg.vector_norm(exact.sub_(got), dim=-1).double()
        self.tally.sum += torch.where(signal == 0, 0.0, error / signal).sum().item()
        self.tally.num_tokens += signal.numel()
        return got if self.bias is None else got.add_(self.bias)


def describe_rounding(errors: Sequence[RoundingError]) -> str:
    """Return the linears at risk, those whose outputs the rounding changes most, as a table."""
    # NaN, which is no smaller than anything, comes first.
    worst = sorted(errors, key=lambda e: (e.relative_error == e.relative_error, -e.relative_error))
    rows = [(error.linear, f"{error.relative_error:.2e}") for error in worst[:_NUM_SHOWN]]
    return format_table(("most changed by rounded inputs", "relative error"), rows)
