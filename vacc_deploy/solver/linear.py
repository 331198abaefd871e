"""Quantize one linear by rounding and by GPTQ, and keep the better on held-out inputs.

Pure functions on tensors: no paths, no logging; names only for records and messages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from vacc_deploy.errors import QuantizationError
from vacc_deploy.formats.int8 import (
    INT8_MAX,
    choose_scale,
    dequantize,
    pin_largest,
    round_to_nearest,
)
from vacc_deploy.phases import PhaseClock
from vacc_deploy.quantize.ranks import ALONE, Ranks
from vacc_deploy.solver.correction import choose_strength, correct
from vacc_deploy.solver.gptq import Factor, Solution, solve
from vacc_deploy.solver.records import GPTQ, RTN, LinearRecord
from vacc_deploy.solver.scale_search import search_scale
from vacc_deploy.solver.stage_sums import HeldOut

Quantized = tuple[torch.Tensor, torch.Tensor, LinearRecord]


def round_linear(name: str, weight: torch.Tensor, first_row: int = 0) -> Quantized:
    """Return codes int8 [out, in], scale float16 [out] and the record of plain rounding.

    Args:
        name: the linear's full name.
        weight: float32 [out, in], all rows of the linear or some.
        first_row: the index of the first of them, for messages.

    Raises:
        QuantizationError: the weight is not finite; names the tensor and the row.
    """
    try:
        scale = choose_scale(weight)
    except QuantizationError as err:
        err.locate(f"{name}.weight", first_row=first_row)
        raise
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
        ranks: the processes of the run; each quantizes some rows.
    """

    factor: Factor | None
    correction: torch.Tensor | None
    held_out: HeldOut
    scale_search: bool
    clock: PhaseClock
    ranks: Ranks = ALONE

    def quantize(self, name: str, weight: torch.Tensor, first_row: int = 0) -> Quantized:
        """Return codes int8 [out, in] and scale float16 [out] of these rows of one linear.

        The record is that of the whole linear, the same on every rank.

        Args:
            name: the linear's full name.
            weight: float32 [out, in], this rank's rows.
            first_row: the index of the first of them.

        Raises:
            QuantizationError: the weight is not finite; names the tensor and the row.
            QuantizationError: what was made of it is not finite.
        """
        clock, add = self.clock, self.ranks.add
        with clock.phase("compare"):
            codes, scale, record = round_linear(name, weight, first_row)
            judge = _Judge(weight, self.held_out)
            lost, energy, cut = add(judge.measure(codes, scale), judge.energy, record.num_saturated)
            error_rtn = _relative(lost, energy)
            record = replace(record, error_rtn=error_rtn, num_saturated=int(cut))
        factor = self.factor
        if factor is None:
            return codes, scale, record
        target, strength = self._correct(weight, judge)
        with clock.phase("scale search"):
            absmax = _absmax_scale(name, target, first_row)
            found = absmax
            if self.scale_search:
                found = search_scale(target, absmax, factor.column_cost)
        with clock.phase("solve"):
            solution = _solve(name, target, found, factor, first_row)
            solved, num_pinned = pin_largest(target, solution.codes, found)
        with clock.phase("compare"):
            kept = (found.float() / absmax.float()).sum().item()
            lost, cut, pinned, kept, num_rows = add(
                *(judge.measure(solved, found), solution.num_saturated, num_pinned),
                *(kept, len(found)),
            )
            error_gptq = _relative(lost, energy)
        dampening_frac = factor.dampening_frac
        record = replace(record, error_gptq=error_gptq, dampening_frac=dampening_frac)
        if not error_gptq < error_rtn:
            return codes, scale, record
        record = replace(
            record,
            method=GPTQ,
            num_saturated=int(cut),
            correction=round(strength, 4),
            num_pinned=int(pinned),
            scale_shrink=round(1 - kept / num_rows, 5),
        )
        return solved, found, record

    def _correct(self, weight: torch.Tensor, judge: _Judge) -> tuple[torch.Tensor, float]:
        """Return the weight that makes up for the layers before, and how strongly it does."""
        if self.correction is None:
            return weight, 0.0
        with self.clock.phase("correction"):
            assert judge.wanted is not None
            shift = correct(weight, self.correction)
            strength = choose_strength(judge.wanted, judge.inputs, shift, add=self.ranks.add)
            return weight + strength * shift, strength


class _Judge:
    """Measures what the codes of a linear's rows do to its outputs on held-out tokens.

    The outputs wanted are those of the float weight on the inputs of the float stream, where there
    is one. Differences are multiplied, not outputs: they are small, and so is their rounding.
    """

    def __init__(self, weight: torch.Tensor, held_out: HeldOut) -> None:
        self.inputs, self._weight = held_out.deployed, weight
        original = held_out.deployed if held_out.original is None else held_out.original
        compared = weight.to(original.dtype).T
        # ‖x·Wᵀ‖²
        self.energy = _square_length(original @ compared)
        # (x − x̂)·Wᵀ: what the layers before have taken from this linear's outputs.
        self.wanted = None if held_out.original is None else (original - self.inputs) @ compared

    def measure(self, codes: torch.Tensor, scale: torch.Tensor) -> float:
        """Return ‖x̂·Ŵᵀ − x·Wᵀ‖²."""
        difference = dequantize(codes, scale).sub_(self._weight)
        error = (self.inputs @ difference.to(self.inputs.dtype).T).float()
        if self.wanted is not None:
            error -= self.wanted
        return _square_length(error)


def _square_length(values: torch.Tensor) -> float:
    return torch.linalg.vector_norm(values.float()).item() ** 2


def _relative(lost: float, energy: float) -> float:
    """Return the relative error; 0 where the float output is zero."""
    return math.sqrt(lost) / math.sqrt(energy) if energy else 0.0


def _solve(
    name: str, weight: torch.Tensor, scale: torch.Tensor, factor: Factor, first_row: int
) -> Solution:
    try:
        return solve(weight, scale, factor)
    except QuantizationError as err:
        err.locate(f"{name}.weight after its correction", first_row=first_row)
        raise


def _absmax_scale(name: str, weight: torch.Tensor, first_row: int) -> torch.Tensor:
    try:
        return choose_scale(weight)
    except QuantizationError as err:
        err.locate(f"{name}.weight after its correction", first_row=first_row)
        raise


def count_cut(weight: torch.Tensor, scale: torch.Tensor) -> int:
    """Return how many weights [out, in] rounding has to cut at ±127 with ``scale`` [out].

    None in a row whose scale is a normal float16; see ``choose_scale``.
    """
    quotient = weight.float() / scale.float()[:, None]
    return int((quotient.round_().abs_() > INT8_MAX).sum())
