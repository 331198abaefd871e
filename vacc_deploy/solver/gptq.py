"""GPTQ as Babai's nearest-plane algorithm: one Cholesky factor, no inverse.

Source: GPTQ (arXiv 2210.17323); its equality with the nearest plane run from the last column to
the first (arXiv 2507.18553). With the Hessian H = RᵀR, R upper triangular, the squared output error
of codes q is the squared length of R(w − s·q), and the columns are solved from the last to the
first. The same integers as the textbook blocked GPTQ with the columns in reverse order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vacc_deploy.errors import QuantizationError
from vacc_deploy.formats.int8 import INT8_MAX
from vacc_deploy.solver.block import Block, BlockSolver
from vacc_deploy.solver.hessian import HESSIAN_BLOCK, shrink_to_diagonal
from vacc_deploy.solver.precision import can_run_triton, float32_products

_LEAF_COLUMNS = 16


@dataclass(frozen=True)
class Factor:
    """What the solver needs of a Hessian.

    Attributes:
        unit_rows: the rows of the upper Cholesky factor divided by their diagonal, float
            [in_features, in_features], columns in solving order.
        order: the permutation of the columns, int64 [in_features], or None for their own order.
        dampening_frac: the dampening that let the factorisation succeed, a fraction of the mean
            diagonal.
        column_cost: what a unit of rounding error in each column costs once all columns that are
            solved later have made up for it: the squared diagonal of the factor, float
            [in_features], columns in their own order.
    """

    unit_rows: torch.Tensor
    order: torch.Tensor | None
    dampening_frac: float
    column_cost: torch.Tensor


@dataclass(frozen=True)
class Solution:
    """The codes of one weight, int8 [out, in], and how many were cut at ±127."""

    codes: torch.Tensor
    num_saturated: int


def factorize(
    hessian: torch.Tensor,
    dampening_frac: float,
    *,
    act_order: bool = False,
    shrinkage: float = 0.0,
) -> Factor | None:
    """Factor a full symmetric Hessian; raise the dampening tenfold, up to 1.0, until it succeeds.

    Args:
        hessian: float [in_features, in_features]; used up: its memory may hold the factor.
        dampening_frac: the first dampening to try, a fraction of the mean diagonal.
        act_order: solve the columns with the largest diagonal first.
        shrinkage: see ``shrink_to_diagonal``, 0 to 1.

    Returns:
        the factor, or None when even the last dampening fails (an all-zero Hessian).

    Raises:
        QuantizationError: the Hessian holds NaN or infinity.
    """
    diagonal = hessian.diagonal()
    # Σ x² of each column: a NaN or infinite input shows here, without a look at all n² sums.
    if not torch.isfinite(diagonal).all():
        raise QuantizationError("the activations hold NaN or infinity")
    # Leaves the diagonal as it is, so order and mean are the same before and after.
    shrink_to_diagonal(hessian, shrinkage)
    order, spare = None, None
    if act_order:
        # Solved from the last column to the first: ascending puts the largest first in line.
        order = torch.argsort(diagonal, stable=True)
        # The factor takes the memory of the matrix that is not needed any more.
        hessian, spare = permute(hessian, order), hessian
        diagonal = hessian.diagonal()
    mean = float(diagonal.mean())
    applied = 0.0
    while applied < 1.0:
        # What was added before stays: only the rest comes on top of it.
        fraction = min(10 * applied, 1.0) if applied else dampening_frac
        diagonal.add_((fraction - applied) * mean)
        applied = fraction
        factor, info = _factor_upper(hessian, spare)
        if int(info) == 0:
            # A copy: the division turns the factor's own diagonal into ones.
            unit = factor.diagonal().clone()
            factor.div_(unit[:, None])
            return Factor(factor, order, fraction, restore(unit.square(), order))
    return None


def permute(matrix: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Return the rows and columns of a square matrix in ``order``, with one copy in memory."""
    permuted = torch.empty_like(matrix)
    for start in range(0, len(order), HESSIAN_BLOCK):
        rows = order[start : start + HESSIAN_BLOCK]
        # [block, in]: one block of rows is copied at a time, where matrix[order] would copy all n².
        torch.index_select(matrix[rows], 1, order, out=permuted[start : start + HESSIAN_BLOCK])
    return permuted


