"""The calibration rows' hidden states: one buffer, on the device, in memory or on the disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import OutputError
from vacc_deploy.models.config import EMBEDDING
from vacc_deploy.outputs.file_system import UNSUPPORTED, naming
from vacc_deploy.quantize.compute import Compute
from vacc_deploy.system import available_memory_bytes

# Share of the device's free memory; the rest is for weights, Hessians and activations.
_DEVICE_SHARE = 0.45
# Share of the host's available memory.
_HOST_SHARE = 0.5
DEVICE, HOST, DISK = "device", "host", "disk"


class HiddenRows:
    """Hidden states [num_rows, seq, width] that are read and written some rows at a time."""

    def __init__(self, buffer: torch.Tensor, device: torch.device) -> None:
        self.buffer, self._device = buffer, device

    @classmethod
    def allocate(cls, shape: tuple[int, int, int], compute: Compute, spool_dir: Path) -> HiddenRows:
        """Return a buffer of undefined content in the compute dtype, in the fastest storage.

        Args:
            shape: [num_rows, seq, width].
            compute: where it is used.
            spool_dir: takes the file where it does not fit the memory; the file has no name.

        Raises:
            OSError: it does not fit the disk either.
        """
        num_bytes = shape[0] * shape[1] * shape[2] * compute.dtype.itemsize
        storage = choose_storage(
            num_bytes, compute.free_memory_bytes(), available_memory_bytes() // compute.num_sharing
        )
        if storage == DISK:
            return cls(_map_file(shape, compute.dtype, spool_dir), compute.device)
        where = compute.device if storage == DEVICE else None
        return cls(torch.empty(shape, dtype=compute.dtype, device=where), compute.device)

    def read(self, rows: slice) -> torch.Tensor:
        """Return the states of some rows on the device; treat them as read-only."""
        return self.buffer[rows].to(self._device)

    def write(self, rows: slice, states: torch.Tensor) -> None:
        """Replace the states of some rows."""
        self.buffer[rows].copy_(states)

    def clone_first(self, count: int, compute: Compute, spool_dir: Path) -> HiddenRows:
        """Return a copy of the first ``count`` rows."""
        shape = (count, self.buffer.shape[1], self.buffer.shape[2])
        copy = HiddenRows.allocate(shape, compute, spool_dir)
        copy.buffer.copy_(self.buffer[:count])
        return copy


def choose_storage(num_bytes: int, device_free: int | None, host_available: int) -> str:
    """Return where a buffer goes: ``device``, ``host`` or ``disk``.

    Args:
        num_bytes: size of the buffer.
        device_free: bytes free on the device; None where that is the host.
        host_available: bytes available on the host.
    """
    if device_free is not None and num_bytes <= _DEVICE_SHARE * device_free:
        return DEVICE
    return HOST if num_bytes <= _HOST_SHARE * host_available else DISK


def embed_rows(
    checkpoint: Checkpoint, tokens: torch.Tensor, compute: Compute, spool_dir: Path
) -> HiddenRows:
    """Return the embeddings of ``tokens`` int64 [rows, seq].

    Only the rows of the table that occur are read.

    Raises:
        CheckpointError: a token id is outside the table.
    """
    # inverse: [rows, seq], each token's row of the table that is read
    unique, inverse = torch.unique(tokens, return_inverse=True)
    table = checkpoint.read_rows(EMBEDDING, unique.tolist()).to(compute.dtype)
    shape = (*tokens.shape, table.shape[1])
    hidden = HiddenRows.allocate(shape, compute, spool_dir)
    # Row by row: all states at once may fit neither the device nor the memory.
    for row in range(len(tokens)):
        # [unique, hidden] -> [seq, hidden] -> [1, seq, hidden]
        hidden.write(slice(row, row + 1), table[inverse[row]][None])
    return hidden


def _map_file(shape: tuple[int, int, int], dtype: torch.dtype, spool_dir: Path) -> torch.Tensor:
    """Return a tensor on a file that goes when the tensor goes, whatever ends the process.

    Raises:
        OSError: the file system has too little space for all of it.
        OutputError: it has no memory-mapped files.
    """
    size = shape[0] * shape[1] * shape[2]
    descriptor, name = tempfile.mkstemp(prefix=".rows-", dir=spool_dir)
    try:
        try:
            with naming(spool_dir):
                _reserve(descriptor, size * dtype.itemsize)
        finally:
            os.close(descriptor)
        try:
            return torch.from_file(name, shared=True, size=size, dtype=dtype).view(shape)
        except RuntimeError as err:
            raise OutputError(
                f"The calibration rows fit no memory, and the file system of {spool_dir} cannot "
                f"map a file into it ({str(err).splitlines()[0]:.200}). Choose an --output on a "
                "local disk, or fewer rows with --num-samples."
            ) from err
    finally:
        os.unlink(name)


def _reserve(descriptor: int, num_bytes: int) -> None:
    """Take ``num_bytes`` of the disk for a file.

    A page that finds no block when it is written ends the process, without an error.
    """
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as err:
        if err.errno not in UNSUPPORTED:
            raise
        zeros = bytes(1 << 20)
        with os.fdopen(os.dup(descriptor), "wb") as file:
            for start in range(0, num_bytes, len(zeros)):
                file.write(zeros[: num_bytes - start])
