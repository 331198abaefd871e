"""One diagonal block of the nearest-plane solver as one CUDA launch. Imported only where Triton is.

Each program owns some outputs and solves their columns from the last to the first. The errors of
solved columns stay in registers, so that a step reads one row of the factor and one row of targets
and values, and writes one row of errors and codes: the block moves through memory once.

Predicted for the four stages of a 7B layer (in × out: 3584 × 4608, 3584 × 3584, 3584 × 37,888,
18,944 × 3584; 233 million weights) in blocks of 128 columns on an H100: 232 launches, 30 billion
multiply-adds, 3.0 GB moved (13 bytes a weight). Each column of the block costs a thread a
multiply-add, a comparison and a selection, and each step some 100 cycles besides: 26 microseconds a
launch of 3584 outputs and 94 of 37,888, so 8 ms a layer and 0.2 s for 28. The products between the
blocks are 1.9 Tflop a layer: 1.05 s for 28 at 50 Tflop/s. ``benchmarks/cuda_solver.py`` measures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from vacc_deploy.formats.int8 import INT8_MAX
from vacc_deploy.solver.block import Block

# 64 would halve the cost of a step, but double the products between blocks, whose launches cost as
# much as is saved.
MAX_COLUMNS = 128
# Fewer outputs than this give wide programs to fewer than the 132 multiprocessors of an H100.
_WIDE_OUTPUTS = 128 * 132
# 1.5 · 2^23: added to a float32 below 2^22 it leaves no bit for a fraction, and the hardware rounds
# half to even. A reassociating compiler would cancel it; Triton's does not.
_ROUNDING_SHIFT = tl.constexpr(12582912.0)
_LIMIT = tl.constexpr(float(INT8_MAX))


@dataclass(frozen=True)
class LaunchConfig:
    """Sizes of a program.

    Attributes:
        block_columns: columns it can hold, a power of two.
        block_outputs: outputs it solves.
        num_warps: with 4 for 32 outputs, four warps share the columns of a block; with 4 for 128,
            a thread has an output to itself and sums without its neighbours.
    """

    block_columns: int
    block_outputs: int
    num_warps: int


def choose_config(num_columns: int, num_outputs: int) -> LaunchConfig:
    """Return the sizes of a program for a block [num_columns, num_outputs]."""
    block_columns = max(16, triton.next_power_of_2(num_columns))
    block_outputs = 128 if num_outputs >= _WIDE_OUTPUTS else 32
    return LaunchConfig(block_columns, block_outputs, num_warps=4)


def solve_block(block: Block, *, config: LaunchConfig | None = None) -> None:
    """Solve the columns of one block one by one, for all outputs at once, without waiting for it.

    A target that is NaN gets code 0 and a NaN error, and so do the columns solved after it: the
    caller finds NaN in row 0 of the errors.

    Args:
        block: float32, at most ``MAX_COLUMNS`` columns. Of its unit rows only what lies above the
            diagonal is read; they may have any strides and are read fast where the elements of a
            row are adjacent. In the other tensors the elements of a row are adjacent.
        config: sizes of a program; None is ``choose_config``'s.

    Raises:
        ValueError: a dtype, a shape or a stride is not as above.
    """
    _check_block(block)
    num_columns, num_outputs = block.targets.shape
    config = config or choose_config(num_columns, num_outputs)
    num_programs = triton.cdiv(num_outputs, config.block_outputs)
    unit_rows_stride, unit_columns_stride = block.unit_rows.stride()
    with torch.cuda.device_of(block.targets):  # Triton launches on the current device
        _settle_kernel[(num_programs,)](
            block.unit_rows,
            block.targets,
            block.errors,
            block.codes,
            block.num_saturated,
            num_columns - 1,
            num_outputs,
            unit_rows_stride,
            unit_columns_stride,
            block.targets.stride(0),
            block.errors.stride(0),
            block.codes.stride(0),
            num_columns=num_columns,
            block_columns=config.block_columns,
            block_outputs=config.block_outputs,
            num_warps=config.num_warps,
            # Later versions of Triton leave this off unless asked; a fused sum rounds less.
            enable_fp_fusion=True,
        )


def _check_block(block: Block) -> None:
    *tensors, _ = block
    size = len(block.targets)
    if not 0 < size <= MAX_COLUMNS:
        raise ValueError(f"a block has 1 to {MAX_COLUMNS} columns, got {size}")
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if shapes != [(size, size), *(3 * [tuple(block.targets.shape)])]:
        raise ValueError(f"the shapes of a block do not fit each other: {shapes}")
    dtypes = [tensor.dtype for tensor in block]
    if dtypes != [torch.float32, torch.float32, torch.float32, torch.int8, torch.int32]:
        raise ValueError(f"a block is float32 with int8 codes and an int32 count, got {dtypes}")
    for tensor in (block.targets, block.errors, block.codes):
        if tensor.stride(1) != 1 and tensor.shape[1] > 1:
            raise ValueError(f"the rows of a block are contiguous, got strides {tensor.stride()}")


@triton.jit
def _settle_kernel(  # type: ignore[no-untyped-def]  # Triton gives annotations a meaning of its own
    unit_rows,
    targets,
    errors,
    codes,
    num_saturated,
    last,  # num_columns - 1; known at compile time, it makes 64-bit comparisons of 32-bit ones
    num_outputs,
    unit_rows_stride,
    unit_columns_stride,
    targets_stride,
    errors_stride,
    codes_stride,
    num_columns: tl.constexpr,  # nearly always MAX_COLUMNS: one kernel more for each rest
    block_columns: tl.constexpr,
    block_outputs: tl.constexpr,
):
    outputs = tl.program_id(0) * block_outputs + tl.arange(0, block_outputs)
    inside = outputs < num_outputs
    columns = tl.arange(0, block_columns)
    settled = tl.zeros([block_columns, block_outputs], tl.float32)  # errors; 0 where not settled
    saturated = tl.zeros([block_outputs], tl.int32)
    coupling = tl.zeros([block_columns], tl.float32)  # nothing lies right of the last column
    target = tl.load(targets + last * targets_stride + outputs, mask=inside, other=0.0)
    # ``errors`` holds v until v − q is written over it.
    value = tl.load(errors + last * errors_stride + outputs, mask=inside, other=0.0)
    for step in range(num_columns):
        column = last - step
        # Read one step ahead, so that the sum below does not wait for memory.
        following = tl.maximum(column - 1, 0)
        right = (columns > following) & (columns < num_columns)
        unit_row = unit_rows + following * unit_rows_stride + columns * unit_columns_stride
        next_coupling = tl.load(unit_row, mask=right, other=0.0)
        next_target = tl.load(
            targets + following * targets_stride + outputs, mask=inside, other=0.0
        )
        next_value = tl.load(errors + following * errors_stride + outputs, mask=inside, other=0.0)

        # [columns, 1] * [columns, outputs] -> [outputs]
        target += tl.sum(coupling[:, None] * settled, axis=0)
        # Far targets are brought to ±128 before rounding, which is exact only below 2^22. Every
        # comparison with NaN is false, so that NaN passes through all of these.
        near = tl.where(target > 128.0, 128.0, tl.where(target < -128.0, -128.0, target))
        rounded = (near + _ROUNDING_SHIFT) - _ROUNDING_SHIFT
        is_cut = tl.abs(rounded) > _LIMIT
        code = tl.where(is_cut, tl.where(rounded > 0.0, _LIMIT, -_LIMIT), rounded)
        saturated += is_cut.to(tl.int32)
        error = value - code
        settled = tl.where(columns[:, None] == column, error[None, :], settled)
        tl.store(errors + column * errors_stride + outputs, error, mask=inside)
        number = tl.where(code == code, code, 0.0)  # NaN has no integer
        tl.store(codes + column * codes_stride + outputs, number.to(tl.int8), mask=inside)
        coupling, target, value = next_coupling, next_target, next_value
    # A sum of integers: the same whichever program comes first.
    tl.atomic_add(num_saturated, tl.sum(saturated, axis=0))
