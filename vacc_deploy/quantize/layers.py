"""Write the shards of a run: the two that are only copied, and every layer that is not finished."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

from vacc_deploy.checkpoint import Checkpoint, TensorInfo, WrittenFile
from vacc_deploy.errors import StoppedError
from vacc_deploy.model_config import EMBEDDING, FINAL_NORM, LAYER_LINEARS, LM_HEAD, linear_name
from vacc_deploy.progress import Progress, RunControl
from vacc_deploy.quantize.assist import send_work
from vacc_deploy.quantize.calibrated import Carried, calibrate_layers
from vacc_deploy.quantize.directory import ShardSink
from vacc_deploy.quantize.plan import QuantizeOptions
from vacc_deploy.quantize.ranks import ALONE, Ranks
from vacc_deploy.quantize.report import QuantizedLayer, summarize_layer
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
            layers = _remaining_layers(checkpoint, run, options, rows, ranks)
            with control.watch():
                _write_layers(checkpoint, run, layers, sink, progress, control, ranks)
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


def _remaining_layers(
    checkpoint: Checkpoint,
    run: Run,
    options: QuantizeOptions,
    rows: CalibrationRows | None,
    ranks: Ranks,
) -> Iterator[QuantizedLayer]:
    if rows is None:
        return round_layers(checkpoint, run.finished)
    carried = Carried(run.finished, run.read_finished) if run.finished else None
    send_work(checkpoint, options, rows, run.finished, ranks)
    return calibrate_layers(
        checkpoint,
        options,
        rows,
        spool_dir=run.partial,
        clock=run.clock,
        carried=carried,
        ranks=ranks,
    )


def _write_layers(
    checkpoint: Checkpoint,
    run: Run,
    layers: Iterator[QuantizedLayer],
    sink: ShardSink,
    progress: Progress,
    control: RunControl,
    ranks: Ranks,
) -> None:
    """Hand over every layer that is not finished; stop between two of them when asked to.

    Raises:
        StoppedError: all layers up to the one just computed are on the disk.
    """
    progress.start("Quantizing", run.num_layers, "layers")
    if run.finished:
        progress.advance(run.finished, f"{run.finished} layers were finished before")
    before = time.monotonic()
    for layer in layers:
        kept = _kept_tensors(checkpoint, layer.index)
        with run.clock.phase("write wait"):
            sink.put(layer.index + 1, kept, layer, time.monotonic() - before)
        before = time.monotonic()
        progress.advance(1, summarize_layer(layer.index, layer.records))
        # Only the writers still need its codes while the next layer is made.
        del layer
        signum = ranks.agree(control.stop_signal())
        if signum is not None:
            sink.drain()
            finished = run.journal.recorded.finished
            raise StoppedError(
                f"Stopped after {finished} of {run.num_layers} layers, which are kept.", signum
            )
    progress.finish()


def _kept_tensors(checkpoint: Checkpoint, layer: int) -> dict[str, TensorInfo]:
    """Return the tensors of a layer that stay as they are: norms and biases."""
    weights = {f"{linear_name(layer, linear)}.weight" for linear in LAYER_LINEARS}
    names = checkpoint.config.layer_tensors(layer).keys() - weights
    return {name: checkpoint.info(name) for name in sorted(names)}
