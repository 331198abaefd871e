"""Choose the scale of each row by its cost after the solver: finer steps against cut weights."""

from __future__ import annotations

import torch

from vacc_deploy.formats.int8 import INT8_MAX, SCALE_DTYPE, SMALLEST_SCALE

# Shrunk by more, more than the largest weights of a row are cut: the estimate below ends there.
MAX_SHRINK = 0.2
# A step is 1 % of absmax / 127.
_STEPS = 20
# Weights of a row that are looked at: a smaller scale may cut all of them but the last.
_LARGEST = 16


def search_scale(
    weight: torch.Tensor, scale: torch.Tensor, column_cost: torch.Tensor
) -> torch.Tensor:
    """Return the scale of each row with the smallest expected output error.

    With the scale s, rounding costs s²/12 · Σ_j c_j, where c_j is what an error in column j costs
    after the columns solved later have made up for it (the squared diagonal of the Cholesky
    factor); weights beyond 127·s cost c_j · (|w_j| − 127·s)². Only the few largest weights of a row
    can be cut, so that one look at them serves all scales.

    Args:
        weight: float32 [out_features, in_features].
        scale: float16 [out_features], absmax / 127.
        column_cost: float32 [in_features], of ``Factor``.

    Returns:
        float16 [out_features], between ``1 - MAX_SHRINK`` times ``scale`` and ``scale``; that of
        an all-zero row as it was.
    """
    count = min(_LARGEST, weight.shape[1])
    largest, columns = weight.abs().topk(count, dim=1)  # both [out, count]
    cost = column_cost[columns]  # [in] -> [out, count]
    # 1/12: the variance of an error that is uniform over one step.
    rounding = column_cost.sum() / 12
    # Below the last one of those looked at, others might be cut too.
    floor = largest[:, -1] / INT8_MAX
    # Of a row of zeros nothing is cut and nothing rounded, whatever its scale.
    is_zero = largest[:, 0] == 0
    best_scale, best_cost = scale.clone(), torch.full_like(floor, torch.inf)
    for step in range(_STEPS + 1):
        # Rated as it will be stored: rounded to float16, and above 0.
        tried = (scale.float() * (1 - MAX_SHRINK * step / _STEPS)).to(SCALE_DTYPE)
        tried = tried.clamp_min(SMALLEST_SCALE)
        width = tried.float()
        # [out, count] − [out, 1]: how far each weight lies beyond 127 steps.
        cut = (largest - INT8_MAX * width[:, None]).clamp_min_(0)
        total = rounding * width.square() + (cut.square_() * cost).sum(1)
        # Step 0 always: rounding to float16 may bring absmax / 127 itself below the floor.
        is_allowed = ((width >= floor) & ~is_zero) | (step == 0)
        is_better = (total < best_cost) & is_allowed
        best_scale = torch.where(is_better, tried, best_scale)
        best_cost = torch.where(is_better, total, best_cost)
    return best_scale
