"""One of several processes that quantize together, by torch.distributed under torchrun.

A rank that dies closes its connections, at which the others fail too; torchrun ends, after 30
seconds by force, whatever still waits on a device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from vacc_deploy.errors import RankLostError
from vacc_deploy.quantize.ranks import Ranks, T

_JOIN_TIMEOUT = timedelta(minutes=5)
# Any wait for another rank within a layer; then rank 0's work before the first one, which may be
# to write the model's own answers.
_TIMEOUT, _LONG_TIMEOUT = timedelta(minutes=30), timedelta(days=1)
# Numbers of a matrix that are gathered at a time: as many as there are ranks are in memory.
PIECE_NUMBERS = 1 << 21  # 8 MiB of float32


class ProcessRanks(Ranks):
    """See ``Ranks``."""

    def __init__(self, rank: int, count: int, local_count: int) -> None:
        """Meet the others where MASTER_ADDR and MASTER_PORT say.

        Raises:
            RankLostError: not all of them came.
        """
        self.rank, self.count, self.local_count = rank, count, local_count
        with _losing(rank):
            self._store, _, _ = next(dist.rendezvous("env://", timeout=_JOIN_TIMEOUT))

    def connect(self, device: torch.device) -> None:
        """Get ready to exchange tensors on ``device``: by nccl on CUDA, by gloo on a CPU.

        Plain values go over gloo in any case: it notices at once that a rank is gone.

        Raises:
            RankLostError: another rank is gone.
        """
        backend = "nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with _losing(self.rank):
            dist.init_process_group(
                "gloo",
                store=dist.PrefixStore("quantize", self._store),
                rank=self.rank,
                world_size=self.count,
                timeout=_TIMEOUT,
            )
            self._patient = dist.new_group(backend="gloo", timeout=_LONG_TIMEOUT)
            self._tensors = dist.new_group(backend=backend, timeout=_TIMEOUT)

    def share(self, value: T) -> T:
        """Return rank 0's value; see ``Ranks``."""
        values = [value]
        with _losing(self.rank):
            dist.broadcast_object_list(values, 0, group=self._patient)
        return values[0]

    def collect(self, value: T) -> list[T]:
        """Return the values of all ranks; see ``Ranks``."""
        values: list[Any] = [None] * self.count
        with _losing(self.rank):
            dist.all_gather_object(values, value)
        return values

    def add(self, matrix: torch.Tensor, *, upper: bool = False) -> None:
        """Replace a matrix by the sum over the ranks; see ``Ranks``.

        Gathered and then added, not reduced: the order of a reduction is the library's.
        """
        rows = max(1, PIECE_NUMBERS // matrix.shape[1])
        for start in range(0, matrix.shape[0], rows):
            # [rows, m], with ``upper`` [rows, n - start]; a view, not contiguous where it is cut.
            piece = matrix[start : start + rows, start if upper else 0 :]
            mine = piece.contiguous()
            parts = [torch.empty_like(mine) for _ in range(self.count)]
            with _losing(self.rank):
                dist.all_gather(parts, mine, group=self._tensors)
            total, *others = parts
            for other in others:
                total += other
            piece.copy_(total)

    def broadcast(self, *tensors: torch.Tensor) -> None:
        """Replace the tensors by rank 0's; see ``Ranks``."""
        with _losing(self.rank):
            for tensor in tensors:
                dist.broadcast(tensor, 0, group=self._tensors)

    def claim_failure(self) -> bool:
        """Return whether this rank is the first one to fail, and should say why."""
        try:
            return self._store.add("vacc-deploy failures", 1) == 1
        except RuntimeError:  # the store went with its process, which cannot tell why any more
            return True

    def leave(self, *, is_failed: bool = False) -> None:
        """End the connection to the other ranks; after a failure without waiting for anybody."""
        # That of nccl would wait for them; the end of this process closes it as well.
        if dist.is_initialized() and not (is_failed and torch.cuda.is_initialized()):
            dist.destroy_process_group()


@contextmanager
def _losing(rank: int) -> Iterator[None]:
    """Turn what torch raises when another rank is gone into an error of ours.

    Raises:
        RankLostError: with the first sentence of torch's message.
    """
    try:
        yield
    # A RuntimeError too, but this rank's own trouble.
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as err:
        first_line = (str(err).splitlines() or [type(err).__name__])[0]
        # Without the line of torch's sources before it, and the advice behind it.
        reason = first_line.partition("] ")[2] or first_line
        reason = reason.partition(". ")[0].removesuffix(".")
        raise RankLostError(
            f"Process {rank} has lost the others: {reason}. One of them may have been killed, for "
            "example for lack of memory, or cannot be reached (MASTER_ADDR, MASTER_PORT)."
        ) from err
