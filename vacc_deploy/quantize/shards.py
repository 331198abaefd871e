"""Write the shards of a run: the two that are only copied, and every layer that is not finished."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from vacc_deploy.checkpoint import (
    Checkpoint,
    TensorInfo,
    WrittenFile,
    sync_directory,
    write_shard,
)
from vacc_deploy.errors import StoppedError
from vacc_deploy.formats.layouts import INT8
from vacc_deploy.formats.linears import linear_tensors
from vacc_deploy.models.config import EMBEDDING, FINAL_NORM, LAYER_LINEARS, LM_HEAD, linear_name
from vacc_deploy.progress import Progress, RunControl
from vacc_deploy.quantize.assist import send_work
from vacc_deploy.quantize.calibrated import Carried, calibrate_layers
from vacc_deploy.quantize.compute import choose_compute, torch_threads
from vacc_deploy.quantize.journal import Entry
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.ranks import ALONE, Ranks
from vacc_deploy.quantize.result import (
    describe_peak,
    summarize_layer,
)
from vacc_deploy.quantize.resume import Run, pack_scale, shard_path
from vacc_deploy.quantize.rounded import round_layers
from vacc_deploy.solver.records import QuantizedLayer, QuantizedLinear
from vacc_deploy.system import num_cores, peak_memory_bytes

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows

Shard = dict[str, torch.Tensor | TensorInfo]

# Shards that are written at a time. Three, so that the layers need not wait for the two large ones
# that are only copied; more where there are cores for them: each waits for the disk once a file.
NUM_WRITERS = min(8, max(3, num_cores() // 2))
# Calibrated layers that may wait for the disk: one is made in more time than one is written.
MAX_PENDING_LAYERS = 2


class ShardSink:
    """Writes finished shards in the background, and records each once it is on the disk.

    A context manager: no write is under way any more when its block is left, whatever ended it.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._count = run, run.num_layers + 2
        self._pool = ThreadPoolExecutor(NUM_WRITERS, thread_name_prefix="shard-writer")
        self._pending: set[Future[dict[str, WrittenFile]]] = set()
        self._calibrated: set[Future[dict[str, WrittenFile]]] = set()
        self._written = dict(run.written)

    def __enter__(self) -> ShardSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # After an error, what is quantized is still worth writing; an interruption cannot wait.
        is_hurried = kind is not None and not issubclass(kind, Exception)
        self._pool.shutdown(cancel_futures=is_hurried)

    def put(
        self,
        shard: int,
        kept: Mapping[str, TensorInfo],
        layer: QuantizedLayer | None = None,
        seconds: float = 0.0,
    ) -> None:
        """Hand over a shard; waits while as many as there are writers are open.

        Of calibrated layers only ``MAX_PENDING_LAYERS`` are taken at a time: beside what the solver
        holds there is little memory for more, and writing is the faster part.

        Args:
            shard: its number, from 0.
            kept: tensors that are copied from the source.
            layer: the quantized linears.
            seconds: what the layer took.
        """
        is_calibrated = layer is not None and layer.is_calibrated
        while len(self._pending) >= NUM_WRITERS or (
            is_calibrated and len(self._calibrated) >= MAX_PENDING_LAYERS
        ):
            self._collect(FIRST_COMPLETED)
        # A list, which the writer empties of the device's tensors: its arguments live as long as
        # it works.
        linears = list(layer.linears) if layer else []
        entry = Entry(
            shard,
            seconds,
            {},
            layer.records if layer else (),
            linear_seconds=_linear_seconds(layer) if layer else {},
        )
        future = self._pool.submit(self._write, entry, kept, linears)
        self._pending.add(future)
        if is_calibrated:
            self._calibrated.add(future)

    def drain(self) -> None:
        """Wait until all that was handed over is on the disk and recorded."""
        self._collect(ALL_COMPLETED)

    def finish(self) -> dict[str, WrittenFile]:
        """Wait for the last shard; return all files by their path within the output."""
        self.drain()
        expected = self._count * len(self._run.formats)
        if len(self._written) != expected:
            raise AssertionError(f"{len(self._written)} files of {expected} were written")
        return self._written

    def _collect(self, until: str) -> None:
        """Wait for pending writes; an error of one of them is raised here."""
        done, self._pending = wait(self._pending, return_when=until)
        self._calibrated &= self._pending
        for future in done:
            self._written |= future.result()

    def _write(
        self, entry: Entry, kept: Mapping[str, TensorInfo], linears: list[QuantizedLinear]
    ) -> dict[str, WrittenFile]:
        """Write a shard in every format, one after the other: each needs memory of its own.

        Args:
            entry: of the journal, but for what is known only now.
            kept: tensors that are copied from the source.
            linears: the quantized linears; used up.
        """
        run, files = self._run, dict[str, WrittenFile]()
        _move_to_host(linears)
        for layout in run.formats:
            name = shard_path(run.formats, layout, entry.shard, run.num_layers)
            tensors: Shard = {**kept}
            for linear in linears:
                tensors.update(linear_tensors(layout, linear.name, linear.codes, linear.scale))
            files[name] = write_shard(run.partial / name, tensors)
            sync_directory((run.partial / name).parent)
        # The codes come back exactly from any format once the scale is known.
        needs_scales = INT8 not in run.formats
        scales = {lin.name: pack_scale(lin.scale) for lin in linears} if needs_scales else {}
        sizes = {name: (file.num_bytes, file.sha256) for name, file in files.items()}
        run.journal.append(replace(entry, files=sizes, scales=scales))
        return files


def _linear_seconds(layer: QuantizedLayer) -> dict[str, float]:
    names = [record.name for record in layer.records]
    return dict(zip(names, layer.linear_seconds, strict=True)) if layer.linear_seconds else {}


def _move_to_host(linears: list[QuantizedLinear]) -> None:
    """Replace each linear by its like on the CPU; where it was, its memory is free at once."""
    for place in range(len(linears)):
        linears[place] = _on_host(linears[place])


def _on_host(linear: QuantizedLinear) -> QuantizedLinear:
    """Return a linear with its tensors on the CPU.

    On a stream of its own, the copy from a CUDA device runs beside the next layer's kernels.
    """
    if not linear.codes.is_cuda:
        return linear
    with torch.cuda.stream(torch.cuda.Stream(linear.codes.device)):
        return QuantizedLinear(linear.name, linear.codes.cpu(), linear.scale.cpu())


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
    threads = torch_threads(1) if rows is None else nullcontext()
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
