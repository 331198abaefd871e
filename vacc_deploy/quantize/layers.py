"""Write the shards of a run: the two that are only copied, and every layer that is not finished."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

from vacc_deploy.checkpoint import Checkpoint, TensorInfo, WrittenFile
from vacc_deploy.errors import StoppedError
from vacc_deploy.host_memory import peak_memory_bytes
from vacc_deploy.model_config import EMBEDDING, FINAL_NORM, LAYER_LINEARS, LM_HEAD, linear_name
from vacc_deploy.progress import Progress, RunControl
from vacc_deploy.quantize.assist import send_work
from vacc_deploy.quantize.calibrated import Carried, calibrate_layers
from vacc_deploy.quantize.compute import choose_compute
from vacc_deploy.quantize.directory import ShardSink
from vacc_deploy.quantize.plan import QuantizeOptions
from vacc_deploy.quantize.ranks import ALONE, Ranks
from vacc_deploy.quantize.report import QuantizedLayer, describe_peak, summarize_layer
from vacc_deploy.quantize.resume import Run
from vacc_deploy.quantize.rounded import round_layers

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows


def write_shards(
    checkpoint: Checkpoint,
    run: Run,
    options: QuantizeOptions,
    rows: CalibrationRows | None,
    progress: Progress,
    control: RunControl,
    ranks: Ranks = ALONE,
) -> dict[str, WrittenFile]:
    """Write the shards that are not there yet; return all of them by their path in the output.

    With several ranks this is the first one, and the others calibrate along.

    Raises:
        QuantizationError: a weight or an activation is not finite.
        StoppedError: ``control`` asked for it.
    """
    # Rounding is bound by reading and writing: the other cores are the writers'.
    threads = _torch_threads(1) if rows is None else nullcontext()
    with threads, ShardSink(run) as sink:
        _write_copies(checkpoint, run, sink)
        if run.finished < run.num_layers:
            pace = _Pace(progress, options, 0 if rows is None else rows.tokens.size)
            with control.watch():
                progress.start("Quantizing", run.num_layers, "layers")
                layers = _remaining_layers(checkpoint, run, options, rows, pace, ranks)
                _write_layers(checkpoint, run, layers, sink, pace, control, ranks)
                progress.finish()
        return sink.finish()


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_copies(checkpoint: Checkpoint, run: Run, sink: ShardSink) -> None:
    """Hand over the two large shards that are only copied, unless they are there.

    They come first, beside the first layers' arithmetic.
    """
    last = {
        name: checkpoint.info(name) for name in (FINAL_NORM, LM_HEAD) if name in checkpoint.tensors
    }
    for shard, tensors in (0, {EMBEDDING: checkpoint.info(EMBEDDING)}), (run.num_layers + 1, last):
        if shard not in run.journal.recorded.entries:
            sink.put(shard, tensors)


class _Pace:
    """Tells of layers, and counts the seconds of those that this run quantizes itself."""

    def __init__(self, progress: Progress, options: QuantizeOptions, num_tokens: int) -> None:
        self.progress, self._num_tokens, self._count = progress, num_tokens, 0
        self._compute = choose_compute(options.device, options.compute_dtype)
        self._since = self._last = time.monotonic()

    def skip(self, count: int, note: str) -> None:
        """Tell of layers that were finished before; the time up to here is theirs."""
        self._since = self._last = time.monotonic()
        self.progress.skip(count, note)

    def layer_seconds(self) -> float:
        """Return the seconds since the layer before was handed over."""
        return time.monotonic() - self._last

    def advance(self, layer: QuantizedLayer) -> None:
        """Tell of a layer that was handed over."""
        self._count, self._last = self._count + 1, time.monotonic()
        notes = [summarize_layer(layer.index, layer.records)]
        if self._num_tokens:
            per_second = self._num_tokens * self._count / (self._last - self._since)
            notes.append(f"{per_second:,.0f} tokens/s")
        peak = describe_peak(peak_memory_bytes(), self._compute.peak_memory_bytes())
        self.progress.advance(1, "; ".join([*notes, f"peak memory {peak}"]))


def _remaining_layers(
    checkpoint: Checkpoint,
    run: Run,
    options: QuantizeOptions,
    rows: CalibrationRows | None,
    pace: _Pace,
    ranks: Ranks,
) -> Iterator[QuantizedLayer | None]:
    """Yield every layer that is not finished, None for each that the rows are carried through."""
    if rows is None:
        if run.finished:
            pace.skip(run.finished, f"{run.finished} layers were finished before")
        return round_layers(checkpoint, run.finished)

    def tell(index: int) -> None:
        pace.skip(1, f"layer {index}: finished before, the rows were carried through it")

    carried = Carried(run.finished, run.read_finished, tell) if run.finished else None
    send_work(checkpoint, options, rows, run.finished, ranks)
    return calibrate_layers(
        checkpoint,
        options,
        rows,
        spool_dir=run.partial,
        clock=run.clock,
        carried=carried,
        progress=pace.progress,
        ranks=ranks,
    )


def _write_layers(
    checkpoint: Checkpoint,
    run: Run,
    layers: Iterator[QuantizedLayer | None],
    sink: ShardSink,
    pace: _Pace,
    control: RunControl,
    ranks: Ranks,
) -> None:
    """Hand over every layer that is not finished; stop between any two layers when asked to.

    Raises:
        StoppedError: all layers up to the one just computed are on the disk.
    """
    for layer in layers:
        if layer is not None:
            kept = _kept_tensors(checkpoint, layer.index)
            with run.clock.phase("write wait"):
                sink.put(layer.index + 1, kept, layer, pace.layer_seconds())
            pace.advance(layer)
        # Only the writers still need its codes while the next layer is made.
        del layer
        signum = ranks.agree(control.stop_signal())
        if signum is not None:
            sink.drain()
            finished = run.journal.recorded.finished
            raise StoppedError(
                f"Stopped after {finished} of {run.num_layers} layers, which are kept.", signum
            )


def _kept_tensors(checkpoint: Checkpoint, layer: int) -> dict[str, TensorInfo]:
    """Return the tensors of a layer that stay as they are: norms and biases."""
    weights = {f"{linear_name(layer, linear)}.weight" for linear in LAYER_LINEARS}
    names = checkpoint.config.layer_tensors(layer).keys() - weights
    return {name: checkpoint.info(name) for name in sorted(names)}
