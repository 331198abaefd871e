"""What decides the time and the memory of a calibrated run, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.models.config import LAYER_LINEARS, ModelConfig, linear_name
from vacc_deploy.quantize.compute import Compute
from vacc_deploy.quantize.layer_walk import num_original_rows
from vacc_deploy.quantize.options import FAST, QuantizeOptions

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows


@dataclass(frozen=True)
class Workload:
    """The rows of a run, and how they are computed.

    Attributes:
        config: the architecture.
        compute: the device, the precision, and how much is computed at a time.
        weight_bytes: of one stored weight.
        sequence_length: tokens of a row.
        num_held_out: rows that no Hessian sees; they come first.
        num_original: rows that go through the float layers too, the held-out ones among them;
            0 without a float stream.
        num_rows: all of them.
        act_order: the columns are permuted.
        with_down: down_proj is calibrated.
    """

    config: ModelConfig
    compute: Compute
    weight_bytes: int
    sequence_length: int
    num_held_out: int
    num_original: int
    num_rows: int
    act_order: bool = True
    with_down: bool = True

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        options: QuantizeOptions,
        rows: CalibrationRows,
        compute: Compute,
    ) -> Workload:
        """Return the workload of a run with these options and rows."""
        config, (num_rows, sequence_length) = checkpoint.config, rows.tokens.shape
        weight = checkpoint.info(f"{linear_name(0, LAYER_LINEARS[0])}.weight")
        return cls(
            config,
            compute,
            weight.num_bytes // (weight.shape[0] * weight.shape[1]),
            sequence_length,
            rows.num_held_out,
            num_original_rows(config, options, rows.num_fit_rows, rows.num_held_out),
            num_rows,
            options.act_order,
            options.effort != FAST,
        )

    def shorten(self, num_batches: int) -> Workload:
        """Return the same with at most one batch held out and ``num_batches`` of each other kind.

        Kinds of rows that the run has none of stay away.
        """
        held_out = min(self.num_held_out, self.batch_rows)
        most = num_batches * self.batch_rows
        fit_original = min(max(self.num_original - self.num_held_out, 0), most)
        plain = min(self.num_plain, most)
        original = held_out + fit_original if self.num_original else 0
        total = held_out + fit_original + plain
        return replace(self, num_held_out=held_out, num_original=original, num_rows=total)

    def share(self, num_ranks: int) -> Workload:
        """Return the share of the first of ``num_ranks`` processes, which has the most rows."""
        held_out, original, total = (
            -(-count // num_ranks)
            for count in (self.num_held_out, self.num_original, self.num_rows)
        )
        return replace(self, num_held_out=held_out, num_original=original, num_rows=total)

    @property
    def batch_rows(self) -> int:
        """Rows of one matrix product."""
        return max(1, self.compute.batch_tokens // self.sequence_length)

    @property
    def num_plain(self) -> int:
        """Fitted rows without a float stream."""
        return self.num_rows - max(self.num_original, self.num_held_out)

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the quantized layers."""
        return self.num_rows * self.sequence_length

    @property
    def num_original_tokens(self) -> int:
        """Tokens that go through the float layers."""
        return self.num_original * self.sequence_length

    @property
    def inner_bytes(self) -> int:
        """Bytes of all inputs of down_proj."""
        return self.num_tokens * self.config.intermediate_size * self.compute.dtype.itemsize

    @property
    def kept_inner_bytes(self) -> int:
        """Bytes of inputs of down_proj that may be kept; its Hessian takes its part of the room."""
        return max(0, self.compute.kept_bytes - 4 * self.config.intermediate_size**2)

    @property
    def repeated_share(self) -> float:
        """Share of the tokens for which gate and up are computed twice, 0 to 1."""
        if not self.with_down:
            return 0.0
        return 1 - min(1.0, self.kept_inner_bytes / self.inner_bytes)
