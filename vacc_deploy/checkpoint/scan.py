"""Read a tensor once and tell its rows that are zero, NaN or infinite. Judges nothing.

The bit patterns are compared as integers, in pieces that stay in the processor's cache: about half
the speed of reading a file that is in memory (benchmarks/soundness.py), and no import of torch.
The blocks of a GGUF file are read as what they hold: their scales, their codes, or the products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vacc_deploy.checkpoint.header import TensorInfo
from vacc_deploy.checkpoint.stored import CHUNK_BYTES, fill, open_stored
from vacc_deploy.formats.dtypes import DTYPES, used_dtype
from vacc_deploy.formats.q8_0 import BLOCK_BYTES, Q8_0, SCALE_BYTES

if TYPE_CHECKING:
    import numpy as np

NAN, INFINITY = "NaN", "infinity"


class _Bits(NamedTuple):
    """The bits of a float without its sign, and those of infinity; what is above them is NaN."""

    magnitude: int
    infinity: int


_FLOATS = {
    "BF16": _Bits(0x7FFF, 0x7F80),
    "F16": _Bits(0x7FFF, 0x7C00),
    "F32": _Bits(0x7FFF_FFFF, 0x7F80_0000),
}
# What is read of Q8_0 blocks, as dtypes of a ``TensorInfo``: of a linear its scales and its codes,
# [blocks] and [blocks, 32]; of an embedding, [rows, columns], the float32 products.
BLOCK_SCALES, BLOCK_CODES = "scales of Q8_0", "codes of Q8_0"
_USED = {BLOCK_SCALES: "F16", BLOCK_CODES: "I8", Q8_0: "F32"}


@dataclass
class TensorFacts:
    """What the values of a tensor are. A row of a vector is one value.

    Attributes:
        num_rows, row_values: sizes of the tensor, seen as a matrix.
        num_zero_rows, first_zero_row: rows of zeros; None where there is none.
        trailing_zeros: values at the end of the tensor that are zero.
        broken_row: the first row that holds NaN or infinity, None where there is none.
        broken_by: ``NAN``, ``INFINITY`` or nothing.
        is_constant: whether all values are equal.
    """

    num_rows: int
    row_values: int
    num_zero_rows: int = 0
    first_zero_row: int | None = None
    trailing_zeros: int = 0
    broken_row: int | None = None
    broken_by: str = ""
    is_constant: bool = True

    @property
    def is_zero(self) -> bool:
        """Whether every value is zero."""
        return self.num_zero_rows == self.num_rows

    @property
    def trailing_zero_rows(self) -> int:
        """Rows of zeros at the end."""
        return self.trailing_zeros // self.row_values


def scan_tensor(info: TensorInfo) -> TensorFacts:
    """Read a tensor whole; memory holds a MiB, or one row where that is more.

    Raises:
        CheckpointError: the file was changed since its header was read.
    """
    facts, first = _no_facts(info), None
    at_once = max(1, CHUNK_BYTES // _row_bytes(info))
    spans = [(s, min(at_once, facts.num_rows - s)) for s in range(0, facts.num_rows, at_once)]
    for start, read in read_bits(info, spans):
        values = _as_used(read, info)
        first = values.flat[0] if first is None else first
        facts.is_constant = facts.is_constant and _is_constant(values, first)
        _add_rows(facts, start, values, _bits_of(info))
    return facts


def looks_filled(info: TensorInfo, *, may_be_nan: bool = True) -> bool:
    """Return whether the first, the middle and the last row hold different values each.

    A tensor that is all zero, constant or zero at its end does not look filled.

    Args:
        info: the tensor.
        may_be_nan: count NaN and infinity as other values; else a row that has one does not look
            filled.
    """
    num_rows = _no_facts(info).num_rows
    rows = sorted({0, num_rows // 2, num_rows - 1})
    for _, read in read_bits(info, [(row, 1) for row in rows]):
        values, facts = _as_used(read, info), _no_facts(info)
        is_constant = _is_constant(values, values.flat[0])
        if is_constant or not may_be_nan:
            _add_rows(facts, 0, values, _bits_of(info))
        if (is_constant and not facts.broken_by) or (facts.broken_by and not may_be_nan):
            return False
    return True


def _no_facts(info: TensorInfo) -> TensorFacts:
    """Return the sizes: all dimensions but the first are one row, of a vector each value."""
    count, num_rows = math.prod(info.shape), info.shape[0] if info.shape else 1
    return TensorFacts(num_rows if count else 0, count // num_rows if count else 1)


def _row_bytes(info: TensorInfo) -> int:
    num_rows = _no_facts(info).num_rows
    return info.num_bytes // num_rows if num_rows else 1


def read_bits(info: TensorInfo, spans: list[tuple[int, int]]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield some rows as unsigned integers [rows, values], each time in the same memory.

    Args:
        info: the tensor.
        spans: the first row and the number of rows of each piece.
    """
    import numpy as np

    row_bytes = _row_bytes(info)
    buffer = bytearray(row_bytes * max((count for _, count in spans), default=0))
    with open_stored(info.path, info.stamp) as file:
        for start, count in spans:
            file.seek(info.offset + start * row_bytes)
            piece = memoryview(buffer)[: count * row_bytes]
            fill(file, piece, info)
            if info.dtype in _USED:
                yield start, _part_blocks(np.frombuffer(piece, np.uint8), info.dtype, count)
            else:
                word = np.dtype(f"<u{DTYPES[info.dtype].num_bytes}")
                yield start, np.frombuffer(piece, word).reshape(count, -1)


