"""What the quantizer says of one linear and of one layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LinearRecord:
    """How one linear was quantized.

    Attributes:
        name: the module's name.
        method: the method kept, ``gptq`` or ``rtn``.
        error_gptq: relative output error ‖X·ΔWᵀ‖ / ‖X·Wᵀ‖ of GPTQ on held-out tokens.
        error_rtn: the same of rounding.
        dampening_frac: the dampening of the Hessian, None where no factorisation succeeded.
        num_saturated: codes that had to be cut at ±127 by the method kept. Not counted, and 0, in
            a run without calibration.
        correction: with what strength, 0 to 1, the linear makes up for the layers before it.
        scale_shrink: by how much the scales are below absmax / 127, the mean over the rows.
        num_pinned: rows whose largest code was set to ±127.
    """

    name: str
    method: str
    error_gptq: float | None = None
    error_rtn: float | None = None
    dampening_frac: float | None = None
    num_saturated: int = 0
    correction: float = 0.0
    scale_shrink: float = 0.0
    num_pinned: int = 0


@dataclass(frozen=True)
class QuantizedLinear:
    """The int8 form of one linear: codes int8 [out, in] and scale float16 [out]."""

    name: str
    codes: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True)
class QuantizedLayer:
    """One finished decoder layer: its linears in the order of use, and one record for each.

    ``maxima`` has the largest absolute activations by the name of the tensor, where the layer was
    calibrated.

    ``linear_seconds`` has the wall time of each linear where they are made one after the other.
    It leaves out what the linears of a stage share: forward pass, Hessian and its factor.
    """

    index: int
    linears: tuple[QuantizedLinear, ...]
    records: tuple[LinearRecord, ...]
    linear_seconds: tuple[float, ...] = ()
    maxima: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def is_calibrated(self) -> bool:
        """Whether a linear was compared with rounding: the layer took a while to make."""
        return any(record.error_rtn is not None for record in self.records)
