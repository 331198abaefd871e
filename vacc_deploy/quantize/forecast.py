"""Predict the time and the memory of a run by running its own code on a sample.

The real quantizer works on the first layers with few rows, then with more of them. A line through
the two times gives what a layer takes with all rows. What the rows themselves need is known
exactly; the rest of the memory is what the samples needed. So a change of the quantizer changes the
forecast with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.models.config import EMBEDDING, LAYER_LINEARS, LM_HEAD
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
    copy_seconds,
    run_sample,
)
from vacc_deploy.results import format_bytes
from vacc_deploy.system import (
    available_memory_bytes,
    num_cores,
    peak_memory_bytes,
    resident_memory_bytes,
)

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows

# The large sample has so many rows that a layer takes about this long, and at least twice those of
# the small one: the further apart the two are, the less a disturbance turns the line.
LARGE_LAYER_SECONDS = 4.0
# No layer gets by with less: a Hessian, its permuted copy, its factor, the correction; float32.
_LEAST_BYTES_PER_SQUARE = 4 * 4

# What was run, and what it took.
Sample = tuple["Plan", Measured]


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
        return self.share(num_ranks)._row_bytes(num_sharing)[DISK]

    def row_counts(self) -> tuple[int, int, int]:
        """Return the rows held out, those with a float stream (held-out ones too), and all."""
        if self.rows is None:
            return 0, 0, 0
        config, num_held_out = self.checkpoint.config, self.rows.num_held_out
        num_float = num_float_rows(config, self.options, self.rows.num_fit_rows, num_held_out)
        return num_held_out, num_float, len(self.rows.tokens)

    def share(self, count: int) -> Plan:
        """Return the plan of the first of ``count`` processes, which has the most rows."""
        if self.rows is None:
            return self
        num_held_out, num_float, _ = (-(-number // count) for number in self.row_counts())
        # [rows, seq] -> [ceil(rows / count), seq]
        rows = replace(self.rows, tokens=self.rows.tokens[::count], num_held_out=num_held_out)
        # The same share of the inputs of down_proj is computed twice.
        kept_bytes = self._down_hessian_bytes() + self._held_bytes() // count
        return replace(
            self,
            rows=rows,
            # The rule for the float stream does not go by proportion.
            options=replace(self.options, num_float_rows=num_float),
            compute=replace(self.compute, kept_bytes=kept_bytes),
        )

    def forecast(
        self,
        seconds_so_far: float,
        progress: Progress = SILENT,
        measure: Callable[[Plan, int], Measured] | None = None,
    ) -> tuple[Estimate, str]:
        """Return the memory and the time, and why there is no time, else an empty text.

        Args:
            seconds_so_far: what the preparation took, which the run needs too.
            progress: shows every sample.
            measure: runs the rows of a plan through at most so many layers; default ``run_sample``.

        Raises:
            QuantizationError: a weight or an activation of the sample is not finite.
        """

        def run(plan: Plan, max_layers: int) -> Measured:
            source, compute = (plan.checkpoint, plan.options, plan.rows), plan.compute
            return run_sample(*source, compute=compute, max_layers=max_layers)

        # Before the first sample, which lets the peak begin again.
        resident, earlier_peak = resident_memory_bytes(), peak_memory_bytes()
        few = self.share(self._most_shares())
        needed = self._least_layer_bytes()
        least = self._add_rows({self._workplace: needed}, resident)
        problem = few._lack_of_memory(needed)
        if problem:
            return least, problem
        measure = measure or run

        def step(plan: Plan, max_layers: int) -> Measured:
            measured = measure(plan, max_layers)
            progress.advance()
            return measured

        progress.start("Running samples", 3, "samples")
        try:
            samples = self._run_samples(few, step)
        except torch.cuda.OutOfMemoryError:
            return least, "a layer of the model does not fit the device"
        finally:
            progress.finish()
        layers = Counter[str]()
        for plan, sample in samples:
            rows = plan._row_bytes()
            layers[HOST] = max(layers[HOST], sample.host_peak - resident - rows[HOST])
            layers[DEVICE] = max(layers[DEVICE], sample.device_peak - rows[DEVICE])
        seconds = {"preparation": seconds_so_far, **self._predict_seconds(*samples)}
        return replace(self._add_rows(layers, resident, earlier_peak), seconds=seconds), ""

    def _most_shares(self) -> int:
        """Return into how many shares the rows go with each kind and two batches in all of them."""
        edges = sorted({0, *self.row_counts()})
        # default: rounding, which has no rows
        smallest = min((stop - start for start, stop in pairwise(edges)), default=1)
        batch_rows = max(1, self.compute.batch_tokens // self.options.sequence_length)
        return max(1, min(smallest, edges[-1] // (2 * batch_rows)))

    def _run_samples(
        self, few: Plan, measure: Callable[[Plan, int], Measured]
    ) -> tuple[Sample, Sample]:
        """Return what ``few`` and more of the rows took."""
        # The first layer of all is slow, since libraries are loaded: it is done once more.
        small = measure(few, 1)
        if small.layer < LONG_SECONDS:
            small = measure(few, MAX_LAYERS)
        growth = max(2.0, LARGE_LAYER_SECONDS / max(small.layer, 1e-9))
        num_shares = self._most_shares()
        many = self.share(max(1, int(num_shares / growth)))
        # A dry run writes nothing, so its rows have to fit the memory.
        if num_shares == 1 or many._row_bytes()[DISK]:
            return (few, small), (few, small)
        return (few, small), (many, measure(many, MAX_LAYERS))

    def _predict_seconds(self, small: Sample, large: Sample) -> dict[str, float]:
        """Return the seconds of all layers by kind of work, on the line through two samples."""
        # A row in both streams goes through a layer twice.
        few, most, num_passes = (sum(plan.row_counts()[1:]) for plan in (small[0], large[0], self))

        def extend(attribute: str) -> float:
            before, after = (getattr(sample, attribute) for _, sample in (small, large))
            # More rows never take less time: where they did, the machine was disturbed.
            # Both samples may be one and the same: then the slope is 0.
            slope = max(0.0, after - before) / max(1, most - few)
            return float(after + slope * (num_passes - most))

        num_layers = self.checkpoint.config.num_hidden_layers - self.num_finished
        layers = num_layers * extend("layer")
        seconds = {"layers": layers, "embedding": large[1].start * num_passes / max(1, most)}
        if self.num_finished:
            seconds["carrying finished layers"] = self.num_finished * extend("forward")
        tensors = self.checkpoint.tensors
        sizes = [tensors[name].num_bytes for name in (EMBEDDING, LM_HEAD) if name in tensors]
        # Each has a writer of its own.
        num_threads = min(num_cores(), len(sizes))
        copying = copy_seconds(len(self.options.formats) * sum(sizes), num_threads)
        if self._workplace == DEVICE:
            # There it goes on beside the layers, and costs what is left of it after the last one.
            copying = max(0.0, copying - layers)
        return seconds | {"copied tensors": copying}

    @property
    def _workplace(self) -> str:
        return HOST if self.compute.device.type == "cpu" else DEVICE

    def _add_rows(
        self, layers: Mapping[str, int], resident: int, earlier_peak: int = 0
    ) -> Estimate:
        """Return the memory of a run whose layers need so much by storage, besides its rows."""
        rows = self._row_bytes()
        host, device = ({"layers": layers.get(s, 0), "rows": rows[s]} for s in (HOST, DEVICE))
        host = {"process": resident, **host}
        # The run reads its calibration text too, which may be what needs most.
        host["preparation"] = max(0, earlier_peak - sum(host.values()))
        return Estimate(host, device if self._workplace == DEVICE else None)

    def _row_bytes(self, num_sharing: int = 1) -> Counter[str]:
        """Return by storage what grows with the rows: their buffers, and inputs of down_proj."""
        config, device_free = self.checkpoint.config, self.compute.free_memory_bytes()
        host_available = available_memory_bytes() // num_sharing
        found = Counter({self._workplace: self._held_bytes()})
        _, num_float, num_rows = self.row_counts()
        # In the order in which they are made: each leaves less for the next.
        for count, features in (
            (num_rows, config.hidden_size),
            (num_float, config.hidden_size),
            (num_rows, config.linear_shape("o_proj")[1]),
        ):
            num_bytes = self._state_bytes(count, features)
            storage = choose_storage(num_bytes, device_free, host_available)
            found[storage] += num_bytes
            if storage == DEVICE and device_free is not None:
                device_free -= num_bytes
            elif storage == HOST:
                host_available -= num_bytes
        return found

    def _held_bytes(self) -> int:
        """Return the bytes of the inputs of down_proj that are held for their second use."""
        if self.options.effort == FAST:
            return 0
        _, _, num_rows = self.row_counts()
        inputs = self._state_bytes(num_rows, self.checkpoint.config.intermediate_size)
        return min(inputs, max(0, self.compute.kept_bytes - self._down_hessian_bytes()))

    def _down_hessian_bytes(self) -> int:
        """Return the bytes of a float32 [intermediate, intermediate], which are kept first."""
        return 4 * self.checkpoint.config.intermediate_size**2

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

    def _lack_of_memory(self, layer_bytes: int) -> str:
        """Return why a layer and these rows do not fit, else an empty text."""
        needed = layer_bytes + self._row_bytes()[self._workplace]
        where, free = "device memory", self.compute.free_memory_bytes()
        if free is None:
            where, free = "memory", available_memory_bytes()
        # Rounding needs neither whole float weights in memory nor a Hessian.
        if self.rows is None or needed <= free:
            return ""
        return (
            f"one layer needs at least {format_bytes(needed)} of {where}, and "
            f"{format_bytes(free)} are free"
        )
