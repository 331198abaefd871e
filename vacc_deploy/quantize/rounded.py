"""Quantize every layer by rounding to nearest: no forward pass, no calibration.

Bound by reading, hashing and writing. The arithmetic is spread over the cores in pieces of a few
rows, read just before they are rounded, so that no float weight is ever whole in memory.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.errors import QuantizationError
from vacc_deploy.model_config import LAYER_LINEARS, linear_name
from vacc_deploy.quantize.int8 import SCALE_DTYPE, round_rows
from vacc_deploy.quantize.report import RTN, LinearRecord, QuantizedLayer, QuantizedLinear

# Layers begun before the one that is waited for is done: what keeps every core busy.
_LOOK_AHEAD = 1
# Weights of one piece: enough to outweigh the cost of handing it to a thread.
_PIECE_WEIGHTS = 1 << 22


def round_layers(checkpoint: Checkpoint, first: int = 0) -> Iterator[QuantizedLayer]:
    """Yield the layers from ``first`` on, in order, quantized by rounding.

    Torch should be set to one thread: there is a thread for every core here already.

    Raises:
        QuantizationError: a weight is not finite; names the tensor, the row and the file.
        CheckpointError: a file became shorter since its header was read.
    """
    begun = deque[_BegunLayer]()
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="rounding")
    try:
        for layer in range(first, checkpoint.config.num_hidden_layers):
            begun.append(_BegunLayer(checkpoint, layer, pool))
            if len(begun) > _LOOK_AHEAD:
                yield begun.popleft().finish()
        while begun:
            yield begun.popleft().finish()
    finally:
        pool.shutdown(cancel_futures=True)


class _BegunLayer:
    """A layer whose pieces are being rounded in the background."""

    def __init__(self, checkpoint: Checkpoint, index: int, pool: ThreadPoolExecutor) -> None:
        self._index = index
        self._linears = tuple(
            _empty_linear(checkpoint, linear_name(index, linear)) for linear in LAYER_LINEARS
        )
        self._pieces: list[Future[None]] = []
        for linear in self._linears:
            out_features, in_features = linear.codes.shape
            rows = max(1, _PIECE_WEIGHTS // in_features)
            for start in range(0, out_features, rows):
                stop = min(start + rows, out_features)
                self._pieces.append(pool.submit(_round_piece, checkpoint, linear, start, stop))

    def finish(self) -> QuantizedLayer:
        """Wait for every piece; the first error in the order of the rows is raised here."""
        for piece in self._pieces:
            piece.result()
        records = tuple(LinearRecord(linear.name, RTN) for linear in self._linears)
        return QuantizedLayer(self._index, self._linears, records)


def _empty_linear(checkpoint: Checkpoint, name: str) -> QuantizedLinear:
    out_features, in_features = checkpoint.info(f"{name}.weight").shape
    memory = mmap.mmap(-1, out_features * in_features, flags=mmap.MAP_PRIVATE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # With pages of 4 KiB, the first touch of the codes takes as long as computing them.
        memory.madvise(mmap.MADV_HUGEPAGE)
    codes = torch.frombuffer(memory, dtype=torch.int8).view(out_features, in_features)
    return QuantizedLinear(name, codes, torch.empty(out_features, dtype=SCALE_DTYPE))


def _round_piece(checkpoint: Checkpoint, linear: QuantizedLinear, start: int, stop: int) -> None:
    name = f"{linear.name}.weight"
    weight = checkpoint.read_slice(name, start, stop)
    try:
        round_rows(weight, linear.codes[start:stop], linear.scale[start:stop], first_row=start)
    except QuantizationError as err:
        raise QuantizationError(
            f"{name} in {checkpoint.directory}: {err}. Download the file "
            f"{checkpoint.info(name).path.name} again."
        ) from err
