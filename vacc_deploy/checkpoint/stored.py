"""Read the bytes of stored tensors: whole, in pieces, or some rows, no more than is asked for."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vacc_deploy.checkpoint.header import TensorInfo
from vacc_deploy.errors import CheckpointError
from vacc_deploy.formats.dtypes import DTYPES, STORED_FLOATS, torch_dtype
from vacc_deploy.permissions import explain_unreadable
from vacc_deploy.stamps import FileStamp, compare_stamps, explain_change, find_change, open_ordinary

if TYPE_CHECKING:
    import torch

# Small enough to be hashed and written while it is still in the cache.
CHUNK_BYTES = 1 << 20
_PIECE_ELEMENTS = 1 << 20


@contextmanager
def open_stored(path: Path, stamp: FileStamp | None = None) -> Iterator[FileIO]:
    """Open a file that was checked, and see before and after that it is still the same.

    Args:
        path: the file.
        stamp: what it had when it was checked; default the one that it has now.

    Raises:
        CheckpointError: it was changed, or cannot be read.
    """
    try:
        opened = open_ordinary(path, buffering=0)
    except OSError as err:
        change = find_change(path, stamp) if stamp else ""
        message = explain_change(path, change) if change else explain_unreadable(path, err)
        raise CheckpointError(message) from err
    with opened as file:
        expected = stamp or FileStamp.of(os.fstat(file.fileno()))
        _compare(file.fileno(), path, expected)
        yield cast(FileIO, file)
        _compare(file.fileno(), path, expected)


def _compare(descriptor: int, path: Path, expected: FileStamp) -> None:
    if change := compare_stamps(path, expected, FileStamp.of(os.fstat(descriptor))):
        raise CheckpointError(explain_change(path, change))


def read_tensor(info: TensorInfo) -> torch.Tensor:
    """Return one tensor on the CPU in its stored dtype, in memory of its own.

    Raises:
        CheckpointError: the file was changed since its header was read.
    """
    return read_spans(info, info.shape, [(0, info.num_bytes)])


def read_spans(
    info: TensorInfo,
    shape: tuple[int, ...],
    spans: Iterable[tuple[int, int]],
    *,
    dtype: str = "",
) -> torch.Tensor:
    """Return a tensor of ``shape`` filled with pieces of a stored one.

    Args:
        info: the stored tensor.
        shape: sizes of the result.
        spans: where each piece begins within the tensor, and its length, both in bytes.
        dtype: code of the dtype to read as; default that of the tensor.
    """
    import torch

    tensor = torch.empty(shape, dtype=torch_dtype(dtype or info.dtype))
    # The tensor's own bytes, flat: what is read lands in them, with no copy between.
    view = memoryview(tensor.view(-1).view(torch.uint8).numpy().data)
    with open_stored(info.path, info.stamp) as file:
        for start, num_bytes in spans:
            file.seek(info.offset + start)
            fill(file, view[:num_bytes], info)
            view = view[num_bytes:]
    return tensor


def fill(file: FileIO, view: memoryview, info: TensorInfo) -> None:
    """Read until ``view`` is full.

    Raises:
        CheckpointError: the file was changed since its header was read.
    """
    while view:
        # One call reads at most 2 GiB on Linux.
        count = file.readinto(view)
        if not count:
            raise shortened(info)
        view = view[count:]


def stored_bytes(info: TensorInfo) -> Iterator[memoryview]:
    """Yield the bytes of one tensor as ``read_pieces`` does.

    Raises:
        CheckpointError: the file was changed since its header was read.
    """
    left = info.num_bytes
    for piece in read_pieces(info.path, [(info.offset, left)], info.stamp):
        left -= len(piece)
        yield piece
    if left:
        raise shortened(info)


def read_pieces(
    path: Path, spans: Iterable[tuple[int, int]], stamp: FileStamp | None = None
) -> Iterator[memoryview]:
    """Yield the bytes at each (offset, size) of a file, as far as it goes; see ``open_stored``.

    Every piece is the same buffer of ``CHUNK_BYTES``, filled anew: use it before taking the next.
    """
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with open_stored(path, stamp) as file:
        for offset, left in spans:
            file.seek(offset)
            while left > 0 and (count := file.readinto(buffer[:left])):
                left -= count
                yield buffer[:count]


def is_zero(info: TensorInfo) -> bool:
    """Return whether every byte of a tensor is zero."""
    return not any(piece.tobytes().strip(b"\0") for piece in stored_bytes(info))


def same_values(left: TensorInfo, right: TensorInfo) -> bool:
    """Return whether two stored tensors are the same matrix, whatever their dtypes."""
    if left.shape != right.shape:
        return False
    if left.dtype == right.dtype:
        # In step, piece by piece: neither is ever whole in memory.
        pieces = zip(stored_bytes(left), stored_bytes(right), strict=True)
        return all(mine.tobytes() == its.tobytes() for mine, its in pieces)
    if not {left.dtype, right.dtype} <= set(STORED_FLOATS):
        return False
    return all(
        # float64 holds the values of every other float.
        bool((mine.double() == its.double()).all())
        for mine, its in zip(_pieces(left), _pieces(right), strict=True)
    )


def _pieces(info: TensorInfo) -> Iterator[torch.Tensor]:
    """Yield the elements of a tensor, some at a time."""
    count, size = math.prod(info.shape), DTYPES[info.dtype].num_bytes
    for start in range(0, count, _PIECE_ELEMENTS):
        length = min(_PIECE_ELEMENTS, count - start)
        yield read_spans(info, (length,), [(start * size, length * size)])


def shortened(info: TensorInfo) -> CheckpointError:
    """Return the error of a file that ended before its tensor did."""
    missing = info.offset + info.num_bytes - info.path.stat().st_size
    change = f"it ended {missing:,} bytes before the end of {info.name}"
    return CheckpointError(explain_change(info.path, change))
