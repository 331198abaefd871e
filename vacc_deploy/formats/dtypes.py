"""The dtypes of a safetensors file: their codes, their sizes, and their names in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class StoredDtype(NamedTuple):
    """One dtype of a safetensors file: its size, and its name in torch where torch has it."""

    num_bytes: int
    torch_name: str | None


# Source: the list of dtypes of the safetensors format. torch 2.1 lacks some of the unsigned ones.
DTYPES = {
    "BOOL": StoredDtype(1, "bool"),
    "U8": StoredDtype(1, "uint8"),
    "I8": StoredDtype(1, "int8"),
    "F8_E4M3": StoredDtype(1, None),
    "F8_E5M2": StoredDtype(1, None),
    "F8_E8M0": StoredDtype(1, None),
    "F8_E4M3FNUZ": StoredDtype(1, None),
    "F8_E5M2FNUZ": StoredDtype(1, None),
    "I16": StoredDtype(2, "int16"),
    "U16": StoredDtype(2, None),
    "F16": StoredDtype(2, "float16"),
    "BF16": StoredDtype(2, "bfloat16"),
    "I32": StoredDtype(4, "int32"),
    "U32": StoredDtype(4, None),
    "F32": StoredDtype(4, "float32"),
    "I64": StoredDtype(8, "int64"),
    "U64": StoredDtype(8, None),
    "F64": StoredDtype(8, "float64"),
}
# What the weights of a float checkpoint are used in.
FLOAT_DTYPES = ("F32", "F16", "BF16")
# What they may be stored in: float64 is read as float32.
STORED_FLOATS = (*FLOAT_DTYPES, "F64")
# The same three by the name that a config.json gives them.
FLOAT_DTYPE_BYTES = {str(DTYPES[code].torch_name): DTYPES[code].num_bytes for code in FLOAT_DTYPES}
_CODES = {dtype.torch_name: code for code, dtype in DTYPES.items() if dtype.torch_name}


def used_dtype(code: str) -> str:
    """Return the code of the dtype in which a stored tensor is used."""
    return "F32" if code == "F64" else code


def torch_dtype(code: str) -> torch.dtype:
    """Return the dtype that torch reads a tensor of ``code`` into; KeyError where it has none."""
    import torch

    name = DTYPES[code].torch_name
    if name is None:
        raise KeyError(code)
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def dtype_code(dtype: torch.dtype) -> str:
    """Return the code that a safetensors file gives ``dtype``."""
    return _CODES[str(dtype).removeprefix("torch.")]
