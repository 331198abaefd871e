"""Quantize every layer by rounding to nearest: no forward pass, no calibration.

Bound by reading, hashing and writing. The arithmetic is spread over the cores in pieces of a few
rows, read just before they are rounded, so that no float weight is ever whole in memory.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import QuantizationError
from vacc_deploy.formats.int8 import SAFE_SCALE, SCALE_DTYPE, pin_largest, round_rows
from vacc_deploy.models.config import LAYER_LINEARS, ModelConfig, linear_name
from vacc_deploy.quantize.layer_weights import locate_file
from vacc_deploy.solver import RTN
from vacc_deploy.solver.records import LinearRecord, QuantizedLayer, QuantizedLinear
from vacc_deploy.system import num_cores

# Layers begun before the one that is waited for is done: what keeps every core busy.
_LOOK_AHEAD = 1
# Weights of one piece: enough to outweigh the cost of handing it to a thread.
_PIECE_WEIGHTS = 1 << 22


def round_layers(checkpoint: Checkpoint, first: int = 0) -> Iterator[QuantizedLayer]:
    """Yield the layers from ``first`` on, in order, quantized by rounding.

    The memory of a layer is used again for a later one as soon as nothing holds its tensors. Torch
    should be set to one thread: there is a thread for every core here already.

    Raises:
        QuantizationError: a weight is not finite; names the tensor, the row and the file.
        CheckpointError: a file was changed since its header was read.
    """
    memory, begun = _CodeMemory(checkpoint.config), deque[_BegunLayer]()
    pool = ThreadPoolExecutor(num_cores(), thread_name_prefix="rounding")
    try:
        for index in range(first, checkpoint.config.num_hidden_layers):
            begun.append(_BegunLayer(checkpoint, index, memory, pool))
            if len(begun) > _LOOK_AHEAD:
                yield begun.popleft().finish()
        while begun:
            yield begun.popleft().finish()
    finally:
        pool.shutdown(cancel_futures=True)


class _CodeMemory:
    """Memory for the codes of whole layers.

    Fresh pages are cleared by the kernel at their first touch. In pages of 4 KiB that takes as long
    as computing the codes; it takes less in large pages, and nothing where they are used again.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._shapes = {linear: config.linear_shape(linear) for linear in LAYER_LINEARS}
        self._num_bytes = sum(out * inp for out, inp in self._shapes.values())
        self._free: list[mmap.mmap] = []

    def take(self) -> dict[str, torch.Tensor]:
        """Return the codes of one layer, int8 [out, in] each, not filled in yet."""
        pages = self._free.pop() if self._free else _map_pages(self._num_bytes)
        # The array lives as long as any tensor on it does.
        array = np.frombuffer(pages, np.int8)
        weakref.finalize(array, self._free.append, pages)
        # [all weights of a layer] -> [out · in] of each linear -> [out, in]
        parts = torch.from_numpy(array).split([out * inp for out, inp in self._shapes.values()])
        shapes = self._shapes.items()
        return {name: part.view(shape) for (name, shape), part in zip(shapes, parts, strict=True)}


def _map_pages(num_bytes: int) -> mmap.mmap:
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


class _BegunLayer:
    """A layer whose pieces are being rounded in the background."""

    def __init__(
        self, checkpoint: Checkpoint, index: int, memory: _CodeMemory, pool: ThreadPoolExecutor
    ) -> None:
        self._index = index
        self._linears = tuple(
            QuantizedLinear(
                linear_name(index, linear), codes, torch.empty(len(codes), dtype=SCALE_DTYPE)
            )
            for linear, codes in memory.take().items()
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


def _round_piece(checkpoint: Checkpoint, linear: QuantizedLinear, start: int, stop: int) -> None:
    name = f"{linear.name}.weight"
    weight = checkpoint.read_slice(name, start, stop)  # [rows, in], in the stored dtype
    # Views: the piece is written into the layer's own memory.
    codes, scale = linear.codes[start:stop], linear.scale[start:stop]
    try:
        round_rows(weight, codes, scale)
    except QuantizationError as err:
        err.locate(name, first_row=start)
        locate_file(err, checkpoint)
        raise
    # Next to no row has such a scale: looking for the largest code of every row would cost a pass.
    few_digits = (scale < SAFE_SCALE).nonzero()[:, 0]
    if len(few_digits):
        codes[few_digits], _ = pin_largest(weight[few_digits], codes[few_digits], scale[few_digits])
