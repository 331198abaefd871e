"""One of several processes that quantize together, by torch.distributed.

Sums are added in rank order, piece by piece from one rank to the next, so that they depend on the
number of ranks and on nothing else. A process that fails says so in the store that all can read: a
thread in every other one looks there, and ends a process that waits for it in vain.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from vacc_deploy.errors import RankLostError
from vacc_deploy.quantize.ranks import Ranks

# Joining; then every wait for another rank within a run.
_JOIN_TIMEOUT = timedelta(minutes=5)
_TIMEOUT = timedelta(minutes=30)
# Numbers in a message of a sum: small enough that all ranks of the chain are at work.
_PIECE_NUMBERS = 1 << 21
_BEGIN, _FAILED, _FAILED_COUNT, _LEFT = "begin", "failed", "failed count", "left"
_LOOK_SECONDS = 0.5
# What a process may take to end by itself once another one has failed.
_GRACE_SECONDS = 20.0


@dataclass(frozen=True)
class Place:
    """Where a process stands among all of them.

    Attributes:
        rank: from 0.
        count: of all processes.
        local_rank: from 0, among those on this machine.
        local_count: of those.
    """

    rank: int
    count: int
    local_rank: int
    local_count: int


class ProcessRanks(Ranks):
    """See ``Ranks``; every method is called by all ranks in the same order."""

    def __init__(self, place: Place) -> None:
        """Meet the others where MASTER_ADDR and MASTER_PORT say, to tell them of failures.

        Raises:
            RankLostError: nobody is there.
        """
        self.rank, self.count, self.local_count = place.rank, place.count, place.local_count
        self._device = torch.device("cpu")
        self._store = self._find_store("vacc-deploy")
        self._has_begun = False
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="rank-watcher", daemon=True).start()

    def connect(self, device: torch.device) -> None:
        """Get ready to exchange tensors on ``device``: by gloo on a CPU, by nccl on CUDA.

        Raises:
            RankLostError: not all of the others came.
        """
        self._device = device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # With a connection of its own: the watcher's must not wait while this one does.
        store = self._find_store("group")
        with _losing(self.rank):
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=store,
                rank=self.rank,
                world_size=self.count,
                timeout=_TIMEOUT,
            )

    def _find_store(self, name: str) -> dist.Store:
        with _losing(self.rank):
            store, _, _ = next(dist.rendezvous("env://", timeout=_JOIN_TIMEOUT))
        return dist.PrefixStore(name, store)

    def exchange(self, *values: float) -> list[list[float]]:
        """Return the numbers of every rank; see ``Ranks``."""
        mine = torch.tensor(values, dtype=torch.float64, device=self._device)
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        with _losing(self.rank):
            dist.all_gather(parts, mine)
        return [part.tolist() for part in parts]

    def agree(self, value: int | None) -> int | None:
        """Return the value of the first rank that has one; see ``Ranks``."""
        values = self.exchange(float(value is not None), float(value or 0))
        return next((int(number) for has_one, number in values if has_one), None)

    def sum_to(self, owner: int, matrix: torch.Tensor, *, upper: bool = False) -> None:
        """Sum on the way from the rank behind the owner round to the owner; see ``Ranks``."""
        first = (owner + 1) % self.count
        before, after = (self.rank - 1) % self.count, (self.rank + 1) % self.count
        with _losing(self.rank):
            for piece in _pieces(matrix, upper):
                total = piece.contiguous()
                if self.rank != first:
                    received = torch.empty_like(total)
                    dist.recv(received, before)
                    total = received.add_(total)
                if self.rank != owner:
                    dist.send(total, after)
                else:
                    piece.copy_(total)

    def broadcast(self, tensor: torch.Tensor, owner: int, *, upper: bool = False) -> None:
        """Replace ``tensor`` by the owner's; see ``Ranks``."""
        with _losing(self.rank):
            for piece in _pieces(tensor, upper) if upper else [tensor]:
                sent = piece.contiguous()
                dist.broadcast(sent, owner)
                if sent.data_ptr() != piece.data_ptr() and self.rank != owner:
                    piece.copy_(sent)

    def gather(self, part: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """Return the parts of all ranks one below the other; see ``Ranks``."""
        whole = part.new_empty(sum(sizes), *part.shape[1:])
        pieces = whole.split(list(sizes))
        pieces[self.rank].copy_(part)
        for owner, piece in enumerate(pieces):
            if len(piece):
                self.broadcast(piece, owner)
        return whole

    def begin(self, work: Mapping[str, Any]) -> None:
        """Tell the others what to do; see ``Ranks``."""
        self._tell_others(json.dumps(work))

    def await_begin(self) -> dict[str, Any] | None:
        """Return what rank 0 tells to do; see ``Ranks``."""
        with _losing(self.rank):
            while not self._store.check([_BEGIN]):
                if self._store.check([_FAILED]):
                    raise RankLostError("Another process has failed.")
                time.sleep(0.05)
            work: dict[str, Any] | None = json.loads(self._store.get(_BEGIN))
        return work

    def leave(self) -> None:
        """End well. As rank 0, send away the others that still wait to be told what to do."""
        if self.rank == 0 and not self._has_begun:
            self._tell_others(json.dumps(None))
        self._closed.set()
        with _losing(self.rank):
            self._store.add(_LEFT, int(self.rank > 0))
            # Without torchrun the store is this process's: the others may still have to read it.
            deadline = time.monotonic() + _GRACE_SECONDS
            while self.rank == 0 and self._store.add(_LEFT, 0) < self.count - 1:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
        dist.destroy_process_group()

    def abandon(self) -> None:
        """End after a failure, without waiting for anybody."""
        self._closed.set()
        if self._device.type == "cpu" and dist.is_initialized():
            # Closes the connections, at which the others notice. That of nccl may wait for them.
            dist.destroy_process_group()

    def claim_failure(self) -> bool:
        """Let the others end; return whether this process is the first one that has failed."""
        try:
            is_first = self._store.add(_FAILED_COUNT, 1) == 1
            self._store.set(_FAILED, str(self.rank))
        except RuntimeError:  # the store went with its process, which cannot tell why any more
            return True
        return is_first

    def _tell_others(self, text: str) -> None:
        self._has_begun = True
        with _losing(self.rank):
            self._store.set(_BEGIN, text)

    def _watch(self) -> None:
        """End this process if it outlives a failed one: it may wait for it inside a collective."""
        while not self._closed.wait(_LOOK_SECONDS):
            try:
                has_failed = self._store.check([_FAILED])
            except RuntimeError:
                has_failed = True
            if has_failed:
                if not self._closed.wait(_GRACE_SECONDS):
                    # Nothing else reaches a thread that waits in a library for a dead process. The
                    # journal stands this at any moment.
                    os._exit(1)
                return


@contextmanager
def _losing(rank: int) -> Iterator[None]:
    """Turn what torch raises when another rank is gone into an error of ours.

    Raises:
        RankLostError: with the first sentence of torch's message.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as err:
        first_line = (str(err).splitlines() or [type(err).__name__])[0]
        # Without the place in torch's sources before it, and the advice behind it.
        reason = first_line.partition("] ")[2] or first_line
        reason = reason.partition(". ")[0].removesuffix(".")
        raise RankLostError(
            f"Process {rank} has lost the others: {reason}. One of them may have been killed, for "
            "example for lack of memory, or cannot be reached (MASTER_ADDR, MASTER_PORT)."
        ) from err


def _pieces(matrix: torch.Tensor, upper: bool) -> Iterator[torch.Tensor]:
    """Yield views of some rows each, from the diagonal on where ``upper``."""
    rows = max(1, _PIECE_NUMBERS // matrix.shape[1])
    for start in range(0, matrix.shape[0], rows):
        yield matrix[start : start + rows, start if upper else 0 :]
