"""Run the real quantizer on a few layers with some of the rows, and measure it; write nothing."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.formats.linears import linear_tensors
from vacc_deploy.phases import PhaseClock
from vacc_deploy.quantize.calibrated import calibrate_layers
from vacc_deploy.quantize.compute import Compute
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.rounded import round_layers
from vacc_deploy.quantize.shards import MAX_PENDING_LAYERS, NUM_WRITERS, copy_to_host
from vacc_deploy.reference.threads import torch_threads
from vacc_deploy.solver.records import QuantizedLayer
from vacc_deploy.system import peak_memory_bytes, reset_peak_memory

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows

# As many layers as a run of rounding holds at a time, and so many that its beginning and its end
# count little. Calibrated ones are timed only until they add up to enough.
MAX_LAYERS = max(8, NUM_WRITERS + 2)
ENOUGH_SECONDS = 1.5
# The first layer of all is slow, since libraries are loaded. One that takes longer than this has
# hidden its slow start.
LONG_SECONDS = 20.0
# Assumed: what is written goes through the system's memory to a solid-state disk.
WRITTEN_BYTES_PER_SECOND = 2 << 30
_HASHED_BYTES = 16 << 20  # about 10 ms at 1.5 GB/s


@dataclass(frozen=True)
class Measured:
    """What a sample took.

    Attributes:
        layer: seconds of one layer.
        start: seconds before the first layer.
        forward: seconds of one layer's forward passes.
        host_peak: bytes that the process held at most.
        device_peak: bytes held on the device; 0 where that is the host.
    """

    layer: float
    start: float = 0.0
    forward: float = 0.0
    host_peak: int = 0
    device_peak: int = 0


def run_sample(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    rows: CalibrationRows | None,
    *,
    compute: Compute,
    max_layers: int,
) -> Measured:
    """Quantize the first layers, pack and hash them, forget them.

    Args:
        checkpoint: the float weights.
        options: what the run is asked to do.
        rows: a share of the calibration tokens; None for rounding.
        compute: the device and the precision.
        max_layers: where to stop at the latest.

    Raises:
        QuantizationError: a weight or an activation is not finite; names the tensor.
        torch.cuda.OutOfMemoryError: a layer does not fit the device.
    """
    reset_peak_memory()
    if compute.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(compute.device)
    clock = PhaseClock(compute.synchronize)
    layers = _begin(checkpoint, options, rows, compute, clock)
    max_pending = NUM_WRITERS if rows is None else MAX_PENDING_LAYERS
    pending = deque[Future[int]]()
    num_bytes, ends = 0, [time.perf_counter()]
    # As in the run: rounding has a thread for every core already.
    threads = torch_threads(1) if rows is None else nullcontext()
    with threads, ThreadPoolExecutor(NUM_WRITERS, thread_name_prefix="sample") as writers:
        for layer in layers:
            ends.append(time.perf_counter())
            while len(pending) >= max_pending:
                num_bytes += pending.popleft().result()
            assert layer is not None, "no layer of a sample is finished before"
            pending.append(writers.submit(_pack_and_hash, layer, options.formats))
            del layer
            if len(ends) > max_layers or (rows is not None and _is_enough(ends)):
                break
        del layers  # ends its threads
        num_bytes += sum(future.result() for future in pending)
    num_layers = len(ends) - 1
    # The first layer begins with the start, unless it is the only one.
    seconds = (ends[-1] - ends[1]) / (num_layers - 1) if num_layers > 1 else ends[1] - ends[0]
    if rows is None:
        # A run of rounding ends with its writers: they are as busy as the cores that round. Those
        # of a calibrated run write beside its arithmetic.
        seconds = time.perf_counter() - ends[0] + num_bytes / WRITTEN_BYTES_PER_SECOND
        seconds /= num_layers
    return Measured(
        seconds,
        max(0.0, ends[1] - ends[0] - seconds),
        clock.to_dict().get("forward", 0.0) / num_layers,
        peak_memory_bytes(),
        compute.peak_memory_bytes() or 0,
    )


def _begin(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    rows: CalibrationRows | None,
    compute: Compute,
    clock: PhaseClock,
) -> Iterator[QuantizedLayer | None]:
    if rows is None:
        return round_layers(checkpoint)
    # So few rows fit the memory: nothing is written to the directory.
    spool_dir = Path(tempfile.gettempdir())
    return calibrate_layers(
        checkpoint, options, rows, compute=compute, spool_dir=spool_dir, clock=clock
    )


def _is_enough(ends: list[float]) -> bool:
    """Return whether two layers behind the first took long enough, or all of them very long."""
    is_long = ends[-1] - ends[0] >= LONG_SECONDS
    return is_long or (len(ends) > 3 and ends[-1] - ends[1] >= ENOUGH_SECONDS)


def _pack_and_hash(layer: QuantizedLayer, formats: tuple[str, ...]) -> int:
    """Do what writing a layer costs the processor; return the bytes that would be written."""
    num_bytes, linears = 0, [copy_to_host(linear) for linear in layer.linears]
    for layout in formats:
        tensors = dict[str, torch.Tensor]()
        # A whole layer, as it is in memory when it is written.
        for linear in linears:
            tensors |= linear_tensors(layout, linear.name, linear.codes, linear.scale)
        for tensor in tensors.values():
            hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
            num_bytes += tensor.nbytes
    return num_bytes


def copy_seconds(num_bytes: int, num_threads: int) -> float:
    """Return the seconds that hashing and writing tables takes, by the speed of one hash."""
    data = bytes(_HASHED_BYTES)
    started = time.perf_counter()
    hashlib.sha256(data)
    hashing = (time.perf_counter() - started) / _HASHED_BYTES / num_threads
    return num_bytes * (hashing + 1 / WRITTEN_BYTES_PER_SECOND)
