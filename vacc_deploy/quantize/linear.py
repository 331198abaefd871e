"""Quantize one linear by rounding and by GPTQ, and keep the better on held-out inputs.

Pure functions on tensors: no paths, no logging; names only for records and messages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from vacc_deploy.errors import QuantizationError
from vacc_deploy.phases import PhaseClock
from vacc_deploy.quantize.correction import choose_strength, correct
from vacc_deploy.quantize.gptq import Factor, Solution, solve
from vacc_deploy.quantize.int8 import (
    INT8_MAX,
    choose_scale,
    dequantize,
    pin_largest,
    round_to_nearest,
)
from vacc_deploy.quantize.report import GPTQ, RTN, LinearRecord
from vacc_deploy.quantize.scale_search import search_scale
from vacc_deploy.quantize.statistics import HeldOut

Quantized = tuple[torch.Tensor, torch.Tensor, LinearRecord]


def round_linear(name: str, weight: torch.Tensor) -> Quantized:
    """Return codes int8 [out, in], scale float16 [out] and the record of plain rounding.

    Args:
        name: the linear's full name.
        weight: float32 [out, in].

    Raises:
        QuantizationError: the weight is not finite; names the tensor and the row.
    """
    scale = _absmax_scale(name, weight)
    codes, _ = pin_largest(weight, round_to_nearest(weight, scale), scale)
    return codes, scale, LinearRecord(name, RTN, num_saturated=count_cut(weight, scale))


@dataclass(frozen=True)
class StageSolver:
    """Quantizes the linears of one stage: they share inputs.

    Attributes:
        factor: of the Hessian of the inputs; None leaves only rounding.
        correction: G of ``regress_shift``, float32 [in, in], or None.
        held_out: inputs that the Hessian has not seen.
        scale_search: see ``search_scale``.
        clock: counts the seconds of each part.
    """

    factor: Factor | None
    correction: torch.Tensor | None
    held_out: HeldOut
    scale_search: bool
    clock: PhaseClock

    def quantize(self, name: str, weight: torch.Tensor) -> Quantized:
        """Return codes int8 [out, in], scale float16 [out] and the record of one linear.

        Args:
            name: the linear's full name.
            weight: float32 [out, in].

        Raises:
            QuantizationError: the weight is not finite; names the tensor and the row.
        """
        clock = self.clock
        with clock.phase("compare"):
            codes, scale, record = round_linear(name, weight)
            judge = _Judge(weight, self.held_out)
            error_rtn = judge.error(codes, scale)
            record = replace(record, error_rtn=error_rtn)
        if self.factor is None:
            return codes, scale, record
        target, strength = weight, 0.0
        if self.correction is not None:
            with clock.phase("correction"):
                assert judge.wanted is not None
                shift = correct(weight, self.correction)
                strength = choose_strength(judge.wanted, judge.inputs, shift)
                target = weight + strength * shift
                del shift
        with clock.phase("scale search"):
            absmax = _absmax_scale(name, target)
            found = absmax
            if self.scale_search:
                found = search_scale(target, absmax, self.factor.column_cost)
            shrink = 1 - (found.float() / absmax.float()).mean().item()
        with clock.phase("solve"):
            solution = _solve(name, target, found, self.factor)
            solved, num_pinned = pin_largest(target, solution.codes, found)
        with clock.phase("compare"):
            error_gptq = judge.error(solved, found)
        dampening_frac = self.factor.dampening_frac
        record = replace(record, error_gptq=error_gptq, dampening_frac=dampening_frac)
        if not error_gptq < error_rtn:
            return codes, scale, record
        record = replace(
            record,
            method=GPTQ,
            num_saturated=solution.num_saturated,
            correction=round(strength, 4),
            num_pinned=num_pinned,
            scale_shrink=round(shrink, 5),
        )
        return solved, found, record


class _Judge:
    """Measures what a linear's codes do to its outputs on held-out tokens.

    The outputs wanted are those of the float weight on the inputs of the float stream, where there
    is one. Differences are multiplied, not outputs: they are small, and so is their rounding.
    """

    def __init__(self, weight: torch.Tensor, held_out: HeldOut) -> None:
        self.inputs, self._weight = held_out.deployed, weight
        original = held_out.deployed if held_out.original is None else held_out.original
        compared = weight.to(original.dtype).T
        self._energy = torch.linalg.vector_norm((original @ compared).float()).item()
        # (x − x̂)·Wᵀ: what the layers before have taken from this linear's outputs.
        self.wanted = None if held_out.original is None else (original - self.inputs) @ compared

    def error(self, codes: torch.Tensor, scale: torch.Tensor) -> float:
        """Return ‖x̂·Ŵᵀ − x·Wᵀ‖ / ‖x·Wᵀ‖; 0 where the float output is zero."""
        difference = dequantize(codes, scale).sub_(self._weight)
        error = (self.inputs @ difference.to(self.inputs.dtype).T).float()
        if self.wanted is not None:
            error -= self.wanted
        return torch.linalg.vector_norm(error).item() / self._energy if self._energy else 0.0


def _solve(name: str, weight: torch.Tensor, scale: torch.Tensor, factor: Factor) -> Solution:
    try:
        return solve(weight, scale, factor)
    except QuantizationError as err:
        raise QuantizationError(f"{name}.weight: {err}.") from err


def _absmax_scale(name: str, weight: torch.Tensor) -> torch.Tensor:
    try:
        return choose_scale(weight)
    except QuantizationError as err:
        raise QuantizationError(f"{name}.weight: {err}.") from err


def count_cut(weight: torch.Tensor, scale: torch.Tensor) -> int:
    """Return how many weights [out, in] rounding has to cut at ±127 with ``scale`` [out].

    None in a row whose scale is a normal float16; see ``choose_scale``.
    """
    quotient = weight.float() / scale.float()[:, None]
    return int((quotient.round_().abs_() > INT8_MAX).sum())
