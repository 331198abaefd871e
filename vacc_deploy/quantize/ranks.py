"""What the processes of one calibrated run do together. Every one of them runs the same code.

Each carries its share of the rows, sums what it sees of them, and solves every linear from the sums
of all. Rank 0 alone reads the text, writes the output and talks.

``Ranks`` is an ordinary run, a process of its own; ``ProcessRanks`` is one of several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch

from vacc_deploy.checkpoint.changes import explain_changes, find_changes
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError, UsageError, list_problems
from vacc_deploy.quantize.compute import Compute
from vacc_deploy.quantize.identity import differences, identify
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.solver import RTN
from vacc_deploy.solver.stage_sums import HeldOut, StageStatistics

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows

T = TypeVar("T")


class Ranks:
    """The processes of a run, seen from one of them. This base class is a process of its own.

    Every method is called by all ranks, in the same order.

    Attributes:
        rank: number of this process, from 0.
        count: number of all processes.
        local_count: number of those on this machine, which share its memory.
    """

    rank, count, local_count = 0, 1, 1

    def share(self, value: T) -> T:
        """Return rank 0's value on every rank; waits for it for a day if need be."""
        return value

    def collect(self, value: T) -> list[T]:
        """Return the values of all ranks, in rank order."""
        return [value]

    def add(self, matrix: torch.Tensor, *, upper: bool = False) -> None:
        """Replace a matrix by the sum over the ranks, added in rank order: the same on every rank.

        Args:
            matrix: float32 [n, m], of the same shape on every rank.
            upper: add only the upper triangle of a square matrix; below it nothing is defined.
        """

    def broadcast(self, *tensors: torch.Tensor) -> None:
        """Replace the tensors by rank 0's, of the same shapes and dtypes."""


ALONE = Ranks()


def check_same(
    checkpoint: Checkpoint, options: QuantizeOptions, compute: Compute, ranks: Ranks
) -> None:
    """Refuse ranks with other files, options or versions than rank 0's; directory names may differ.

    Raises:
        CheckpointError: names every difference.
        UsageError: several ranks are to round.
    """
    if ranks.count == 1:
        return
    if options.method == RTN:
        raise UsageError(
            "--method rtn is bound by reading and writing files, which further processes do not "
            f"speed up: run it in one instead of {ranks.count}."
        )
    # Without the model's name, which is that of its directory, and without the text, which only
    # rank 0 reads.
    identity: dict[str, Any] = identify(checkpoint, options, "", None, compute)
    identity["compute dtype"] = str(compute.dtype).removeprefix("torch.")
    first, *others = ranks.collect(identity)
    for rank, other in enumerate(others, start=1):
        different = differences(first, other, labels=("in process 0", f"in process {rank}"))
        if different:
            raise CheckpointError(
                f"Process {rank} has other inputs, options or versions than process 0:\n"
                f"{list_problems(different, limit=len(different))}\n"
                "Give every process the same files, options and installation."
            )


def check_same_source(checkpoint: Checkpoint, ranks: Ranks) -> None:
    """Refuse to go on where the source of any rank was changed since that rank opened it.

    Raises:
        CheckpointError: names every file of the first such rank.
    """
    found = find_changes(checkpoint)
    told = ranks.collect(explain_changes(checkpoint.directory, found) if found else "")
    if message := next(filter(None, told), ""):
        raise CheckpointError(message)


def check_rows(rows: CalibrationRows | None, ranks: Ranks) -> None:
    """Refuse more ranks than there are rows to share.

    Raises:
        UsageError: gives the most ranks that have work.
    """
    if rows is not None and ranks.count > rows.num_fit_rows:
        raise UsageError(
            f"{ranks.count} processes are too many: there are {rows.num_fit_rows} calibration rows "
            f"to fit. Start at most {rows.num_fit_rows}, or raise --num-samples."
        )


def join_statistics(statistics: StageStatistics, ranks: Ranks) -> HeldOut:
    """Complete the sums over the tokens of all ranks, and return the held-out sample of all."""
    if ranks.count == 1:
        return statistics.finish()
    hessian = statistics.hessian
    assert hessian is not None, "every rank has rows that are fitted"
    # Before any sum is sent: ranks that come late are waited for here, and dead ones noticed.
    if any(ranks.collect(statistics.cross is not None)):
        if statistics.cross is None:  # this rank has no rows with a float stream
            statistics.cross = torch.zeros_like(hessian)
            statistics.shared_hessian = torch.zeros_like(hessian)
        elif statistics.shared_hessian is None:
            # All of its tokens have one; other ranks may have more.
            statistics.shared_hessian = hessian.clone()
        assert statistics.shared_hessian is not None
        ranks.add(statistics.shared_hessian, upper=True)
        ranks.add(statistics.cross)
    ranks.add(hessian, upper=True)
    # Mirrored after the sum: what lies below the diagonal of a part is undefined.
    own = statistics.finish()
    samples = ranks.collect(
        # On the host: collect pickles, and sends by gloo.
        (own.inputs.cpu(), None if own.float_inputs is None else own.float_inputs.cpu())
    )
    inputs = torch.cat([sample for sample, _ in samples])  # [tokens of all ranks, in]
    float_inputs = [sample for _, sample in samples if sample is not None]
    return HeldOut(
        inputs.to(hessian.device),
        torch.cat(float_inputs).to(hessian.device) if float_inputs else None,
    )
