"""The int8 rule, here and nowhere else: one symmetric scale per output channel, rounding, and back.

The scale is rounded to its stored dtype first, then the codes are computed with the rounded scale,
in float32: a bfloat16 quotient of 127.5 rounds to 128 and wraps to -128, which flips the sign of
the row's largest weight.
"""

from __future__ import annotations

import torch

from vacc_deploy.errors import QuantizationError

INT8_MAX = 127
SCALE_DTYPE = torch.float16
# The smallest positive float16: the scale of a row too small for its dtype.
SMALLEST_SCALE = 2.0**-24
# From here on a scale is exact enough for rounding to give a row's largest weight ±127: half a
# step of 2⁻²⁴ in 128 moves 127 by less than a half.
SAFE_SCALE = 128 * SMALLEST_SCALE
# Rows are handled in pieces of about this many weights, so that temporaries stay in the cache.
_CHUNK_WEIGHTS = 1 << 19  # 2 MiB of float32


def choose_scale(weight: torch.Tensor) -> torch.Tensor:
    """Return the scale of each output row: absmax / 127, rounded to float16.

    In a row whose largest weight is below about 0.0078 the scale is a subnormal float16, with fewer
    digits the smaller it is. Rounded down, it cuts the row's largest weights at ±127, by some per
    cent in the worst rows; rounded up, it leaves the outermost codes unused.

    Args:
        weight: float tensor [out_features, in_features].

    Returns:
        float16 tensor [out_features], always > 0; an all-zero row gets 1.0.

    Raises:
        QuantizationError: a row holds NaN or infinity, or is too large for a float16 scale; the
            error has the row.
    """
    # The largest value of a row is exact in any float dtype; only then is it widened. amax and
    # amin are several times faster here than aminmax or a norm, and both pass NaN on.
    absmax = torch.maximum(weight.amax(1), -weight.amin(1)).float()  # [out]
    scale = (absmax / INT8_MAX).to(SCALE_DTYPE)
    if not torch.isfinite(scale).all():
        row = int((~torch.isfinite(scale)).nonzero()[0])
        value = float(absmax[row])
        reason = (
            "holds NaN or infinity"
            if not torch.isfinite(absmax[row])
            else f"has the largest weight {value:g}, its scale does not fit float16"
        )
        raise QuantizationError(reason, row=row)
    # A scale of 0 would divide by 0; a row of zeros takes any other one.
    return torch.where(absmax == 0, 1.0, scale.clamp_min(SMALLEST_SCALE))


def round_to_nearest(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the codes round(weight / scale) int8 [out, in], clamped to ±127.

    Args:
        weight: float tensor [out_features, in_features].
        scale: float16 tensor [out_features].
    """
    return _round_in_place(weight.to(torch.float32, copy=True), scale).to(torch.int8)


def quantize_rounding(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes int8 [out, in] and scale float16 [out] of a weight, by rounding to nearest.

    Raises:
        QuantizationError: see ``choose_scale``.
    """
    codes = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(len(weight), dtype=SCALE_DTYPE)
    round_rows(weight, codes, scale)
    return codes, scale


def round_rows(weight: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> None:
    """Write what ``quantize_rounding`` returns into given memory.

    Args:
        weight: float tensor [rows, in_features], a whole weight or some of its rows.
        codes: int8 tensor [rows, in_features], written.
        scale: float16 tensor [rows], written.

    Raises:
        QuantizationError: see ``choose_scale``.
    """
    chunk = max(1, _CHUNK_WEIGHTS // weight.shape[1])
    for start in range(0, len(weight), chunk):
        rows = slice(start, start + chunk)
        values = weight[rows].to(torch.float32, copy=True)  # [chunk, in_features]
        try:
            scale[rows] = choose_scale(values)
        except QuantizationError as err:
            err.locate(first_row=start)
            raise
        # The codes are those of the scale as it is stored, in float16.
        codes[rows] = _round_in_place(values, scale[rows])


def _round_in_place(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Turn a float32 ``weight`` [out, in] into its codes, still as float32."""
    # scale [out] -> [out, 1]. Clamped after rounding: a scale rounded down gives more than 127.
    return weight.div_(scale.float()[:, None]).round_().clamp_(-INT8_MAX, INT8_MAX)


def dequantize(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the float32 weight that ``codes`` [out, in] and ``scale`` [out] stand for."""
    return codes.float().mul_(scale.float()[:, None])


def pin_largest(
    weight: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """Return codes of which every row that is not all zero has one of ±127, and the rows changed.

    A tool that rounds code · scale again by absmax / 127 finds the same codes in such rows only.
    In a row that has lost its ±127 the code of the largest weight becomes ±127. For a normal
    scale that is the very code that rounding gives this weight, so the row is no worse there than
    rounded; error feedback had moved it by a few codes, and moving it back costs that step times
    the column's inputs (on the calibrated SmolLM2-135M 0.3 % of a linear's output error, 2.7 % at
    the worst). Rounding itself loses its ±127 only where the scale is below 128 · 2⁻²⁴ and so has
    few digits; there up to half of the row's range may be missing. Where all zeros are nearer to
    the row's weights than the row with its ±127, the row becomes zero.

    Args:
        weight: float tensor [out_features, in_features].
        codes: int8 [out_features, in_features], within ±127; left alone.
        scale: float16 [out_features].
    """
    largest = codes.abs().amax(1)  # [out]
    # A row of zeros has no weight to pin.
    rows = ((largest > 0) & (largest < INT8_MAX)).nonzero()[:, 0]
    if not len(rows):
        return codes, 0
    exact = weight[rows].float() / scale[rows].float()[:, None]  # [rows, in], unrounded codes
    pinned = codes[rows].float()
    column = exact.abs().argmax(1, keepdim=True)  # [rows, 1], where the largest weight is
    # [rows, 1]: ±127 with the sign of the largest weight.
    pinned.scatter_(1, column, INT8_MAX * exact.gather(1, column).sign())
    # Squared errors in codes: the row's scale is a factor of both sides.
    pinned[(exact - pinned).square().sum(1) > exact.square().sum(1)] = 0
    result = codes.clone()
    result[rows] = pinned.to(torch.int8)
    return result, len(rows)
