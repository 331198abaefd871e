"""The stored tensors of one linear in a layout, by their full names."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vacc_deploy.errors import QuantizationError
from vacc_deploy.formats.dtypes import DTYPES
from vacc_deploy.formats.layouts import LAYOUTS

if TYPE_CHECKING:
    import torch

    from vacc_deploy.formats.packing import ReadTensor


def linear_tensors(
    layout: str, name: str, codes: torch.Tensor, scale: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the stored tensors of one linear, but its bias, which stays as it is.

    Args:
        layout: a name in ``LAYOUTS``; ``check_format`` has seen that it can hold the sizes.
        name: full name of the linear.
        codes: int8 [out_features, in_features].
        scale: float16 [out_features].

    Raises:
        QuantizationError: the layout cannot hold this linear; names it.
    """
    try:
        tensors = LAYOUTS[layout].pack(codes, scale)
    except QuantizationError as err:
        err.locate(name, advice="Use another --format.")
        raise
    return {f"{name}.{suffix}": tensor for suffix, tensor in tensors.items()}


def codes_from(
    layout: str, read: ReadTensor, name: str, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes int8 [out, in] and scale float16 [out] of one stored linear.

    Args:
        layout: a name in ``LAYOUTS``.
        read: returns a stored tensor by its full name.
        name: full name of the linear.
        scale: for ``vamc`` only, the scale that the weights were made with. Without it the scale
            is absmax / 127, which is the original one or its neighbour; the codes are the same.

    Raises:
        QuantizationError: the tensors are not of this layout; names the linear.
    """
    try:
        return LAYOUTS[layout].unpack(lambda suffix: read(f"{name}.{suffix}"), scale)
    except QuantizationError as err:
        err.locate(name, advice="Quantize the model again.")
        raise


def stored_linear_bytes(layout: str, out_features: int, in_features: int) -> int:
    """Return the bytes of one linear's tensors in ``layout``, its bias left out."""
    stored = LAYOUTS[layout].tensors(out_features, in_features).values()
    return sum(math.prod(shape) * DTYPES[dtype].num_bytes for shape, dtype in stored)
