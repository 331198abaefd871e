"""How far the calibration tokens reach for a model."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from vacc_deploy.calibration.split import HELD_OUT_SHARE
from vacc_deploy.models.config import LAYER_LINEARS, ModelConfig

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows

# Fitted tokens for each input of the widest linear. A Hessian of about as many tokens as inputs is
# close to singular: the solver then fits the noise of these tokens.
MIN_TOKENS_PER_INPUT = 4


def _fit(config: ModelConfig, rows: CalibrationRows, rounded: Collection[str]) -> tuple[int, int]:
    """Return the fitted tokens, and the largest in_features of the linears that use them."""
    linears = [name for name in LAYER_LINEARS if name not in rounded]
    widest = max(in_features for _, in_features in map(config.linear_shape, linears))
    # tokens [rows, seq]; held-out rows add nothing to a Hessian.
    return rows.num_fit_rows * rows.tokens.shape[1], widest


def describe_calibration(
    config: ModelConfig, rows: CalibrationRows, rounded: Collection[str] = ()
) -> dict[str, Any]:
    """Return the calibration for the report, with how far its tokens reach for this model.

    Args:
        config: of the model.
        rows: to calibrate on.
        rounded: names in ``LAYER_LINEARS`` that are rounded without any Hessian.
    """
    fit_tokens, widest = _fit(config, rows, rounded)
    return rows.to_dict() | {
        "fit_tokens": fit_tokens,
        "widest_in_features": widest,
        "fit_tokens_per_in_feature": round(fit_tokens / widest, 2),
    }


def budget_warnings(
    config: ModelConfig, rows: CalibrationRows, rounded: Collection[str] = ()
) -> tuple[str, ...]:
    """Return one line where the fitted tokens are too few for the widest linear."""
    (fit_tokens, widest), sequence_length = _fit(config, rows, rounded), rows.tokens.shape[1]
    if fit_tokens >= MIN_TOKENS_PER_INPUT * widest:
        return ()
    fit_rows = MIN_TOKENS_PER_INPUT * widest / sequence_length
    # A tenth of each source's rows is held out, rounded, and at least one row.
    enough = math.ceil((fit_rows + len(rows.sources)) / (1 - HELD_OUT_SHARE))
    return (
        f"{fit_tokens:,} fitted tokens are {fit_tokens / widest:.1f} for each of the {widest:,} "
        f"inputs of the widest linear, fewer than {MIN_TOKENS_PER_INPUT}: the result follows this "
        "text's noise and may be worse than rounding on other text "
        f"(--num-samples {enough} of {sequence_length} tokens would do)",
    )
