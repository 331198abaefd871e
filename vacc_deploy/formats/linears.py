"""What a directory of each output format holds: the tensors of a linear, and the texts beside them.

``int8`` and ``fp16`` directories are for the vendor's compiler, ``gptq`` and
``compressed-tensors`` for stock loaders. All hold the same codes and the same scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from vacc_deploy.errors import QuantizationError
from vacc_deploy.formats.dtypes import DTYPES
from vacc_deploy.formats.int8 import choose_scale, round_to_nearest
from vacc_deploy.formats.layouts import (
    COMPRESSED_TENSORS,
    FP16,
    GPTQ,
    INT8,
    stored_linear,
)
from vacc_deploy.formats.packing import pack_columns, pack_gptq, unpack_columns, unpack_gptq

ReadTensor = Callable[[str], torch.Tensor]


# ---- tensors ----------------------------------------------------------------------------------


def linear_tensors(
    layout: str, name: str, codes: torch.Tensor, scale: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the stored tensors of one linear, but its bias, which stays as it is.

    Args:
        layout: one of ``FORMATS``.
        name: the linear's full name.
        codes: int8 [out_features, in_features].
        scale: float16 [out_features].

    Raises:
        QuantizationError: the layout cannot hold this linear; names it.
    """
    try:
        tensors = _linear_tensors(layout, codes, scale)
    except QuantizationError as err:
        err.locate(name)
        raise
    return {f"{name}.{suffix}": tensor for suffix, tensor in tensors.items()}


def _linear_tensors(
    layout: str, codes: torch.Tensor, scale: torch.Tensor
) -> dict[str, torch.Tensor]:
    if layout == INT8:
        return {"weight": codes, "weight_scale": scale}
    if layout == FP16:
        return {"weight": float16_weight(codes, scale)}
    if layout == COMPRESSED_TENSORS:
        return {
            "weight_packed": pack_columns(codes),
            "weight_scale": scale[:, None].clone(),
            "weight_shape": torch.tensor(codes.shape),
        }
    if layout == GPTQ:
        return pack_gptq(codes, scale)
    raise ValueError(f"unknown format {layout!r}")


def float16_weight(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return code · scale rounded to float16, [out_features, in_features].

    Rounding the result again by absmax / 127, in float16 or in float32, gives back exactly
    ``codes`` in every row that is zero or has a code of ±127.

    Raises:
        QuantizationError: a product is above the largest float16 (a row with weights above 65504).
    """
    # One product a row: looking at every weight would take longer than making them.
    largest = torch.maximum(codes.amax(1).half(), -codes.amin(1).half()) * scale
    if not torch.isfinite(largest).all():
        row = int((~torch.isfinite(largest)).nonzero()[0])
        raise QuantizationError(
            f"row {row} has the scale {float(scale[row]):g}, its weights do not fit float16. Use "
            "another --format"
        )
    return codes.half() * scale[:, None]


def codes_from(
    layout: str, read: ReadTensor, name: str, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes int8 [out, in] and scale float16 [out] of one stored linear.

    Args:
        layout: one of ``FORMATS``.
        read: returns a stored tensor by its full name.
        name: the linear's full name.
        scale: for ``fp16`` only, the scale that the weights were made with. Without it the scale
            is absmax / 127, which is the original one or its neighbour; the codes are the same.

    Raises:
        QuantizationError: the tensors are not of this layout; names the linear.
    """
    try:
        if layout == INT8:
            return read(f"{name}.weight"), read(f"{name}.weight_scale")
        if layout == FP16:
            weight = read(f"{name}.weight")
            scale = choose_scale(weight) if scale is None else scale
            return round_to_nearest(weight, scale), scale
        if layout == COMPRESSED_TENSORS:
            return _codes_from_packed(read, name)
        if layout == GPTQ:
            return unpack_gptq(
                *(read(f"{name}.{suffix}") for suffix in ("qweight", "qzeros", "scales", "g_idx"))
            )
    except QuantizationError as err:
        err.locate(name, advice="Quantize the model again.")
        raise
    raise ValueError(f"unknown format {layout!r}")


def _codes_from_packed(read: ReadTensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    packed, scale = read(f"{name}.weight_packed"), read(f"{name}.weight_scale")
    out_features, in_features = read(f"{name}.weight_shape").tolist()
    if out_features != packed.shape[0]:
        raise QuantizationError(
            f"weight_shape has {out_features} rows, weight_packed {packed.shape[0]}"
        )
    return unpack_columns(packed, in_features), scale[:, 0].clone()


def stored_linear_bytes(layout: str, out_features: int, in_features: int) -> int:
    """Return the bytes of one linear's tensors in ``layout``, its bias left out."""
    stored = stored_linear(layout, out_features, in_features).values()
    return sum(math.prod(shape) * DTYPES[dtype].num_bytes for shape, dtype in stored)
