"""Check the int8 codes and scales of a quantized directory against the symmetric rule.

Reads bits with numpy: a check must not wait for torch to be imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vacc_deploy.checkpoint.header import TensorInfo
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.checkpoint.scan import BLOCK_CODES, BLOCK_SCALES, read_bits
from vacc_deploy.formats.layouts import VAMC
from vacc_deploy.formats.q8_0 import BLOCKS
from vacc_deploy.problems.problem import Problem
from vacc_deploy.problems.values import CODE_RANGE, NEGATIVE_SCALE, NOT_CODES, SATURATED

if TYPE_CHECKING:
    import numpy as np

# Rows that are read of a tensor in three places: its beginning, its middle and its end.
_ROWS_AT_ONCE = 16
_LARGEST = 127
# Codes of ±127 beyond the one that every row has. A row of normal weights has 0.0002 of them, a
# scale that is a tenth too small 0.001.
_MANY_SATURATED = 0.02
# Of a value and of the row's largest float16 keeps 1 / 2048: a code of 127 moves by 0.125 at most.
_CODE_TOLERANCE = 0.13
_SCALES = ("scales", "weight_scale")
_PACKED = ("qweight", "weight_packed")


@dataclass
class _Counts:
    """The codes of a linear, as far as they were read."""

    num_rows: int = 0
    num_codes: int = 0
    num_saturated: int = 0
    num_lowest: int = 0

    @property
    def saturated_share(self) -> float:
        """Codes of ±127 beyond one in each row, as a share of all."""
        return max(0, self.num_saturated - self.num_rows) / max(1, self.num_codes)


def find_code_problems(
    checkpoint: Checkpoint, layout: str, *, read_all: bool = False
) -> Iterator[Problem]:
    """Yield codes of -128, many saturated codes, negative scales, and rows that are no int8 values.

    Args:
        checkpoint: a quantized directory that was opened without a problem.
        layout: of its weights; for a float model nothing is yielded.
        read_all: read all rows; else some at the beginning, in the middle and at the end.
    """
    if not layout:
        return
    for name in checkpoint.config.linear_names():
        tensors = {
            suffix: checkpoint.tensors[f"{name}.{suffix}"]
            for suffix in ("weight", *_SCALES, *_PACKED, BLOCKS)
            if f"{name}.{suffix}" in checkpoint.tensors
        }
        for suffix, info in tensors.items():
            if suffix in _SCALES or suffix == BLOCKS:
                yield from _check_scales(info, suffix)
            if layout == VAMC:
                yield from _check_values(info, read_all)
            elif suffix not in _SCALES:
                yield from _check_codes(info, suffix, read_all)


def _spans(info: TensorInfo, read_all: bool) -> list[tuple[int, int]]:
    """Return first row and number of rows of each piece to read."""
    rows = info.shape[0] if info.shape else 1
    step = _ROWS_AT_ONCE if read_all else max(_ROWS_AT_ONCE, -(-rows // 3))
    return [(start, min(_ROWS_AT_ONCE, rows - start)) for start in range(0, rows, step)]


def _check_scales(info: TensorInfo, suffix: str) -> Iterator[Problem]:
    import numpy as np

    source = replace(info, dtype=BLOCK_SCALES) if suffix == BLOCKS else info
    for start, bits in read_bits(source, _spans(info, read_all=suffix != BLOCKS)):
        sign = 8 * bits.itemsize - 1
        negative = np.flatnonzero((bits >> sign).any(axis=1))
        if len(negative):
            row = start + int(negative[0])
            text = f"{info.stored_name} in {info.path.name}: row {row} holds a negative scale"
            yield NEGATIVE_SCALE.broken(text, where=f"{info.path.name}: {info.stored_name}")
            return


def _check_codes(info: TensorInfo, suffix: str, read_all: bool) -> Iterator[Problem]:
    """Yield a code of -128, and a share of codes at the end of their range."""
    source = replace(info, dtype=BLOCK_CODES) if suffix == BLOCKS else info
    counts = _Counts()
    for _, bits in read_bits(source, _spans(info, read_all)):
        _count(_codes(bits, is_packed=suffix in _PACKED), counts)
    where = f"{info.path.name}: {info.stored_name}"
    if counts.num_lowest:
        found = "1 code is" if counts.num_lowest == 1 else f"{counts.num_lowest} codes are"
        text = f"{info.stored_name} in {info.path.name}: {found} -128"
        yield CODE_RANGE.broken(text, where=where, got=-128, expected=f"±{_LARGEST}")
    # Of a transposed or a grouped tensor the rows that were read are no outputs.
    if suffix != "qweight" and counts.saturated_share > _MANY_SATURATED:
        share = counts.saturated_share
        text = f"{info.stored_name} in {info.path.name}: {share:.1%} of the codes are ±{_LARGEST}"
        yield SATURATED.broken(text, where=where, got=f"{share:.1%}", expected="about 0 %")


def _codes(bits: np.ndarray, *, is_packed: bool) -> np.ndarray:
    """Return stored bits as int8 codes; packed ones are bytes with 128 added."""
    import numpy as np

    stored = np.ascontiguousarray(bits).view(np.uint8)
    return (stored ^ 0x80).view(np.int8) if is_packed else stored.view(np.int8)


def _count(codes: np.ndarray, counts: _Counts) -> None:
    import numpy as np

    counts.num_rows += len(codes)
    counts.num_codes += codes.size
    counts.num_lowest += int(np.count_nonzero(codes == -128))
    counts.num_saturated += int(np.count_nonzero(np.abs(codes.astype(np.int16)) == _LARGEST))


def _check_values(info: TensorInfo, read_all: bool) -> Iterator[Problem]:
    """Yield the first row of a vamc tensor whose values are not whole multiples of its scale."""
    import numpy as np

    for start, bits in read_bits(info, _spans(info, read_all)):
        values = bits.view(np.float16).astype(np.float32)
        largest = np.abs(values).max(axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = np.where(largest > 0, values * (_LARGEST / largest), 0)
        # Of subnormal numbers float16 keeps less: such rows are left out.
        is_normal = largest[:, 0] > _LARGEST * 2.0**-14
        far = np.abs(codes - np.rint(codes)).max(axis=1) > _CODE_TOLERANCE
        rows = np.flatnonzero(far & is_normal)
        if len(rows):
            row = start + int(rows[0])
            text = f"{info.stored_name} in {info.path.name}: row {row} is no row of int8 values"
            yield NOT_CODES.broken(text, where=f"{info.path.name}: {info.stored_name}")
            return
