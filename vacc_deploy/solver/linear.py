"""The two candidates for the integers of one linear, rounding and GPTQ, and the choice of one.

Pure functions on tensors, in the order in which a caller takes them: ``round_weight``,
``correct_weight``, ``choose_scales``, ``solve_weight``, ``Judge.rate`` and ``choose``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from vacc_deploy.formats.int8 import (
    INT8_MAX,
    choose_scale,
    dequantize,
    pin_largest,
    round_to_nearest,
)
from vacc_deploy.solver import GPTQ, RTN
from vacc_deploy.solver.correction import choose_strength, correct
from vacc_deploy.solver.gptq import Factor, solve
from vacc_deploy.solver.records import LinearRecord
from vacc_deploy.solver.scale_search import search_scale
from vacc_deploy.solver.stage_sums import HeldOut


@dataclass(frozen=True)
class Candidate:
    """Integers that a linear may get.

    Attributes:
        method: ``gptq`` or ``rtn``.
        codes: int8 [out, in].
        scale: float16 [out].
        num_saturated: codes cut at ±127.
        num_pinned: rows whose largest code the solver had lowered and that got ±127 back.
        correction: how strongly the target makes up for the layers before, 0 to 1.
        scale_shrink: by how much the scales are below absmax / 127, the mean over the rows.
        error: relative output error on held-out tokens; None where it was not measured.
    """

    method: str
    codes: torch.Tensor
    scale: torch.Tensor
    num_saturated: int
    num_pinned: int = 0
    correction: float = 0.0
    scale_shrink: float = 0.0
    error: float | None = None


class Judge:
    """Measures what codes do to the outputs of one linear on held-out tokens.

    The outputs wanted are those of the float weight on the inputs of the float stream, where there
    is one. Differences are multiplied, not outputs: they are small, and so is their rounding.

    Attributes:
        inputs: [tokens, in], behind quantized layers.
        wanted: [tokens, out], what the layers before have taken from this linear's outputs; None
            without a float stream.
    """

    def __init__(self, weight: torch.Tensor, held_out: HeldOut) -> None:
        """Multiply the held-out inputs by ``weight``, float32 [out, in]."""
        self.inputs, self._weight = held_out.inputs, weight
        float_inputs = held_out.inputs if held_out.float_inputs is None else held_out.float_inputs
        compared = weight.to(float_inputs.dtype).T  # [in, out]
        # ‖x·Wᵀ‖²
        self._energy = _square_length(float_inputs @ compared)
        # (x − x̂)·Wᵀ
        self.wanted = (
            None if held_out.float_inputs is None else (float_inputs - self.inputs) @ compared
        )

    def rate(self, candidate: Candidate) -> Candidate:
        """Return the candidate with its error ‖x̂·Ŵᵀ − x·Wᵀ‖ / ‖x·Wᵀ‖; 0 for zero outputs."""
        difference = dequantize(candidate.codes, candidate.scale).sub_(self._weight)
        lost = (self.inputs @ difference.to(self.inputs.dtype).T).float()  # [tokens, out]
        # x̂·(Ŵ − W)ᵀ − (x − x̂)·Wᵀ = x̂·Ŵᵀ − x·Wᵀ
        if self.wanted is not None:
            lost -= self.wanted
        length = math.sqrt(_square_length(lost))
        return replace(candidate, error=length / math.sqrt(self._energy) if self._energy else 0.0)


def round_weight(weight: torch.Tensor) -> Candidate:
    """Return plain rounding of ``weight``, float32 [out, in].

    Raises:
        QuantizationError: the weight is not finite; the error has the row.
    """
    scale = choose_scale(weight)
    # Rounding lowers no largest code, but the float16 of a small scale may.
    codes, _ = pin_largest(weight, round_to_nearest(weight, scale), scale)
    return Candidate(RTN, codes, scale, count_cut(weight, scale))


def correct_weight(
    weight: torch.Tensor, correction: torch.Tensor, judge: Judge
) -> tuple[torch.Tensor, float]:
    """Return the weight that makes up for the layers before, and how strongly it does.

    Args:
        weight: float32 [out, in].
        correction: G of ``regress_shift``, float32 [in, in].
        judge: of this weight, with a float stream.
    """
    assert judge.wanted is not None
    shift = correct(weight, correction)  # [out, in]
    strength = choose_strength(judge.wanted, judge.inputs, shift)
    return weight + strength * shift, strength


def choose_scales(
    target: torch.Tensor, factor: Factor, *, search: bool
) -> tuple[torch.Tensor, float]:
    """Return the scale of each row, float16 [out], and how far they are below absmax / 127.

    Args:
        target: float32 [out, in].
        factor: of the Hessian of the inputs.
        search: choose by the expected error; else absmax / 127.

    Raises:
        QuantizationError: the target is not finite; the error has the row.
    """
    absmax = choose_scale(target)
    scale = search_scale(target, absmax, factor.column_cost) if search else absmax
    # The mean of the rows' quotients; search_scale only ever shrinks.
    share = (scale.float() / absmax.float()).sum().item() / len(scale)
    return scale, round(1 - share, 5)


def solve_weight(target: torch.Tensor, scale: torch.Tensor, factor: Factor) -> Candidate:
    """Return what GPTQ makes of ``target``, float32 [out, in], with ``scale``, float16 [out].

    Raises:
        QuantizationError: an output met NaN on the way; the error has the row.
    """
    solution = solve(target, scale, factor)
    codes, num_pinned = pin_largest(target, solution.codes, scale)
    return Candidate(GPTQ, codes, scale, solution.num_saturated, num_pinned)


def choose(
    name: str, rounded: Candidate, solved: Candidate | None = None, factor: Factor | None = None
) -> tuple[Candidate, LinearRecord]:
    """Return the candidate with the smaller error, rounding where both are equal, and its record.

    Args:
        name: the linear's full name.
        rounded: by ``round_weight``; not measured where nothing was compared.
        solved: by GPTQ; None where it could not be.
        factor: that ``solved`` comes from.
    """
    chosen = rounded
    if solved is not None:
        # min() returns the first of equals.
        chosen = min(rounded, solved, key=_error)
    return chosen, LinearRecord(
        name,
        chosen.method,
        error_gptq=None if solved is None else solved.error,
        error_rtn=rounded.error,
        dampening_frac=None if factor is None else factor.dampening_frac,
        num_saturated=chosen.num_saturated,
        correction=round(chosen.correction, 4),
        num_pinned=chosen.num_pinned,
        scale_shrink=chosen.scale_shrink,
    )


def _error(candidate: Candidate) -> float:
    assert candidate.error is not None, "choose() before rate()"
    return candidate.error


def count_cut(weight: torch.Tensor, scale: torch.Tensor) -> int:
    """Return how many weights [out, in] rounding has to cut at ±127 with ``scale`` [out].

    None in a row whose scale is a normal float16; see ``choose_scale``.
    """
    quotient = weight.float() / scale.float()[:, None]
    return int((quotient.round_().abs_() > INT8_MAX).sum())


def _square_length(values: torch.Tensor) -> float:
    return torch.linalg.vector_norm(values.float()).item() ** 2
