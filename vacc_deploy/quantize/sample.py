"""Run the real quantizer on a few layers with some of the rows, and measure it.

Nothing stays: a sample's shards are removed as soon as they are written.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from vacc_deploy.checkpoint.header import TensorInfo
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.checkpoint.writer import write_shard
from vacc_deploy.formats.linears import linear_tensors
from vacc_deploy.models.config import EMBEDDING, LM_HEAD
from vacc_deploy.phases import PhaseClock
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.quantize.calibrated import calibrate_layers
from vacc_deploy.quantize.compute import choose_compute, torch_threads
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.rounded import round_layers
from vacc_deploy.quantize.shards import MAX_PENDING_LAYERS, NUM_WRITERS
from vacc_deploy.solver.records import QuantizedLayer
from vacc_deploy.system import num_cores, peak_memory_bytes, reset_peak_memory

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows

# As many layers as a run of rounding holds at a time, and so many that its beginning and its end
# count little. Calibrated ones are timed only until they add up to enough.
MAX_LAYERS = max(8, NUM_WRITERS + 2)
ENOUGH_SECONDS = 1.5
# The first layer of all is slow, since libraries are loaded. One that takes longer than this has
# hidden its slow start.
LONG_SECONDS = 20.0
_MAX_COPIED_BYTES = 64 << 20
_PREFIX = ".vacc-deploy-sample-"


@dataclass(frozen=True)
class RowCounts:
    """Calibration rows by kind.

    Attributes:
        num_held_out: rows that no Hessian sees.
        num_float: rows that go through the float layers too, the held-out ones among them; 0
            without a float stream.
        num_rows: all rows.
    """

    num_held_out: int
    num_float: int
    num_rows: int

    @property
    def num_passes(self) -> int:
        """Rows that go through a layer; one in both streams counts twice."""
        return self.num_rows + self.num_float

    @property
    def _kinds(self) -> tuple[int, int, int]:
        """Rows held out, fitted with a float stream, and fitted without one."""
        num_fit_float = max(0, self.num_float - self.num_held_out)
        return self.num_held_out, num_fit_float, self.num_rows - self.num_held_out - num_fit_float

    def least_share(self, batch_rows: int) -> float:
        """Return the smallest share with a row of each kind there is, and two batches in all."""
        smallest = min((count for count in self._kinds if count), default=1)
        return min(1.0, max(1 / smallest, 2 * batch_rows / max(1, self.num_rows)))

    def scale(self, share: float) -> RowCounts:
        """Return about this share of each kind, at least one row of each there is."""
        held_out, fit_float, plain = (
            min(count, max(1, round(count * share))) for count in self._kinds
        )
        num_float = held_out + fit_float if self.num_float else 0
        return RowCounts(held_out, num_float, held_out + fit_float + plain)

    def share(self, num_ranks: int) -> RowCounts:
        """Return the rows of the first of ``num_ranks`` processes, which has the most."""
        counts = self.num_held_out, self.num_float, self.num_rows
        return RowCounts(*(-(-count // num_ranks) for count in counts))


@dataclass(frozen=True)
class Measured:
    """What a sample took.

    Attributes:
        rows: the rows of the sample.
        layer: seconds of one layer.
        start: seconds before the first layer.
        forward: seconds of one layer's forward passes.
        host_peak: bytes that the process held at most.
        device_peak: bytes held on the device; 0 where that is the host.
    """

    rows: RowCounts
    layer: float
    start: float = 0.0
    forward: float = 0.0
    host_peak: int = 0
    device_peak: int = 0


def run_sample(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    rows: CalibrationRows | None,
    counts: RowCounts,
    max_layers: int,
    *,
    folder: Path,
    progress: Progress = SILENT,
) -> Measured:
    """Quantize the first layers with some of the rows, write them, forget them.

    Args:
        checkpoint: the float weights.
        options: what the run is asked to do.
        rows: the calibration tokens; None for rounding.
        counts: rows of each kind to take.
        max_layers: where to stop at the latest.
        folder: directory that takes a shard while it is written.
        progress: shows every layer.

    Raises:
        QuantizationError: a weight or an activation is not finite; names the tensor.
        torch.cuda.OutOfMemoryError: a layer does not fit the device.
    """
    compute = choose_compute(options.device, options.compute_dtype)
    reset_peak_memory()
    if compute.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(compute.device)
    clock = PhaseClock(compute.synchronize)
    # As in the run: rounding has a thread for every core already.
    threads = torch_threads(1) if rows is None else nullcontext()
    ends = [time.perf_counter()]
    with threads, _Writers(options.formats, folder, is_calibrated=rows is not None) as writers:
        with closing(_begin(checkpoint, options, rows, counts, clock)) as layers:
            for layer in layers:
                ends.append(time.perf_counter())
                progress.advance()
                if layer is not None:
                    writers.put(layer)
                del layer
                if len(ends) > max_layers or (rows is not None and _is_enough(ends)):
                    break
        writers.drain()
        written = time.perf_counter()
    num_layers = len(ends) - 1
    # The first layer begins with the start, unless it is the only one.
    seconds = (ends[-1] - ends[1]) / (num_layers - 1) if num_layers > 1 else ends[1] - ends[0]
    if rows is None:
        # A run of rounding ends with its writers: they are as busy as the cores that round.
        seconds = (written - ends[0]) / num_layers
    return Measured(
        counts,
        seconds,
        max(0.0, ends[1] - ends[0] - seconds),
        clock.to_dict().get("forward", 0.0) / num_layers,
        peak_memory_bytes(),
        compute.peak_memory_bytes() or 0,
    )


def _is_enough(ends: list[float]) -> bool:
    """Return whether two layers behind the first took long enough, or all of them very long."""
    is_long = ends[-1] - ends[0] >= LONG_SECONDS
    return is_long or (len(ends) > 3 and ends[-1] - ends[1] >= ENOUGH_SECONDS)


def _begin(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    rows: CalibrationRows | None,
    counts: RowCounts,
    clock: PhaseClock,
) -> Generator[QuantizedLayer | None, None, None]:
    """Return the layers of the real quantizer."""
    if rows is None:
        yield from round_layers(checkpoint)
        return
    options, rows = take_rows(options, rows, counts)
    # So few rows fit the memory: nothing is written to the directory.
    spool_dir = Path(tempfile.gettempdir())
    yield from calibrate_layers(checkpoint, options, rows, spool_dir=spool_dir, clock=clock)


def take_rows(
    options: QuantizeOptions, rows: CalibrationRows, counts: RowCounts
) -> tuple[QuantizeOptions, CalibrationRows]:
    """Return the options and the rows of a sample: the first held-out and fitted ones.

    The rule for the float stream does not go by proportion, so its rows are given.
    """
    fitted = rows.num_held_out + np.arange(counts.num_rows - counts.num_held_out)
    chosen = np.concatenate((np.arange(counts.num_held_out), fitted))
    return (
        replace(options, num_float_rows=counts.num_float),
        replace(rows, tokens=rows.tokens[chosen], num_held_out=counts.num_held_out),
    )


class _Writers:
    """Writes layers in the background, as the run does, and removes each file at once."""

    def __init__(self, formats: Sequence[str], folder: Path, *, is_calibrated: bool) -> None:
        self._formats, self._folder = formats, folder
        self._limit = MAX_PENDING_LAYERS if is_calibrated else NUM_WRITERS
        self._pool = ThreadPoolExecutor(NUM_WRITERS, thread_name_prefix="sample-writer")
        self._pending = deque[Future[None]]()

    def __enter__(self) -> _Writers:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def put(self, layer: QuantizedLayer) -> None:
        """Hand over a layer; waits while as many are open as in a run."""
        while len(self._pending) >= self._limit:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._write, layer))

    def drain(self) -> None:
        """Wait for every layer."""
        while self._pending:
            self._pending.popleft().result()

    def _write(self, layer: QuantizedLayer) -> None:
        for layout in self._formats:
            tensors = dict[str, torch.Tensor]()
            for linear in layer.linears:
                codes, scale = linear.codes.cpu(), linear.scale.cpu()
                tensors.update(linear_tensors(layout, linear.name, codes, scale))
            _write_and_remove(self._folder, tensors)


def _write_and_remove(folder: Path, tensors: Mapping[str, torch.Tensor | TensorInfo]) -> None:
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder) as name:
        write_shard(Path(name) / "shard", tensors)


def copy_seconds(checkpoint: Checkpoint, num_formats: int, folder: Path) -> float:
    """Return the seconds that copying the embedding and the head takes, measured on a piece."""
    info = checkpoint.info(EMBEDDING)
    num_rows = max(1, info.shape[0] * _MAX_COPIED_BYTES // max(info.num_bytes, _MAX_COPIED_BYTES))
    num_bytes = info.num_bytes // info.shape[0] * num_rows
    piece = replace(info, shape=(num_rows, info.shape[1]), num_bytes=num_bytes)
    started = time.perf_counter()
    _write_and_remove(folder, {EMBEDDING: piece})
    seconds = time.perf_counter() - started
    tables = [checkpoint.info(name) for name in (EMBEDDING, LM_HEAD) if name in checkpoint.tensors]
    total = num_formats * sum(table.num_bytes for table in tables)
    # Each has a writer of its own.
    return seconds * total / num_bytes / min(num_cores(), len(tables))
