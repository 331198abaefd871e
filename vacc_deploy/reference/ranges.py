"""How large the activations of a model are, against what float16 and bfloat16 can hold.

Imports no torch. ``watch`` finds the figures for ``verify``, ``quantize.layer_walk`` those of a
calibrated run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vacc_deploy.models.config import layer_prefix, linear_name
from vacc_deploy.results import format_table

# The largest float16.
FLOAT16_MAX = 65504.0
# From this share of it on, a tensor is at risk. Between texts the largest value of a tensor differs
# by far less than ten times, see "The largest activations" in docs/performance.md.
RISK_SHARE = 0.1
# A bfloat16 has 8 binary digits, the first of which is always 1.
_BFLOAT16_DIGITS = 8
INPUT, SCORES, RESIDUAL, LOGITS = "input", "scores", "residual", "logits"
HEAD = "head"
_FIRST_LINEAR = {"qkv": "q_proj", "o": "o_proj", "gate_up": "gate_proj", "down": "down_proj"}


@dataclass(frozen=True)
class ActivationRange:
    """The size of one tensor of a model over a text.

    Attributes:
        layer: index of the layer; None for the head.
        stage: ``qkv``, ``o``, ``gate_up`` or ``down``, or ``head``.
        tensor: ``input`` of the linears of the stage, the name of a linear for its output,
            ``scores`` for query · key before the division by √head_dim, ``residual`` for the
            residual stream behind the stage, or ``logits``.
        max_abs: the largest absolute value.
        rms: the root mean square; None where it was not measured.
    """

    layer: int | None
    stage: str
    tensor: str
    max_abs: float
    rms: float | None = None

    @property
    def name(self) -> str:
        """The tensor in words, with the name of its module."""
        if self.layer is None:
            return LOGITS if self.tensor == LOGITS else "input of lm_head"
        if self.tensor == INPUT:
            return f"input of {linear_name(self.layer, _FIRST_LINEAR[self.stage])}"
        block = layer_prefix(self.layer) + ("mlp" if self.stage == "down" else "self_attn")
        if self.tensor == SCORES:
            return f"scores of {block}"
        if self.tensor == RESIDUAL:
            return f"residual behind {block}"
        return f"output of {linear_name(self.layer, self.tensor)}"

    @property
    def percent_of_float16(self) -> float:
        """The largest value in per cent of the largest float16."""
        return 100 * self.max_abs / FLOAT16_MAX

    @property
    def bfloat16_step(self) -> float:
        """The distance of two neighbouring bfloat16 numbers at the largest value."""
        if not self.max_abs or not math.isfinite(self.max_abs):
            return self.max_abs
        _, exponent = math.frexp(self.max_abs)  # max_abs lies in [2^(exponent − 1), 2^exponent)
        return math.ldexp(1.0, exponent - _BFLOAT16_DIGITS)

    @property
    def is_at_risk(self) -> bool:
        """Whether the largest value comes near the end of float16; NaN does."""
        return not self.max_abs < RISK_SHARE * FLOAT16_MAX

    @property
    def overflows(self) -> bool:
        """Whether float16 cannot hold the largest value; it cannot hold NaN."""
        return not self.max_abs <= FLOAT16_MAX

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; a figure that is not a number is None."""
        figures = {
            "max_abs": self.max_abs,
            "rms": self.rms,
            "percent_of_float16": self.percent_of_float16,
            "bfloat16_step": self.bfloat16_step,
        }
        return {
            "name": self.name,
            "layer": self.layer,
            "stage": self.stage,
            "tensor": self.tensor,
            **{k: v if v is not None and math.isfinite(v) else None for k, v in figures.items()},
        }


def names_at_risk(ranges: Iterable[ActivationRange]) -> list[str]:
    """Return the names of the tensors that are at risk in float16, in the order of the model."""
    return [each.name for each in ranges if each.is_at_risk]


def audit_values(ranges: Sequence[ActivationRange]) -> dict[str, Any]:
    """Return the fields ``audit`` and ``at_risk`` of a result or a report, plain values."""
    return {"audit": [each.to_dict() for each in ranges], "at_risk": names_at_risk(ranges)}


def describe_ranges(ranges: Sequence[ActivationRange]) -> str:
    """Return the largest tensor of each kind as a table, and a sentence where none is at risk."""
    rows = [
        (
            each.name,
            f"{each.max_abs:,.1f}",
            "–" if each.rms is None else f"{each.rms:.3g}",
            f"{each.percent_of_float16:.2f}",
            f"{each.bfloat16_step:g}",
        )
        for each, *_ in _by_kind(ranges)
    ]
    headers = ("largest activations", "value", "RMS", "% of float16", "bfloat16 step")
    sentence = (
        f"All {len(ranges)} tensors stay below {RISK_SHARE:.0%} of float16's largest number, "
        f"{FLOAT16_MAX:,.0f}."
    )
    is_safe = not names_at_risk(ranges)
    return format_table(headers, rows) + f"\n{sentence}" * is_safe


def describe_risk(ranges: Sequence[ActivationRange]) -> str:
    """Return a note that names what is at risk in float16; empty where nothing is."""
    risky = _by_kind([each for each in ranges if each.is_at_risk])
    if not risky:
        return ""
    # One of each kind, as a residual keeps its largest value through many layers.
    named = "; ".join(_describe_one(kind) for kind in risky)
    return (
        f"at risk in float16, whose largest number is {FLOAT16_MAX:,.0f}: {named}. Another text "
        'may give larger values. Where they exceed it, the answers become nonsense ("!!!!").'
    )


def describe_overflows(ranges: Sequence[ActivationRange]) -> tuple[str, ...]:
    """Return a line for each kind of tensor that float16 cannot hold; none where it holds all."""
    beyond = _by_kind([each for each in ranges if each.overflows])
    return tuple(f"beyond float16's largest number: {_describe_one(kind)}" for kind in beyond)


def _describe_one(kind: Sequence[ActivationRange]) -> str:
    largest, *others = kind
    text = f"{largest.name} {largest.max_abs:,.0f} ({largest.percent_of_float16:.0f} %)"
    return f"{text}, also {len(others)} more of its kind" if others else text


def _by_kind(ranges: Iterable[ActivationRange]) -> list[list[ActivationRange]]:
    """Return the layers of each kind of tensor, both the largest first."""
    kinds = dict[tuple[str, str], list[ActivationRange]]()
    # NaN, which is no smaller than anything, comes first.
    for each in sorted(ranges, key=lambda each: (each.max_abs == each.max_abs, -each.max_abs)):
        kinds.setdefault((each.stage, each.tensor), []).append(each)
    return list(kinds.values())
