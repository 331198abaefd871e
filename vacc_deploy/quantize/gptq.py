"""GPTQ as Babai's nearest-plane algorithm: one Cholesky factor, no inverse.

Source: GPTQ (arXiv 2210.17323); its equality with the nearest plane run from the last column to
the first (arXiv 2507.18553). With the Hessian H = RᵀR, R upper triangular, the squared output error
of codes q is the squared length of R(w − s·q), and the rows of R are settled from the last to the
first. The same integers as the textbook blocked GPTQ with the columns in reverse order.

Pure functions on tensors: no paths, no model names, no logging.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vacc_deploy.errors import QuantizationError
from vacc_deploy.quantize.int8 import INT8_MAX

DAMPENING_LADDER = (0.01, 0.1, 1.0)
_HESSIAN_BLOCK = 1024
_LEAF_COLUMNS = 16


@dataclass(frozen=True)
class Factor:
    """What the solver needs of a Hessian.

    Attributes:
        unit_rows: the rows of the upper Cholesky factor divided by their diagonal, float
            [in_features, in_features], columns in solving order.
        order: the permutation of the columns, int64 [in_features], or None for their own order.
        dampening_frac: the damping that let the factorisation succeed, a fraction of the mean
            diagonal.
    """

    unit_rows: torch.Tensor
    order: torch.Tensor | None
    dampening_frac: float


@dataclass(frozen=True)
class Solution:
    """The codes of one weight, int8 [out, in], and how many were cut at ±127."""

    codes: torch.Tensor
    num_saturated: int


def accumulate_hessian(hessian: torch.Tensor, inputs: torch.Tensor) -> None:
    """Add ``inputsᵀ · inputs`` to the upper triangle of ``hessian``, in place.

    Only blocks on and above the diagonal are computed; what lies below is undefined until
    ``mirror_upper``.

    Args:
        hessian: float [in_features, in_features].
        inputs: float [num_tokens, in_features].
    """
    size = hessian.shape[0]
    for start in range(0, size, _HESSIAN_BLOCK):
        stop = min(start + _HESSIAN_BLOCK, size)
        hessian[start:stop, start:].addmm_(inputs[:, start:stop].T, inputs[:, start:])


def mirror_upper(hessian: torch.Tensor) -> None:
    """Copy the upper triangle of ``hessian`` below the diagonal, in place."""
    size = hessian.shape[0]
    for start in range(0, size, _HESSIAN_BLOCK):
        stop = min(start + _HESSIAN_BLOCK, size)
        block = hessian[start:stop, start:stop]
        block.copy_(block.triu() + block.triu(1).T)
        hessian[stop:, start:stop] = hessian[start:stop, stop:].T


def factorize(
    hessian: torch.Tensor,
    *,
    act_order: bool = False,
    ladder: tuple[float, ...] = DAMPENING_LADDER,
) -> Factor | None:
    """Factor a full symmetric Hessian; raise the damping until it succeeds.

    Args:
        hessian: float [in_features, in_features]; its diagonal is damped in place.
        act_order: settle the columns with the largest diagonal first.
        ladder: damping to try, as fractions of the mean diagonal.

    Returns:
        the factor, or None when even the last damping fails (an all-zero Hessian).

    Raises:
        QuantizationError: the Hessian holds NaN or infinity.
    """
    diagonal = hessian.diagonal()
    if not torch.isfinite(diagonal).all():
        raise QuantizationError("the activations hold NaN or infinity")
    order = None
    if act_order:
        # Solved from the last column to the first: ascending puts the largest first in line.
        order = torch.argsort(diagonal, stable=True)
        hessian = hessian[order][:, order]
        diagonal = hessian.diagonal()
    mean = float(diagonal.mean())
    applied = 0.0
    for fraction in ladder:
        diagonal.add_((fraction - applied) * mean)
        applied = fraction
        factor, info = torch.linalg.cholesky_ex(hessian, upper=True)
        if int(info) == 0:
            factor.div_(factor.diagonal().clone()[:, None])
            return Factor(factor, order, fraction)
    return None


def solve(
    weight: torch.Tensor,
    scale: torch.Tensor,
    factor: Factor,
    *,
    leaf_columns: int = _LEAF_COLUMNS,
) -> Solution:
    """Return the codes that nearest-plane rounding gives ``weight``.

    In units of the scale, v = w / s and e = v − q for settled columns:
    q_j = clamp(round(v_j + Σ_{k>j} U_jk · e_k)), with U the unit rows of the factor.

    Args:
        weight: float [out_features, in_features], of the factor's dtype.
        scale: [out_features], as it will be stored.
        factor: from ``factorize`` on the Hessian of this weight's inputs.
        leaf_columns: columns settled one by one; everything else is matrix products.
    """
    if factor.order is not None:
        weight = weight[:, factor.order]
    errors = (weight / scale.to(weight.dtype)[:, None]).T.contiguous()  # [in, out]; v, then e
    codes = torch.empty(errors.shape, dtype=torch.int8, device=errors.device)
    targets = errors.clone()
    saturated = _settle(factor.unit_rows, targets, errors, codes, leaf_columns)
    if factor.order is None:
        return Solution(codes.T.contiguous(), saturated)
    restored = torch.empty_like(codes)
    restored[factor.order] = codes
    return Solution(restored.T.contiguous(), saturated)


def _settle(
    unit_rows: torch.Tensor,
    targets: torch.Tensor,
    errors: torch.Tensor,
    codes: torch.Tensor,
    leaf_columns: int,
) -> int:
    """Settle all columns of a block from the last to the first; return the saturated codes.

    Right half first; its errors then move the targets of the left half in one product.

    Args:
        unit_rows: [n, n] block on the diagonal.
        targets: [n, out], v plus what settled columns further right add to it.
        errors: [n, out], v on entry, v − q on return.
        codes: int8 [n, out], filled.
        leaf_columns: see ``solve``.
    """
    size = targets.shape[0]
    if size <= leaf_columns:
        return _settle_leaf(unit_rows, targets, errors, codes)
    half = size // 2
    right = _settle(
        unit_rows[half:, half:], targets[half:], errors[half:], codes[half:], leaf_columns
    )
    targets[:half].addmm_(unit_rows[:half, half:], errors[half:])
    left = _settle(
        unit_rows[:half, :half], targets[:half], errors[:half], codes[:half], leaf_columns
    )
    return right + left


def _settle_leaf(
    unit_rows: torch.Tensor, targets: torch.Tensor, errors: torch.Tensor, codes: torch.Tensor
) -> int:
    """Settle a few columns one by one; see ``_settle``."""
    size = targets.shape[0]
    for column in range(size - 1, -1, -1):
        target = targets[column]
        if column + 1 < size:
            target.addmv_(errors[column + 1 :].T, unit_rows[column, column + 1 :])
        target.round_()
        errors[column].sub_(target.clamp(-INT8_MAX, INT8_MAX))
    codes.copy_(targets.clamp(-INT8_MAX, INT8_MAX))
    return int((targets.abs() > INT8_MAX).sum())
