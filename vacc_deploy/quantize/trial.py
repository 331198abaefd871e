"""Time a few layers with a few rows, and predict from them what the whole run will take.

The real quantizer runs, on the real device. Its forward passes and Hessians take longer with more
tokens, and the more of them the float stream has; its solver does not. Writes nothing.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.models.config import LAYER_LINEARS
from vacc_deploy.phases import PhaseClock
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.quantize.calibrated import open_streams
from vacc_deploy.quantize.layer_quantizer import Batch, LayerQuantizer, SolverSettings
from vacc_deploy.quantize.layer_walk import LayerWalk, Streams
from vacc_deploy.quantize.layer_weights import LayerWeights
from vacc_deploy.quantize.workload import Workload
from vacc_deploy.reference.decoder import DecoderLayer, Positions

HELD_OUT, SHARED, PLAIN = "held out", "with float stream", "plain"
# Batches of each kind of fitted rows: what the first one allocates weighs half.
BATCHES = 2
# The first layer is slow: libraries are loaded, kernels compiled. Then layers are timed until they
# add up to enough, so that one disturbance on a busy machine counts little.
ENOUGH_SECONDS = 2.0
MAX_LAYERS = 5
# A first layer that takes longer than this on a CPU has hidden its slow start: it is the trial.
LONG_SECONDS = 20.0

Now = Callable[[], float]


@dataclass(frozen=True)
class LayerTimes:
    """What one trial layer took, in seconds.

    Attributes:
        read: of its weights.
        forward: of all its rows.
        observed: by kind of rows, of the sums over their inputs.
        settled: of everything that does not depend on the number of rows.
    """

    read: float
    forward: float
    observed: dict[str, float]
    settled: float

    @property
    def total(self) -> float:
        """Return the seconds without reading, which goes on beside the layer before."""
        return self.forward + sum(self.observed.values()) + self.settled


@dataclass(frozen=True)
class Trial:
    """What was timed: a layer with the rows of ``work``, and their embedding in seconds."""

    work: Workload
    layer: LayerTimes
    embedding: float


def run_trial(
    checkpoint: Checkpoint,
    settings: SolverSettings,
    work: Workload,
    tokens: torch.Tensor,
    *,
    progress: Progress = SILENT,
    now: Now = time.perf_counter,
) -> Trial:
    """Quantize the first layers with some rows of ``work`` and return the mean times.

    Args:
        checkpoint: the float weights.
        settings: of the solver.
        work: the whole run.
        tokens: int64 [work.num_rows, sequence_length], the rows in the order of ``Streams``.
        progress: told of every layer.
        now: the clock.

    Raises:
        QuantizationError: a weight or an activation is not finite; names the tensor.
        torch.cuda.OutOfMemoryError: a layer does not fit the device.
    """
    small = work.shorten(BATCHES)
    timed, is_cpu = list[LayerTimes](), work.compute.device.type == "cpu"
    progress.start("Timing layers", MAX_LAYERS, "layers")
    with torch.inference_mode():
        positions = Positions.build(work.config, work.sequence_length, work.compute.device)
        started = now()
        streams = _open_streams(checkpoint, small, tokens[_pick_rows(small, work)])
        embedding = now() - started
        bench = _Bench(checkpoint, settings, small, streams, positions, now)
        for number in range(MAX_LAYERS):
            times = bench.time_layer(number % work.config.num_hidden_layers)
            progress.advance()
            if number or (is_cpu and times.total >= LONG_SECONDS):
                timed.append(times)
            if sum(layer.total for layer in timed) >= ENOUGH_SECONDS:
                break
    progress.finish()
    return Trial(small, mean_times(timed), embedding)


def _open_streams(checkpoint: Checkpoint, work: Workload, tokens: torch.Tensor) -> Streams:
    # So few rows fit the memory: nothing is written to the directory.
    spool_dir = Path(tempfile.gettempdir())
    return open_streams(
        checkpoint,
        tokens,
        work.compute,
        spool_dir,
        num_held_out=work.num_held_out,
        num_original=work.num_original,
    )


def _pick_rows(small: Workload, work: Workload) -> list[int]:
    """Return the first rows of each kind."""
    rows, first = list[int](), 0
    for kind, count in rows_by_kind(work).items():
        rows += range(first, first + rows_by_kind(small)[kind])
        first += count
    return rows


def mean_times(timed: list[LayerTimes]) -> LayerTimes:
    """Return the mean of each part."""
    count = len(timed)
    return LayerTimes(
        sum(times.read for times in timed) / count,
        sum(times.forward for times in timed) / count,
        {kind: sum(t.observed[kind] for t in timed) / count for kind in timed[0].observed},
        sum(times.settled for times in timed) / count,
    )


class _ObservedQuantizer(LayerQuantizer):
    """Notes the seconds of ``observe`` by kind of rows."""

    def __init__(self, *arguments: Any, now: Now, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.observed = dict.fromkeys((HELD_OUT, SHARED, PLAIN), 0.0)
        self._now = now

    def observe(
        self,
        batch: Batch,
        inputs: torch.Tensor,
        original: torch.Tensor | None,
        *,
        residual: torch.Tensor | None = None,
    ) -> None:
        """Add inputs, see ``LayerQuantizer``."""
        started = self._now()
        super().observe(batch, inputs, original, residual=residual)
        kind = HELD_OUT if batch.is_held_out else SHARED if batch.has_original else PLAIN
        self.observed[kind] += self._now() - started


@dataclass(frozen=True)
class _Bench:
    """The rows of a trial, ready to go through a layer."""

    checkpoint: Checkpoint
    settings: SolverSettings
    work: Workload
    streams: Streams
    positions: Positions
    now: Now

    def time_layer(self, index: int) -> LayerTimes:
        """Quantize one layer and forget it; the rows go on."""
        compute, config = self.work.compute, self.work.config
        wait, started = compute.synchronize or (lambda: None), self.now()
        names = config.layer_tensors(index)
        tensors = {name: self.checkpoint.read(name).to(compute.device) for name in names}
        wait()
        read = self.now() - started
        weights = LayerWeights(self.checkpoint, index, tensors, compute.dtype)
        clock = PhaseClock(wait)
        quantizer = _ObservedQuantizer(
            self.settings,
            weights.read_exact,
            num_held_out_tokens=self.work.num_held_out * self.work.sequence_length,
            dtype=compute.dtype,
            clock=clock,
            now=self.now,
        )
        started = self.now()
        layer = DecoderLayer(config, index, self.positions, weights.read)
        LayerWalk(layer, weights, self.streams, compute, clock).quantize(quantizer)
        wait()
        total, forward = self.now() - started, clock.to_dict()["forward"]
        settled = total - forward - sum(quantizer.observed.values())
        return LayerTimes(read, forward, quantizer.observed, settled)


def predict_seconds(trial: Trial, work: Workload, *, num_carried: int = 0) -> dict[str, float]:
    """Return the seconds of all layers by part, from those of one trial layer.

    Args:
        trial: what was timed.
        work: what is to be predicted.
        num_carried: layers that are finished: their rows are only carried.
    """
    times, num_layers = trial.layer, work.config.num_hidden_layers - num_carried
    per_token = times.forward / _forward_tokens(trial.work)
    timed, all_rows = rows_by_kind(trial.work), rows_by_kind(work)
    observed = sum(
        seconds / timed[kind] * all_rows[kind]
        for kind, seconds in times.observed.items()
        if timed[kind]
    )
    parts = {
        "embedding": trial.embedding * work.num_rows / trial.work.num_rows,
        "forward": num_layers * per_token * _forward_tokens(work),
        "Hessians": num_layers * observed,
        "solver": num_layers * times.settled,
    }
    if num_carried:
        carried = per_token * (work.num_tokens + work.num_original_tokens)
        parts["carrying finished layers"] = num_carried * carried
    return parts


def rows_by_kind(work: Workload) -> dict[str, int]:
    """Return the number of rows of each kind, in their order."""
    return {
        HELD_OUT: work.num_held_out,
        SHARED: max(work.num_original - work.num_held_out, 0),
        PLAIN: work.num_plain,
    }


def _forward_tokens(work: Workload) -> float:
    """Return the tokens of both streams; what is computed twice counts by its products."""
    sizes = {name: math.prod(work.config.linear_shape(name)) for name in LAYER_LINEARS}
    twice = (sizes["gate_proj"] + sizes["up_proj"]) / sum(sizes.values())
    return work.num_tokens * (1 + twice * work.repeated_share) + work.num_original_tokens
