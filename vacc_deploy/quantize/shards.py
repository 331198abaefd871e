"""Write the shards of a run: the two that are only copied, and every layer that is not finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vacc_deploy.checkpoint.changes import check_unchanged
from vacc_deploy.checkpoint.header import TensorInfo
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.formats.layouts import INT8
from vacc_deploy.formats.linears import linear_tensors
from vacc_deploy.models.config import EMBEDDING, FINAL_NORM, LAYER_LINEARS, LM_HEAD, linear_name
from vacc_deploy.outputs.file_system import sync_directory
from vacc_deploy.outputs.writer import WrittenFile, write_shard
from vacc_deploy.progress import Progress
from vacc_deploy.quantize.calibrated import calibrate_layers
from vacc_deploy.quantize.compute import Compute
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.ranks import ALONE, Ranks
from vacc_deploy.quantize.records import Run, ShardRecord, pack_scale, shard_path
from vacc_deploy.quantize.result import describe_peak, summarize_layer
from vacc_deploy.quantize.rounded import round_layers
from vacc_deploy.reference.threads import torch_threads
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

    def __init__(
        self,
        run: Run,
        *,
        num_writers: int = NUM_WRITERS,
        write: Callable[[Path, Shard], WrittenFile] | None = None,
        to_host: Callable[[QuantizedLinear], QuantizedLinear] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the writers.

        Args:
            run: the run whose shards are written.
            num_writers: number of shards written at a time.
            write: writes one file; default ``write_shard``.
            to_host: brings a linear to the CPU; default ``copy_to_host``.
            check: raises where a shard that is written must not be recorded.
        """
        self._run, self._num_writers = run, num_writers
        self._write_file, self._to_host = write or write_shard, to_host or copy_to_host
        self._check = check
        self._pool = ThreadPoolExecutor(num_writers, thread_name_prefix="shard-writer")
        self._pending: set[Future[dict[str, WrittenFile]]] = set()
        self._calibrated: set[Future[dict[str, WrittenFile]]] = set()
        self._written = dict(run.written)

    def __enter__(self) -> ShardSink:
        return self

    def __exit__(self, *_: object) -> None:
        # After an error or an interruption too, what is quantized is worth writing.
        self._pool.shutdown()

    def put(
        self,
        shard: int,
        copied: Mapping[str, TensorInfo],
        layer: QuantizedLayer | None = None,
        seconds: float = 0.0,
    ) -> None:
        """Hand over a shard; waits while as many as there are writers are open.

        Of calibrated layers only ``MAX_PENDING_LAYERS`` are taken at a time: beside what the solver
        holds there is little memory for more, and writing is the faster part.

        Args:
            shard: number of the shard, from 0.
            copied: tensors that are copied from the source.
            layer: the quantized linears.
            seconds: wall time of the layer.
        """
        is_calibrated = layer is not None and layer.is_calibrated
        while len(self._pending) >= self._num_writers or (
            is_calibrated and len(self._calibrated) >= MAX_PENDING_LAYERS
        ):
            self._collect(FIRST_COMPLETED)
        # A list, which the writer empties of the device's tensors: its arguments live as long as
        # it works.
        linears = list(layer.linears) if layer else []
        record = ShardRecord(
            shard,
            seconds,
            records=layer.records if layer else (),
            linear_seconds=_linear_seconds(layer) if layer else {},
            maxima=layer.maxima if layer else {},
        )
        future = self._pool.submit(self._write, record, copied, linears)
        self._pending.add(future)
        if is_calibrated:
            self._calibrated.add(future)

    def finish(self) -> dict[str, WrittenFile]:
        """Wait for the last shard; return all files by their path within the output."""
        self._collect(ALL_COMPLETED)
        expected = (self._run.num_layers + 2) * len(self._run.formats)
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
        self, record: ShardRecord, copied: Mapping[str, TensorInfo], linears: list[QuantizedLinear]
    ) -> dict[str, WrittenFile]:
        """Write a shard in every format, one after the other: each needs memory of its own.

        ``record`` lacks only files and scales yet; the list of ``linears`` is used up.
        """
        run, files = self._run, dict[str, WrittenFile]()
        # One by one: where a linear was, its memory is free at once.
        for number in range(len(linears)):
            linears[number] = self._to_host(linears[number])
        for layout in run.formats:
            name = shard_path(run.formats, layout, record.shard, run.num_layers)
            tensors: Shard = {**copied}
            for linear in linears:
                tensors.update(linear_tensors(layout, linear.name, linear.codes, linear.scale))
            files[name] = self._write_file(run.partial / name, tensors)
            sync_directory((run.partial / name).parent)
        # The codes come back exactly from any format once the scale is known.
        needs_scales = INT8 not in run.formats
        scales = {lin.name: pack_scale(lin.scale) for lin in linears} if needs_scales else {}
        sizes = {name: (file.num_bytes, file.sha256) for name, file in files.items()}
        # A resumed run goes on with what is recorded: no record is of a changed source.
        self._check()
        # Last: a record says that the files are on the disk.
        run.add(replace(record, files=sizes, scales=scales))
        return files


