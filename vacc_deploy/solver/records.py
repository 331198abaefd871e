"""What the quantizer says of one linear and of one layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_MAY_BE_MISSING = ("error_gptq", "error_rtn", "dampening_frac")


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

    @classmethod
    def from_dict(cls, values: Any) -> LinearRecord:
        """Return the record that ``dataclasses.asdict`` has written into a file.

        Raises:
            ValueError: a value is missing, unknown, or of another type.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or values.keys() - names:
            raise ValueError(f"a record of a linear is {values!r:.80}")
        for name in ("name", "method"):
            if not isinstance(values.get(name), str):
                raise ValueError(f"{name} is {values.get(name)!r:.80}, expected text")
        for name in names & values.keys() - {"name", "method"}:
            value = values[name]
            is_number = type(value) is float and math.isfinite(value)
            if name.startswith("num_"):
                is_number = type(value) is int and 0 <= value < 1 << 63
            if not is_number and not (value is None and name in _MAY_BE_MISSING):
                raise ValueError(f"{name} is {value!r:.80}, expected a number")
        return cls(**values)


@dataclass(frozen=True)
class QuantizedLinear:
    """The int8 form of one linear: codes int8 [out, in] and scale float16 [out]."""

    name: str
    codes: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True)
class QuantizedLayer:
    """One finished decoder layer: its linears in the order of use, and one record for each.

    ``linear_seconds`` has the wall time of each linear where they are made one after the other.
    It leaves out what the linears of a stage share: forward pass, Hessian and its factor.
    """

    index: int
    linears: tuple[QuantizedLinear, ...]
    records: tuple[LinearRecord, ...]
    linear_seconds: tuple[float, ...] = ()

    @property
    def is_calibrated(self) -> bool:
        """Whether a linear was compared with rounding: the layer took a while to make."""
        return any(record.error_rtn is not None for record in self.records)
