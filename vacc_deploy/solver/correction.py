"""Let a linear make up for what the quantized layers before it have changed in its inputs.

A quantized layer's error is a fixed linear map of its inputs, so part of it can be predicted from
what comes out, and a later linear can take it back. With x̂ the inputs behind quantized layers and
x those behind float ones, the weight W(I + α·G) sees x̂ and gives nearly what W gives for x, where G
is the ridge regression of x − x̂ on x̂.

Source: the asymmetric calibration of GPTAQ (arXiv 2504.02692), here with shrinkage and with α
chosen on held-out tokens, without which it fits noise.
"""

from __future__ import annotations

import torch

from vacc_deploy.solver.hessian import shrink_to_diagonal
from vacc_deploy.solver.precision import float32_products

# More than the solver's defaults of 0.3 and 0.1: these sums see only tokens with a float stream.
SHRINKAGE = 0.5
DAMPENING_FRAC = 0.3
# Share of the strength that fits best: every linear of a layer corrects, and together they
# overshoot.
STRENGTH = 0.75


def regress_shift(hessian: torch.Tensor, cross: torch.Tensor) -> torch.Tensor | None:
    """Return G, so that x̂·G is the regression of x − x̂ on x̂.

    Args:
        hessian: float32 [in, in], Σ x̂ᵀx̂, full and symmetric; changed in place.
        cross: float32 [in, in], Σ x̂ᵀ(x − x̂) over the same tokens.

    Returns:
        float32 [in, in], or None where the Hessian cannot be factored.
    """
    shrink_to_diagonal(hessian, SHRINKAGE)
    diagonal = hessian.diagonal()
    diagonal.add_(DAMPENING_FRAC * float(diagonal.mean()))
    with float32_products(hessian.device):
        factor, info = torch.linalg.cholesky_ex(hessian)
        if int(info):
            return None
        # (Σ x̂ᵀx̂)⁻¹ · Σ x̂ᵀ(x − x̂), the first sum shrunk and damped: [in, in]
        return torch.cholesky_solve(cross, factor)


def correct(weight: torch.Tensor, correction: torch.Tensor) -> torch.Tensor:
    """Return W·Gᵀ, [out, in] float32, to three digits: a correction needs no more."""
    with float32_products(weight.device, "tf32"):
        return weight @ correction.T


def choose_strength(wanted: torch.Tensor, inputs: torch.Tensor, shift: torch.Tensor) -> float:
    """Return α: ``STRENGTH`` of what fits held-out tokens best, itself within 0 to 1.

    Args:
        wanted: (x − x̂)·Wᵀ of held-out tokens, [tokens, out].
        inputs: x̂ of the same tokens, [tokens, in].
        shift: W·Gᵀ, [out, in].
    """
    given = (inputs @ shift.to(inputs.dtype).T).float()  # [tokens, out]
    energy = torch.linalg.vector_norm(given).item() ** 2
    product = (given * wanted).sum().item()
    # True also for NaN, and without any held-out token.
    if not energy > 0:
        return 0.0
    # Least squares: α = ⟨given, wanted⟩ / ‖given‖².
    return STRENGTH * min(max(product / energy, 0.0), 1.0)