def _part_blocks(data: np.ndarray, what: str, num_rows: int) -> np.ndarray:
    """Return what is wanted of Q8_0 blocks as unsigned integers [rows, values]."""
    import numpy as np

    blocks = data.reshape(-1, BLOCK_BYTES)
    # [blocks, 34] -> [blocks, 1] and [blocks, 32]
    scales, codes = blocks[:, :SCALE_BYTES].copy().view("<u2"), blocks[:, SCALE_BYTES:]
    if what != Q8_0:
        return scales if what == BLOCK_SCALES else codes.copy()
    with np.errstate(invalid="ignore"):  # infinity times zero
        products = scales.view("<f2").astype("<f4") * codes.view(np.int8)
    return products.view("<u4").reshape(num_rows, -1)


def _bits_of(info: TensorInfo) -> _Bits | None:
    return _FLOATS.get(_USED.get(info.dtype) or used_dtype(info.dtype))


def _as_used(values: np.ndarray, info: TensorInfo) -> np.ndarray:
    """Return the bits of the values in the dtype in which they are used: float64 as float32.

    What float32 cannot hold is infinity in it, and zero below its smallest number.
    """
    import numpy as np

    if info.dtype != "F64":
        return values
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return values.view("<f8").astype("<f4").view("<u4")


def _is_constant(values: np.ndarray, value: np.generic) -> bool:
    # Two values of a real weight differ, and then the rest need not be looked at.
    return bool((values[0, :8] == value).all() and (values == value).all())


def _add_rows(facts: TensorFacts, start: int, values: np.ndarray, bits: _Bits | None) -> None:
    """Add what rows are, of which the first is row ``start`` of the tensor; changes ``values``."""
    import numpy as np

    if bits is not None:
        np.bitwise_and(values, values.dtype.type(bits.magnitude), out=values)
    # [rows, values] -> [rows]; as integers magnitudes are in order, infinity and NaN last.
    largest = values.max(1) if values.shape[1] > 1 else values[:, 0]
    zero, nonzero = np.flatnonzero(largest == 0), np.flatnonzero(largest)
    facts.num_zero_rows += len(zero)
    if len(zero) and facts.first_zero_row is None:
        facts.first_zero_row = start + int(zero[0])
    if len(nonzero):
        last = int(nonzero[-1])
        behind = values.shape[1] - 1 - int(np.flatnonzero(values[last])[-1])
        facts.trailing_zeros = (len(values) - 1 - last) * values.shape[1] + behind
    else:
        facts.trailing_zeros += values.size
    if bits is not None and facts.broken_row is None:
        broken = np.flatnonzero(largest >= bits.infinity)
        if len(broken):
            row = int(broken[0])
            facts.broken_row = start + row
            facts.broken_by = NAN if int(largest[row]) > bits.infinity else INFINITY
