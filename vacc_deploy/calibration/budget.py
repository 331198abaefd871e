"""How far the calibration tokens reach for a model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from vacc_deploy.calibration.split import HELD_OUT_SHARE
from vacc_deploy.models.config import LAYER_LINEARS, ModelConfig

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows

# Fitted tokens for each input of the widest linear. A Hessian of about as many tokens as inputs is
# close to singular: the solver then fits the noise of these tokens.
MIN_TOKENS_PER_INPUT = 4


def _fit(config: ModelConfig, rows: CalibrationRows) -> tuple[int, int]:
    """Return the fitted tokens, and the largest in_features of a layer's linears."""
    widest = max(in_features for _, in_features in map(config.linear_shape, LAYER_LINEARS))
    # tokens [rows, seq]; held-out rows add nothing to a Hessian.
    return rows.num_fit_rows * rows.tokens.shape[1], widest


def describe_calibration(config: ModelConfig, rows: CalibrationRows) -> dict[str, Any]:
    """Return the calibration for the report, with how far its tokens reach for this model."""
    fit_tokens, widest = _fit(config, rows)
    return rows.to_dict() | {
        "fit_tokens": fit_tokens,
        "widest_in_features": widest,
        "fit_tokens_per_in_feature": round(fit_tokens / widest, 2),
    }


def budget_warnings(config: ModelConfig, rows: CalibrationRows) -> tuple[str, ...]:
    """Return one line where the fitted tokens are too few for the widest linear."""
    (fit_tokens, widest), sequence_length = _fit(config, rows), rows.tokens.shape[1]
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