def restore(values: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """Return values [in_features, ...] that are in solving order in their own order."""
    if order is None:
        return values
    restored = torch.empty_like(values)
    # order[i] is the own column of row i: this undoes weight[:, order].
    restored[order] = values
    return restored


def _factor_upper(
    hessian: torch.Tensor, spare: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the upper Cholesky factor, in ``spare`` if given, and LAPACK's info, 0 for success.

    torch stores factors by columns. The solver reads rows, which are those of the lower factor's
    transpose: the same numbers, adjacent.
    """
    factor = torch.empty_like(hessian) if spare is None else spare
    info = torch.empty((), dtype=torch.int32, device=hessian.device)
    with float32_products(hessian.device):
        torch.linalg.cholesky_ex(hessian, out=(factor.mT, info))
    return factor, info


def choose_block_solver(device: torch.device, dtype: torch.dtype) -> BlockSolver:
    """Return the fused kernel for float32 on CUDA where Triton runs, else the loop in torch."""
    if device.type == "cuda" and dtype == torch.float32 and can_run_triton():
        from vacc_deploy.solver.triton_kernel import MAX_COLUMNS, solve_block

        return BlockSolver(MAX_COLUMNS, solve_block, is_aligned=True)
    return BlockSolver(_LEAF_COLUMNS, settle_leaf)


def solve(
    weight: torch.Tensor,
    scale: torch.Tensor,
    factor: Factor,
    *,
    block_solver: BlockSolver | None = None,
) -> Solution:
    """Return the codes that nearest-plane rounding gives ``weight``, on the device of ``weight``.

    In units of the scale, v = w / s and e = v − q for solved columns:
    q_j = clamp(round(v_j + Σ_{k>j} U_jk · e_k)), with U the unit rows of the factor.

    Args:
        weight: float [out_features, in_features]; computed in the factor's dtype.
        scale: [out_features], as it will be stored.
        factor: from ``factorize`` on the Hessian of this weight's inputs, on the same device.
        block_solver: what solves the columns of a block one by one; everything else is matrix
            products. None is what suits the device.

    Raises:
        QuantizationError: an output met NaN on the way; the error has the row.
    """
    unit_rows = factor.unit_rows
    solver = block_solver or choose_block_solver(unit_rows.device, unit_rows.dtype)
    if factor.order is not None:
        weight = weight[:, factor.order]  # [out, in], columns in solving order
    # [in, out]; v, then e
    errors = (weight.to(unit_rows.dtype) / scale.to(unit_rows)[:, None]).T.contiguous()
    block = Block(
        unit_rows,
        targets=errors.clone(),
        errors=errors,
        codes=torch.empty(errors.shape, dtype=torch.int8, device=errors.device),
        num_saturated=torch.zeros(1, dtype=torch.int32, device=errors.device),
    )
    with float32_products(errors.device):
        _solve_columns(block, solver)
    _require_numbers(errors[0])
    codes = restore(block.codes, factor.order).T.contiguous()  # [out, in]
    return Solution(codes, int(block.num_saturated))


def _require_numbers(last_errors: torch.Tensor) -> None:
    """Raise where the errors [out] of the column solved last are NaN: it meets all others'."""
    is_nan = torch.isnan(last_errors)
    if is_nan.any():
        raise QuantizationError(
            "became NaN while it was solved: its weights, its scale or the factor of the Hessian "
            "hold NaN or infinity",
            row=int(is_nan.nonzero()[0]),
        )


def _solve_columns(block: Block, solver: BlockSolver) -> None:
    """Solve all columns of a block of any width, from the last to the first."""
    size = len(block.targets)
    if size <= solver.max_columns:
        solver.solve(block)
        return
    half = size // 2
    if solver.is_aligned:
        # Only the last block is narrower than the others: each width is a kernel to compile.
        half = -(-half // solver.max_columns) * solver.max_columns
    left, right = block.columns(0, half), block.columns(half, size)
    # The errors of the right half are final before they move the targets of the left, in one
    # product: [left, right] @ [right, out].
    _solve_columns(right, solver)
    left.targets.addmm_(block.unit_rows[:half, half:], right.errors)
    _solve_columns(left, solver)


def settle_leaf(block: Block) -> None:
    """Solve a few columns one by one, in torch."""
    size = len(block.targets)
    for column in range(size - 1, -1, -1):
        target = block.targets[column]
        if column + 1 < size:
            # [out, columns solved] @ [columns solved]
            coupling = block.unit_rows[column, column + 1 :]
            target.addmv_(block.errors[column + 1 :].T, coupling)
        target.round_()
        # The error of the code after the cut: what a cut loses goes on to the columns left of it.
        block.errors[column].sub_(target.clamp(-INT8_MAX, INT8_MAX))
    block.codes.copy_(block.targets.clamp(-INT8_MAX, INT8_MAX))
    # In place: the count is shared with the blocks beside this one.
    block.num_saturated.add_((block.targets.abs() > INT8_MAX).sum())
