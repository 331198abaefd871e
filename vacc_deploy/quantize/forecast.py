"""Predict the time and the memory of a run by running its own code on a sample.

The real quantizer works on the first layers with few rows, then with more of them, and its shards
are really written. A line through the two times gives what a layer takes with all rows. What the
rows themselves need is known exactly; the rest of the memory is what the samples needed. Nothing
here knows the steps of a layer, so a change of the quantizer changes the forecast with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.models.config import LAYER_LINEARS
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.quantize.compute import Compute
from vacc_deploy.quantize.layer_walk import num_original_rows
from vacc_deploy.quantize.options import FAST, QuantizeOptions
from vacc_deploy.quantize.result import Estimate
from vacc_deploy.quantize.row_buffers import DEVICE, DISK, HOST, choose_storage
from vacc_deploy.quantize.sample import (
    LONG_SECONDS,
    MAX_LAYERS,
    Measured,
    RowCounts,
    copy_seconds,
    run_sample,
)
from vacc_deploy.results import format_bytes
from vacc_deploy.system import (
    available_memory_bytes,
    peak_memory_bytes,
    resident_memory_bytes,
)

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows

# The larger sample has so many rows that a layer takes about this long, and at least twice those of
# the smaller one: the further apart the two are, the less a disturbance changes the line.
LARGE_LAYER_SECONDS = 4.0
# A Hessian, its permuted copy, its factor and the correction: less has no layer ever needed.
_LEAST_SQUARES = 4
_FLOAT_BYTES = 4

Measure = Callable[[RowCounts, int], Measured]


@dataclass(frozen=True)
class Plan:
    """A run that is planned.

    Attributes:
        checkpoint: the float weights.
        options: what the run is asked to do.
        rows: the calibration tokens; None for rounding.
        compute: the device and the precision.
        output_bytes: size of the weights in all formats.
        num_finished: layers that an interrupted run has left.
    """

    checkpoint: Checkpoint
    options: QuantizeOptions
    rows: CalibrationRows | None
    compute: Compute
    output_bytes: int
    num_finished: int = 0

    def spooled_bytes(self, num_ranks: int = 1, num_sharing: int = 1) -> int:
        """Return the bytes of the rows that will lie on the disk beside the output.

        Args:
            num_ranks: processes of the run; each has its share of the rows.
            num_sharing: those of them that share this machine's memory.
        """
        counts = self.row_counts().share(num_ranks)
        return self._row_bytes(counts, available_memory_bytes() // num_sharing).get(DISK, 0)

    def row_counts(self) -> RowCounts:
        """Return the rows of each kind; none for rounding."""
        if self.rows is None:
            return RowCounts(0, 0, 0)
        num_rows, num_fit_rows = len(self.rows.tokens), self.rows.num_fit_rows
        num_held_out = num_rows - num_fit_rows
        num_float = num_original_rows(
            self.checkpoint.config, self.options, num_fit_rows, num_held_out
        )
        return RowCounts(num_held_out, num_float, num_rows)

    def forecast(
        self,
        folder: Path,
        seconds_so_far: float,
        progress: Progress = SILENT,
        measure: Measure | None = None,
    ) -> tuple[Estimate, str]:
        """Return the memory and the time, and why there is no time, else an empty text.

        Args:
            folder: directory in the output's file system; a sample's shard lies there while it is
                written.
            seconds_so_far: what the preparation took, which the run needs too.
            progress: told of every layer.
            measure: runs a sample of so many rows and at most so many layers.

        Raises:
            QuantizationError: a weight or an activation of the sample is not finite.
        """
        # The first sample forgets the peak of the preparation.
        earlier_peak = peak_memory_bytes()
        lack = self._lack_of_memory()
        if lack:
            return self._least_memory(self.row_counts()), lack
        progress.start("Timing layers", 2 * MAX_LAYERS + 1, "layers")
        if measure is None:
            measure = partial(
                run_sample, self.checkpoint, self.options, self.rows, folder, progress
            )
        try:
            small, large = self._run_samples(measure)
        except torch.cuda.OutOfMemoryError:
            least = self._least_memory(self.row_counts())
            return least, "a layer of the model does not fit the device"
        finally:
            progress.finish()
        host, device = self._predict_memory((small, large), earlier_peak)
        seconds = {"preparation": seconds_so_far, **self.predict_seconds(small, large)}
        copying = copy_seconds(self.checkpoint, len(self.options.formats), folder)
        if self.compute.device.type != "cpu":
            # There it goes on beside the layers, and costs only what is left after the last.
            copying = max(0.0, copying - sum(seconds.values()))
        return Estimate(host, device, seconds | {"copied tensors": copying}), ""

    def _run_samples(self, measure: Measure) -> tuple[Measured, Measured]:
        """Return a small and a large sample with the kinds of rows in the run's proportions."""
        counts = self.row_counts()
        share = counts.least_share(self._batch_rows)
        few = counts.scale(share)
        small = measure(few, 1)
        if small.layer < LONG_SECONDS:
            small = measure(few, MAX_LAYERS)
        many = counts.scale(share * max(2.0, LARGE_LAYER_SECONDS / max(small.layer, 1e-9)))
        return small, small if many == few else measure(many, MAX_LAYERS)

    @property
    def _batch_rows(self) -> int:
        """Rows of one matrix product."""
        return max(1, self.compute.batch_tokens // self.options.sequence_length)

    def predict_seconds(self, small: Measured, large: Measured) -> dict[str, float]:
        """Return the seconds of all layers by kind of work, on the line through two samples."""
        counts, config = self.row_counts(), self.checkpoint.config

        def extend(few: float, many: float) -> float:
            run = large.rows.num_passes - small.rows.num_passes
            # More rows never take less time: a falling line is a disturbance.
            slope = max(0.0, many - few) / run if run else 0.0
            return many + slope * (counts.num_passes - large.rows.num_passes)

        forward = extend(small.forward, large.forward)
        layer = extend(small.layer, large.layer) + forward * self._repeated_share()
        seconds = {"layers": (config.num_hidden_layers - self.num_finished) * layer}
        if large.rows.num_passes:
            seconds["embedding"] = large.start * counts.num_passes / large.rows.num_passes
        if self.num_finished:
            seconds["carrying finished layers"] = self.num_finished * forward
        return seconds

    def _repeated_share(self) -> float:
        """Return the share of a layer's products that is computed twice.

        A sample keeps all inputs of down_proj; a run may have too many, and computes gate and up
        again for the others.
        """
        inner = self._inner_bytes(self.row_counts())
        if inner == 0:
            return 0.0
        sizes = {name: self._num_weights(name) for name in LAYER_LINEARS}
        gate_up = (sizes["gate_proj"] + sizes["up_proj"]) / sum(sizes.values())
        return gate_up * (1 - self._kept_bytes(self.row_counts()) / inner)

    def _num_weights(self, linear: str) -> int:
        out_features, in_features = self.checkpoint.config.linear_shape(linear)
        return out_features * in_features

    def _predict_memory(
        self, samples: tuple[Measured, ...], earlier_peak: int
    ) -> tuple[dict[str, int], dict[str, int] | None]:
        """Return what the host and, where it is another, the device will hold at most."""
        device = None
        if self.compute.device.type != "cpu":
            device = self._with_rows({}, samples, DEVICE)
        host = {"process": resident_memory_bytes()}
        host = self._with_rows(host, samples, HOST)
        missing = earlier_peak - sum(host.values())
        return host | ({"preparation": missing} if missing > 0 else {}), device

    def _with_rows(
        self, memory: dict[str, int], samples: tuple[Measured, ...], storage: str
    ) -> dict[str, int]:
        """Add what the layers need besides the rows, and the rows of the whole run."""
        is_device, rest = storage == DEVICE, 0
        has_inner = is_device or self.compute.device.type == "cpu"
        for sample in samples:
            peak = sample.device_peak if is_device else sample.host_peak
            rows = self._row_bytes(sample.rows).get(storage, 0)
            rest = max(rest, peak - rows - (self._kept_bytes(sample.rows) if has_inner else 0))
        counts = self.row_counts()
        return {
            **memory,
            "layers": max(0, rest - sum(memory.values())),
            "rows": self._row_bytes(counts).get(storage, 0),
            "kept inputs of down": self._kept_bytes(counts) if has_inner else 0,
        }

    def _row_bytes(self, counts: RowCounts, host_available: int | None = None) -> dict[str, int]:
        """Return the bytes of the row buffers by storage, in the order in which they are made."""
        config, device_free = self.checkpoint.config, self.compute.free_memory_bytes()
        host = available_memory_bytes() if host_available is None else host_available
        attended = config.linear_shape("o_proj")[1]
        found = dict[str, int]()
        for num_rows, features in (
            (counts.num_rows, config.hidden_size),
            (counts.num_float, config.hidden_size),
            (counts.num_rows, attended),
        ):
            num_values = num_rows * self.options.sequence_length * features
            num_bytes = num_values * self.compute.dtype.itemsize
            storage = choose_storage(num_bytes, device_free, host)
            found[storage] = found.get(storage, 0) + num_bytes
            if storage == DEVICE and device_free is not None:
                device_free -= num_bytes
            elif storage == HOST:
                host -= num_bytes
        return found

    def _inner_bytes(self, counts: RowCounts) -> int:
        """Return the bytes of all inputs of down_proj; 0 where it is not calibrated."""
        if self.options.effort == FAST:
            return 0
        values = counts.num_rows * self.options.sequence_length
        values *= self.checkpoint.config.intermediate_size
        return values * self.compute.dtype.itemsize

    def _kept_bytes(self, counts: RowCounts) -> int:
        """Return the bytes of those that are kept between their two uses."""
        hessian = _FLOAT_BYTES * self.checkpoint.config.intermediate_size**2
        return min(self._inner_bytes(counts), max(0, self.compute.kept_bytes - hessian))

    def _least_memory(self, counts: RowCounts) -> Estimate:
        """Return what a run with these rows needs at least, without running anything."""
        config, is_cpu = self.checkpoint.config, self.compute.device.type == "cpu"
        stored = sum(self.checkpoint.info(name).num_bytes for name in config.layer_tensors(0))
        linears = LAYER_LINEARS[:-1] if self.options.effort == FAST else LAYER_LINEARS
        widest = max(config.linear_shape(name)[1] for name in linears)
        rows = self._row_bytes(counts)
        layers = 2 * stored + _LEAST_SQUARES * _FLOAT_BYTES * widest**2
        host = {"process": resident_memory_bytes(), "rows": rows.get(HOST, 0)}
        if is_cpu:
            return Estimate(host | {"layers": layers})
        return Estimate(host, {"layers": layers, "rows": rows.get(DEVICE, 0)})

    def _lack_of_memory(self) -> str:
        """Return why not even the smallest sample fits, else an empty text."""
        if self.rows is None:
            return ""
        counts = self.row_counts()
        least = self._least_memory(counts.scale(counts.least_share(self._batch_rows)))
        where, free = "memory", available_memory_bytes()
        needed = sum((least.memory or {}).values()) - resident_memory_bytes()
        device_free = self.compute.free_memory_bytes()
        if least.device_memory is not None and device_free is not None:
            where, needed, free = "device memory", sum(least.device_memory.values()), device_free
        if needed <= free:
            return ""
        return (
            f"one layer needs at least {format_bytes(needed)} of {where}, and "
            f"{format_bytes(free)} are free"
        )