def _linear_seconds(layer: QuantizedLayer) -> dict[str, float]:
    names = [record.name for record in layer.records]
    return dict(zip(names, layer.linear_seconds, strict=True)) if layer.linear_seconds else {}


def copy_to_host(linear: QuantizedLinear) -> QuantizedLinear:
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
    *,
    compute: Compute,
    progress: Progress,
    ranks: Ranks = ALONE,
) -> dict[str, WrittenFile]:
    """Write the shards that are not there yet; return all of them by their path in the output.

    Of several ranks the first one does this, and the others ``calibrate_along``.

    Raises:
        QuantizationError: a weight or an activation is not finite.
        CheckpointError: the source was changed.
    """
    # Rounding is bound by reading and writing: the other cores are the writers'.
    threads = torch_threads(1) if rows is None else nullcontext()
    # The other ranks have to know which layers they only carry their rows through.
    ranks.share(run.finished)
    check = partial(check_unchanged, checkpoint)
    with threads, ShardSink(run, check=check) as sink:
        _write_copies(checkpoint, run, sink)
        if run.finished == run.num_layers:
            return sink.finish()
        progress.start("Quantizing", run.num_layers, "layers")
        pace = Pace(progress, 0 if rows is None else rows.tokens.size, compute)
        layers = _remaining_layers(
            checkpoint, options, rows, run, compute=compute, progress=progress, ranks=ranks
        )
        if rows is None and run.finished:
            pace.skip(run.finished, f"{run.finished} layers were already quantized")
        num_replayed = 0  # enumerate() would hold on to the layer
        for layer in layers:
            if layer is None:
                replayed = "already quantized; replaying it to restore the calibration state"
                pace.skip(1, f"layer {num_replayed}: {replayed}")
                num_replayed += 1
            else:
                copied = _copied_tensors(checkpoint, layer.index)
                with run.clock.phase("write wait"):
                    sink.put(layer.index + 1, copied, layer, pace.layer_seconds())
                pace.advance(layer)
            # Only the writers still need its codes while the next layer is made.
            del layer
        progress.finish()
        return sink.finish()


def _remaining_layers(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    rows: CalibrationRows | None,
    run: Run,
    *,
    compute: Compute,
    progress: Progress,
    ranks: Ranks,
) -> Iterator[QuantizedLayer | None]:
    """Return every layer that is not finished, None for each that the rows are carried through."""
    if rows is None:
        return round_layers(checkpoint, run.finished)
    return calibrate_layers(
        checkpoint,
        options,
        rows,
        compute=compute,
        spool_dir=run.partial,
        clock=run.clock,
        num_finished=run.finished,
        read_finished=run.read_finished,
        progress=progress,
        ranks=ranks,
    )


def _write_copies(checkpoint: Checkpoint, run: Run, sink: ShardSink) -> None:
    """Hand over the two large shards that are only copied, unless they are there.

    They come first, beside the first layers' arithmetic.
    """
    last = {
        name: checkpoint.info(name) for name in (FINAL_NORM, LM_HEAD) if name in checkpoint.tensors
    }
    for shard, tensors in (0, {EMBEDDING: checkpoint.info(EMBEDDING)}), (run.num_layers + 1, last):
        if shard not in run.shards:
            sink.put(shard, tensors)


class Pace:
    """Reports layers, and counts the seconds of those that this run quantizes itself."""

    def __init__(
        self,
        progress: Progress,
        num_tokens: int,
        compute: Compute,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress, self._num_tokens, self._compute = progress, num_tokens, compute
        self._now, self._count = now, 0
        self._since = self._last = now()

    def skip(self, count: int, note: str) -> None:
        """Report layers that were finished before; the time up to here is theirs."""
        self._since = self._last = self._now()
        self._progress.skip(count, note)

    def layer_seconds(self) -> float:
        """Return the seconds since the layer before was handed over."""
        return self._now() - self._last

    def advance(self, layer: QuantizedLayer) -> None:
        """Report a layer that was handed over."""
        self._count, self._last = self._count + 1, self._now()
        notes = [summarize_layer(layer.index, layer.records)]
        if self._num_tokens:
            # The speed through one layer, not through the model.
            per_second = self._num_tokens * self._count / (self._last - self._since)
            notes.append(f"{per_second:,.0f} tokens/s")
        peak = describe_peak(peak_memory_bytes(), self._compute.peak_memory_bytes())
        self._progress.advance(1, "; ".join([*notes, f"peak memory {peak}"]))


def _copied_tensors(checkpoint: Checkpoint, layer: int) -> dict[str, TensorInfo]:
    """Return the tensors of a layer that stay as they are: norms and biases."""
    weights = {f"{linear_name(layer, linear)}.weight" for linear in LAYER_LINEARS}
    names = checkpoint.config.layer_tensors(layer).keys() - weights
    return {name: checkpoint.info(name) for name in sorted(names)}
