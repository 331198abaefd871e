"""Quantize the linears of one decoder layer while its stages are walked.

For every stage: the Hessian of its inputs is complete before any of its linears is applied, so each
linear is quantized once, applied once, and the next stage sees the quantized outputs.
"""

from __future__ import annotations

import torch

from vacc_deploy.decoder import STAGE_LINEARS, DecoderLayer, Linear
from vacc_deploy.errors import QuantizationError
from vacc_deploy.model_config import linear_name
from vacc_deploy.quantize.gptq import (
    Factor,
    accumulate_hessian,
    factorize,
    mirror_upper,
    solve,
)
from vacc_deploy.quantize.int8 import INT8_MAX, choose_scale, dequantize, round_to_nearest
from vacc_deploy.quantize.report import GPTQ, RTN, LinearRecord, QuantizedLinear

# Held-out tokens on which GPTQ and rounding are compared; enough for two digits of the ratio.
MAX_HELD_OUT_TOKENS = 1024


class LayerQuantizer:
    """A ``StageObserver`` that replaces every linear of a layer by its int8 form.

    Attributes:
        linears: the codes and scales of the finished linears.
        records: one record per finished linear.
    """

    def __init__(self, *, num_fit_rows: int, num_held_out_tokens: int, act_order: bool) -> None:
        """Begin a layer.

        Args:
            num_fit_rows: rows that make the Hessian; the rows after them are held out.
            num_held_out_tokens: tokens in the held-out rows.
            act_order: see ``factorize``.
        """
        self.linears: list[QuantizedLinear] = []
        self.records: list[LinearRecord] = []
        self._num_fit_rows, self._act_order = num_fit_rows, act_order
        self._stride = -(-num_held_out_tokens // MAX_HELD_OUT_TOKENS)
        self._hessian: torch.Tensor | None = None
        self._held_out: list[torch.Tensor] = []

    def observe(self, stage: str, rows: slice, inputs: torch.Tensor) -> None:
        """Add inputs [rows, seq, in_features] to the Hessian or to the held-out sample."""
        count = max(0, min(rows.stop, self._num_fit_rows) - rows.start)
        fit, held_out = inputs[:count].flatten(0, 1), inputs[count:].flatten(0, 1)
        if self._hessian is None:
            size = inputs.shape[-1]
            self._hessian = torch.zeros(size, size, dtype=inputs.dtype)
        if len(fit):
            accumulate_hessian(self._hessian, fit)
        if len(held_out):
            self._held_out.append(held_out[:: self._stride].clone())

    def complete(self, stage: str, layer: DecoderLayer) -> None:
        """Quantize the linears of ``stage`` and put the quantized weights into ``layer``.

        Raises:
            QuantizationError: a weight or the activations are not finite; names the tensor.
        """
        if self._hessian is None:
            raise AssertionError("complete() before observe()")
        mirror_upper(self._hessian)
        held_out = torch.cat(self._held_out)
        names = STAGE_LINEARS[stage]
        try:
            if not torch.isfinite(held_out).all():
                raise QuantizationError("the activations hold NaN or infinity")
            factor = factorize(self._hessian, act_order=self._act_order)
        except QuantizationError as err:
            where = linear_name(layer.index, names[0])
            raise QuantizationError(f"The inputs of {where}: {err}.") from err
        self._hessian, self._held_out = None, []
        for name in names:
            self._quantize(layer, name, factor, held_out)

    def _quantize(
        self, layer: DecoderLayer, name: str, factor: Factor | None, held_out: torch.Tensor
    ) -> None:
        full_name, linear = linear_name(layer.index, name), layer.linear(name)
        codes, scale, record = quantize_linear(full_name, linear, factor, held_out)
        self.linears.append(QuantizedLinear(full_name, codes, scale))
        self.records.append(record)
        linear.weight = dequantize(codes, scale)


def quantize_linear(
    name: str, linear: Linear, factor: Factor | None, held_out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, LinearRecord]:
    """Quantize one linear by rounding and by GPTQ and keep the better on held-out inputs.

    Args:
        name: the linear's full name.
        linear: its float weight.
        factor: of its inputs' Hessian; None leaves only rounding.
        held_out: inputs [tokens, in_features] that the Hessian has not seen.

    Returns:
        codes int8 [out, in], scale float16 [out], and the record.

    Raises:
        QuantizationError: the weight is not finite; names the tensor and the row.
    """
    weight = linear.weight
    try:
        scale = choose_scale(weight)
    except QuantizationError as err:
        raise QuantizationError(f"{name}.weight: {err}.") from err
    rounded = round_to_nearest(weight, scale)
    energy = torch.linalg.vector_norm(held_out @ weight.T).item()
    error_rtn = _relative_error(held_out, weight, rounded, scale, energy)
    if factor is None:
        num_cut = count_cut(weight, scale)
        return rounded, scale, LinearRecord(name, RTN, None, error_rtn, num_saturated=num_cut)
    solution = solve(weight, scale, factor)
    error_gptq = _relative_error(held_out, weight, solution.codes, scale, energy)
    is_better = error_gptq < error_rtn
    record = LinearRecord(
        name,
        GPTQ if is_better else RTN,
        error_gptq,
        error_rtn,
        factor.dampening_frac,
        solution.num_saturated if is_better else count_cut(weight, scale),
    )
    return solution.codes if is_better else rounded, scale, record


def count_cut(weight: torch.Tensor, scale: torch.Tensor) -> int:
    """Return how many weights [out, in] rounding has to cut at ±127 with ``scale`` [out].

    None in a row whose scale is a normal float16; see ``choose_scale``.
    """
    quotient = weight.float() / scale.float()[:, None]
    return int((quotient.round_().abs_() > INT8_MAX).sum())


def _relative_error(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    energy: float,
) -> float:
    """Return ‖X·ΔWᵀ‖ / ‖X·Wᵀ‖; 0 where the float output is zero."""
    difference = dequantize(codes, scale).sub_(weight)
    error = torch.linalg.vector_norm(inputs @ difference.T).item()
    return error / energy if energy else 0.0
