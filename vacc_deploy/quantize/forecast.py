"""Predict the time and the memory of a run by running its own code on a sample.

The real quantizer works on the first layers with few rows, then with more of them, and its shards
are really written. A line through the two times gives what a layer takes with all rows. What the
rows themselves need is known exactly; the rest of the memory is what the samples needed. So a
change of the quantizer changes the forecast with it. The one thing that samples cannot show, since
it begins with many rows, is known here: which inputs of down_proj are held, and which made twice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.models.config import LAYER_LINEARS
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.quantize.compute import Compute
from vacc_deploy.quantize.layer_walk import num_float_rows
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
from vacc_deploy.system import available_memory_bytes, peak_memory_bytes, resident_memory_bytes

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows

# The large sample has so many rows that a layer takes about this long, and at least twice those of
# the small one: the further apart the two are, the less a disturbance turns the line.
LARGE_LAYER_SECONDS = 4.0
# No layer gets by with less: a Hessian, its permuted copy, its factor, the correction; float32.
_LEAST_BYTES_PER_SQUARE = 4 * 4

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
        return self._row_bytes(self.row_counts().share(num_ranks), num_sharing)[DISK]

    def row_counts(self) -> RowCounts:
        """Return the rows of each kind; none for rounding."""
        if self.rows is None:
            return RowCounts(0, 0, 0)
        config, num_held_out = self.checkpoint.config, self.rows.num_held_out
        num_float = num_float_rows(config, self.options, self.rows.num_fit_rows, num_held_out)
        return RowCounts(num_held_out, num_float, len(self.rows.tokens))

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
            progress: shows every layer.
            measure: runs a sample of so many rows and at most so many layers.

        Raises:
            QuantizationError: a weight or an activation of the sample is not finite.
        """
        # Before the first sample, which lets the peak begin again.
        resident, earlier_peak = resident_memory_bytes(), peak_memory_bytes()
        least = self._estimate_memory({self._workplace: self._least_layer_bytes()}, resident)
        problem = self._lack_of_memory()
        if problem:
            return least, problem
        if measure is None:
            source = self.checkpoint, self.options, self.rows
            measure = partial(run_sample, *source, folder=folder, progress=progress)
        progress.start("Timing layers", 2 * MAX_LAYERS + 1, "layers")
        try:
            small, large = self._run_samples(measure)
        except torch.cuda.OutOfMemoryError:
            return least, "a layer of the model does not fit the device"
        finally:
            progress.finish()
        layers = self._measured_layer_bytes(small, large)
        layers[HOST] -= resident
        memory = self._estimate_memory(layers, resident, earlier_peak)
        seconds = {"preparation": seconds_so_far, **self._predict_seconds(small, large)}
        copying = copy_seconds(self.checkpoint, len(self.options.formats), folder)
        if self._workplace == DEVICE:
            # There it goes on beside the layers, and costs what is left of it after the last one.
            copying = max(0.0, copying - seconds["layers"])
        return replace(memory, seconds=seconds | {"copied tensors": copying}), ""

    def _run_samples(self, measure: Measure) -> tuple[Measured, Measured]:
        """Return a small and a large sample with the kinds of rows in the run's proportions."""
        counts = self.row_counts()
        share = counts.least_share(self._batch_rows)
        few = counts.scale(share)
        # The first layer of all is slow, since libraries are loaded: it is done once more.
        small = measure(few, 1)
        if small.layer < LONG_SECONDS:
            small = measure(few, MAX_LAYERS)
        many = counts.scale(share * max(2.0, LARGE_LAYER_SECONDS / max(small.layer, 1e-9)))
        return small, small if many == few else measure(many, MAX_LAYERS)

    def _predict_seconds(self, small: Measured, large: Measured) -> dict[str, float]:
        """Return the seconds of all layers by kind of work, on the line through two samples."""
        num_passes, most = self.row_counts().num_passes, large.rows.num_passes

        def extend(few: float, many: float) -> float:
            # More rows never take less time: where they did, the machine was disturbed.
            slope = max(0.0, many - few) / max(1, most - small.rows.num_passes)
            return many + slope * (num_passes - most)

        forward = extend(small.forward, large.forward)
        layer = extend(small.layer, large.layer) + forward * self._repeated_share()
        seconds = {
            "layers": (self.checkpoint.config.num_hidden_layers - self.num_finished) * layer,
            "embedding": large.start * num_passes / max(1, most),
        }
        if self.num_finished:
            seconds["carrying finished layers"] = self.num_finished * forward
        return seconds

    def _repeated_share(self) -> float:
        """Return the share of the forward passes that a run does twice, and a sample does not.

        Inputs of down_proj that do not fit the memory for them are made by gate and up again.
        """
        counts, config = self.row_counts(), self.checkpoint.config
        inputs, held = self._down_bytes(counts)
        if not inputs:
            return 0.0
        sizes = {name: math.prod(config.linear_shape(name)) for name in LAYER_LINEARS}
        gate_up = (sizes["gate_proj"] + sizes["up_proj"]) / sum(sizes.values())
        # The float stream keeps none of them, and makes none again.
        return gate_up * (1 - held / inputs) * counts.num_rows / counts.num_passes

    @property
    def _workplace(self) -> str:
        return HOST if self.compute.device.type == "cpu" else DEVICE

    @property
    def _batch_rows(self) -> int:
        """Rows of one matrix product."""
        return max(1, self.compute.batch_tokens // self.options.sequence_length)

    def _estimate_memory(
        self, layers: Mapping[str, int], resident: int, earlier_peak: int = 0
    ) -> Estimate:
        """Return the memory of a run whose layers need so much by storage, besides its rows."""
        rows = self._row_bytes(self.row_counts())
        host, device = (
            {"layers": max(0, layers.get(storage, 0)), "rows": rows[storage]}
            for storage in (HOST, DEVICE)
        )
        host = {"process": resident, **host}
        # The run reads its calibration text too, which may be what needs most.
        host["preparation"] = max(0, earlier_peak - sum(host.values()))
        return Estimate(host, device if self._workplace == DEVICE else None)

    def _measured_layer_bytes(self, *samples: Measured) -> dict[str, int]:
        """Return the most that samples held by storage, the process included, their rows not."""
        rows = [self._row_bytes(sample.rows) for sample in samples]
        return {
            HOST: max(s.host_peak - r[HOST] for s, r in zip(samples, rows, strict=True)),
            DEVICE: max(s.device_peak - r[DEVICE] for s, r in zip(samples, rows, strict=True)),
        }

    def _row_bytes(self, counts: RowCounts, num_sharing: int = 1) -> Counter[str]:
        """Return by storage what grows with the rows: their buffers, and inputs of down_proj."""
        config, device_free = self.checkpoint.config, self.compute.free_memory_bytes()
        host_available = available_memory_bytes() // num_sharing
        found = Counter({self._workplace: self._down_bytes(counts)[1]})
        # In the order in which they are made: each leaves less for the next.
        for num_rows, features in (
            (counts.num_rows, config.hidden_size),
            (counts.num_float, config.hidden_size),
            (counts.num_rows, config.linear_shape("o_proj")[1]),
        ):
            num_bytes = self._state_bytes(num_rows, features)
            storage = choose_storage(num_bytes, device_free, host_available)
            found[storage] += num_bytes
            if storage == DEVICE and device_free is not None:
                device_free -= num_bytes
            elif storage == HOST:
                host_available -= num_bytes
        return found

    def _down_bytes(self, counts: RowCounts) -> tuple[int, int]:
        """Return the bytes of all inputs of down_proj, and of those held for their second use."""
        if self.options.effort == FAST:
            return 0, 0
        width = self.checkpoint.config.intermediate_size
        inputs = self._state_bytes(counts.num_rows, width)
        # Its Hessian, float32 [width, width], comes out of the same allowance.
        return inputs, min(inputs, max(0, self.compute.kept_bytes - 4 * width**2))

    def _state_bytes(self, num_rows: int, features: int) -> int:
        """Return the bytes of states [num_rows, sequence_length, features]."""
        itemsize = self.compute.dtype.itemsize
        return num_rows * self.options.sequence_length * features * itemsize

    def _least_layer_bytes(self) -> int:
        """Return what a layer needs at least: stored weights of two, and sums over its inputs."""
        config = self.checkpoint.config
        stored = sum(self.checkpoint.info(name).num_bytes for name in config.layer_tensors(0))
        # The last one is down_proj, the widest, which the fast effort rounds.
        linears = LAYER_LINEARS[:-1] if self.options.effort == FAST else LAYER_LINEARS
        widest = max(config.linear_shape(name)[1] for name in linears)
        return 2 * stored + _LEAST_BYTES_PER_SQUARE * widest**2

    def _lack_of_memory(self) -> str:
        """Return why not even the smallest sample fits, else an empty text."""
        if self.rows is None:
            return ""
        counts = self.row_counts()
        few = counts.scale(counts.least_share(self._batch_rows))
        needed = self._least_layer_bytes() + self._row_bytes(few)[self._workplace]
        where, free = "device memory", self.compute.free_memory_bytes()
        if free is None:
            where, free = "memory", available_memory_bytes()
        if needed <= free:
            return ""
        return (
            f"one layer needs at least {format_bytes(needed)} of {where}, and "
            f"{format_bytes(free)} are free"
        )
