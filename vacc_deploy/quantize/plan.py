"""What a quantization is asked to do and what it will need, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.errors import UsageError
from vacc_deploy.model_config import LAYER_LINEARS, linear_name
from vacc_deploy.quantize.formats import FORMATS, INT8, stored_linear_bytes
from vacc_deploy.quantize.report import GPTQ, RTN

if TYPE_CHECKING:
    from vacc_deploy.calibration.sources import CalibrationSource

HELD_OUT_SHARE = 0.1
BATCH_TOKENS = 2048
KEPT_BYTES = 2 << 30
_RUNTIME_BYTES = 400 << 20


@dataclass(frozen=True)
class QuantizeOptions:
    """What shapes the result of ``quantize``.

    Attributes:
        method: ``gptq`` (needs sources) or ``rtn``.
        sources: calibration files, mixed by weight.
        num_samples: calibration rows.
        sequence_length: tokens of a row.
        seed: of the sampling.
        act_order: settle the columns with the largest inputs first.
        formats: the layouts to write, each once.
    """

    method: str
    sources: tuple[CalibrationSource, ...] = ()
    num_samples: int = 128
    sequence_length: int = 2048
    seed: int = 0
    act_order: bool = True
    formats: tuple[str, ...] = (INT8,)

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            UsageError: says which.
        """
        are_known = set(self.formats) <= set(FORMATS)
        if not self.formats or not are_known or len(set(self.formats)) < len(self.formats):
            raise UsageError(
                f"The formats are {', '.join(self.formats) or 'none'}; expected one or more of "
                f"{', '.join(FORMATS)}, each once."
            )
        if self.method == GPTQ and not self.sources:
            raise UsageError(
                "--method gptq needs text to calibrate on: give --calibration NAME=PATH (c4, "
                "ceval, alpaca or text), or use --method rtn."
            )
        if self.method == RTN and self.sources:
            raise UsageError("--method rtn uses no calibration data. Leave --calibration out.")
        if self.method == GPTQ and self.num_samples < 2:
            raise UsageError(
                "--num-samples must be at least 2: one row in ten, and at least one, is held out "
                "to compare gptq with rounding."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the options for the report and the manifest."""
        if self.method == RTN:
            return {"method": RTN, "formats": list(self.formats)}
        return {
            "method": self.method,
            "formats": list(self.formats),
            "num_samples": self.num_samples,
            "sequence_length": self.sequence_length,
            "seed": self.seed,
            "act_order": self.act_order,
            "held_out_share": HELD_OUT_SHARE,
        }


def output_bytes(checkpoint: Checkpoint, layout: str) -> int:
    """Return the bytes of the weights that ``checkpoint`` will give in one format."""
    config, total = checkpoint.config, checkpoint.weight_bytes
    for layer in range(config.num_hidden_layers):
        for linear in LAYER_LINEARS:
            out_features, in_features = config.linear_shape(linear)
            stored = checkpoint.info(f"{linear_name(layer, linear)}.weight").num_bytes
            total += stored_linear_bytes(layout, out_features, in_features) - stored
    return total


def memory_bytes(checkpoint: Checkpoint, options: QuantizeOptions) -> int:
    """Return an estimate of the peak memory: one layer, never all of them."""
    config = checkpoint.config
    layer = sum(out * inp for out, inp in map(config.linear_shape, LAYER_LINEARS))
    if options.method == RTN:
        # Being rounded, waited for, and handed to the writers.
        return _RUNTIME_BYTES + 4 * layer
    tokens = options.num_samples * options.sequence_length
    width = max(config.intermediate_size, config.hidden_size)
    kept = tokens * config.intermediate_size * 4
    down = 4 * config.intermediate_size * config.hidden_size
    return (
        _RUNTIME_BYTES
        + 4 * tokens * config.hidden_size
        + (kept if kept <= KEPT_BYTES else 0)
        + 4 * 4 * BATCH_TOKENS * config.intermediate_size
        + (3 if options.act_order else 2) * 4 * width * width
        + 5 * down
        + layer
    )
