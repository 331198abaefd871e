"""What the processes of one calibrated run do together; an ordinary run is its only process.

``Ranks`` is that one process: nothing to send, nothing to wait for. ``ProcessRanks`` is one of
several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vacc_deploy.errors import UsageError


class Ranks:
    """The processes of a run, seen from one of them. This base class is a process of its own.

    Attributes:
        rank: of this process, from 0. Rank 0 reads the text, writes the output and talks.
        count: of all processes.
        local_count: of those on this machine, which share its memory.
    """

    rank, count, local_count = 0, 1, 1

    def exchange(self, *values: float) -> list[list[float]]:
        """Return the numbers of every rank, in rank order; exact as float64."""
        return [list(values)]

    def add(self, *values: float) -> list[float]:
        """Return the sums over the ranks, added in rank order: the same on every rank."""
        return [sum(column) for column in zip(*self.exchange(*values), strict=True)]

    def agree(self, value: int | None) -> int | None:
        """Return the value of the first rank that has one: the same on every rank."""
        return value

    def sum_to(self, owner: int, matrix: torch.Tensor, *, upper: bool = False) -> None:
        """Replace the owner's matrix by the sum over the ranks, added in rank order.

        Args:
            owner: the rank that gets the sum; the others' matrices stay as they are.
            matrix: float32 [n, m], of the same shape on every rank.
            upper: only the upper triangle of a square matrix; below it nothing is defined.
        """

    def broadcast(self, tensor: torch.Tensor, owner: int, *, upper: bool = False) -> None:
        """Replace ``tensor`` by the owner's, of the same shape and dtype; ``upper`` as above."""

    def gather(self, part: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """Return the parts of all ranks one below the other, in rank order.

        Args:
            part: this rank's, [sizes[rank], ...].
            sizes: rows of each rank's part.
        """
        return part

    def begin(self, work: Mapping[str, Any]) -> None:
        """Tell the others, as rank 0, what to do: plain values for JSON. At most once."""

    def await_begin(self) -> dict[str, Any] | None:
        """Return what rank 0 tells to do, None where there is nothing; waits as long as it takes.

        Raises:
            RankLostError: rank 0 has failed before.
        """
        return None


ALONE = Ranks()


def share_evenly(total: int, count: int) -> list[int]:
    """Return how many of ``total`` things each of ``count`` ranks gets, the first ones more."""
    return [total // count + (rank < total % count) for rank in range(count)]


def choose_owners(costs: Sequence[float], count: int) -> list[int]:
    """Return the rank for each job, so that the busiest one has little to do.

    The largest job first, always to the rank with the least load; of equal ones to the last, since
    rank 0 also writes the output.

    Args:
        costs: of the jobs, in any unit.
        count: of the ranks.
    """
    loads, owners = [0.0] * count, [0] * len(costs)
    for job in sorted(range(len(costs)), key=lambda job: (-costs[job], job)):
        owners[job] = min(range(count), key=lambda rank: (loads[rank], -rank))
        loads[owners[job]] += costs[job]
    return owners


def check_shares(count: int, num_fit_rows: int, smallest_output: int) -> None:
    """Refuse more ranks than there are things to share.

    Args:
        count: of the ranks.
        num_fit_rows: calibration rows that are fitted.
        smallest_output: out_features of the narrowest linear.

    Raises:
        UsageError: gives the most ranks that have work.
    """
    most = min(num_fit_rows, smallest_output)
    if count > most:
        raise UsageError(
            f"{count} processes are too many: there are {num_fit_rows} calibration rows to fit, "
            f"and the narrowest linear has {smallest_output} outputs. Start at most {most}, or "
            "raise --num-samples."
        )
