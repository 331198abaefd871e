"""Bring a stage's sums from all ranks together, and what was made of them back to all.

The Hessian has one owner, who factors it, and the regression of the float stream another, who works
beside the first. Their results go to every rank, and each solves its part of the output rows of
every linear. Rows do not depend on each other, so all ranks have the same to do; whole linears are
too few, of too different sizes. It costs the way of the factor, in² / 2 numbers, but the solve is
out · in² / 2 multiply-adds where the factorisation is in³ / 6.

With one rank every function returns what it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vacc_deploy.phases import PhaseClock
from vacc_deploy.quantize.ranks import Ranks, choose_owners
from vacc_deploy.solver.gptq import Factor
from vacc_deploy.solver.stage_sums import HeldOut, StageStatistics

_PHASE = "exchange"


@dataclass(frozen=True)
class Owners:
    """The ranks that work on the sums of a stage.

    Attributes:
        factor: who factors the Hessian.
        regression: who regresses the float stream on the other; None where no rank has one.
    """

    factor: int
    regression: int | None


def sum_at_owners(statistics: StageStatistics, ranks: Ranks, clock: PhaseClock) -> Owners:
    """Leave each sum over the tokens of all ranks with its owner, and None with the others."""
    has_stream = statistics.cross is not None
    if ranks.count == 1:
        return Owners(0, 0 if has_stream else None)
    with clock.phase(_PHASE):
        has_stream = any(has_one for (has_one,) in ranks.exchange(has_stream))
        hessian = statistics.hessian
        assert hessian is not None
        # A Cholesky factor each; the regression solves for as many columns besides.
        factorisation = len(hessian) ** 3 / 3
        costs = (factorisation, 7 * factorisation) if has_stream else (factorisation,)
        owner, *others = choose_owners(costs, ranks.count)
        for other in others:
            _sum_regression(statistics, ranks, other)
        ranks.sum_to(owner, hessian, upper=True)
        if ranks.rank != owner:
            statistics.hessian = None
    return Owners(owner, others[0] if others else None)


def _sum_regression(statistics: StageStatistics, ranks: Ranks, owner: int) -> None:
    """Sum both matrices of the tokens that have a float stream; this rank may have none."""
    hessian, shared, cross = statistics.hessian, statistics.shared_hessian, statistics.cross
    assert hessian is not None
    if cross is None:
        shared, cross = torch.zeros_like(hessian), torch.zeros_like(hessian)
    elif shared is None:
        shared = hessian.clone()
    ranks.sum_to(owner, shared, upper=True)
    ranks.sum_to(owner, cross)
    is_mine = ranks.rank == owner
    statistics.shared_hessian, statistics.cross = (shared, cross) if is_mine else (None, None)


def gather_held_out(held_out: HeldOut, ranks: Ranks, clock: PhaseClock) -> HeldOut:
    """Return the held-out tokens of all ranks; one may have none."""
    if ranks.count == 1:
        return held_out
    with clock.phase(_PHASE):
        deployed, original = held_out.deployed, held_out.original
        told = ranks.exchange(len(deployed), original is not None)
        sizes = [int(size) for size, _ in told]
        gathered = ranks.gather(deployed, sizes)
        if not any(has_original for _, has_original in told):
            return HeldOut(gathered, None)
        return HeldOut(gathered, ranks.gather(deployed if original is None else original, sizes))


def share_solution(
    factor: Factor | None,
    correction: torch.Tensor | None,
    owners: Owners,
    ranks: Ranks,
    *,
    like: torch.Tensor,
    clock: PhaseClock,
) -> tuple[Factor | None, torch.Tensor | None]:
    """Return the owners' results on every rank.

    Args:
        factor: of the owner of the Hessian; None where it could not be factored.
        correction: of the owner of the regression, float32 [in, in], or None likewise.
        owners: from ``sum_at_owners``.
        ranks: the processes of the run.
        like: held-out inputs [tokens, in_features]: where and how wide the results are.
        clock: counts the seconds.
    """
    if ranks.count == 1:
        return factor, correction
    with clock.phase(_PHASE):
        told = ranks.exchange(
            factor is not None,
            factor.dampening_frac if factor else 0.0,
            factor is not None and factor.order is not None,
            correction is not None,
        )
        if owners.regression is not None and told[owners.regression][3]:
            if correction is None:
                correction = _room(like)
            ranks.broadcast(correction, owners.regression)
        has_factor, dampening_frac, is_ordered, _ = told[owners.factor]
        if not has_factor:
            return None, correction
        if factor is None:
            room = _room(like)
            order = torch.empty_like(room[0], dtype=torch.int64) if is_ordered else None
            factor = Factor(room, order, dampening_frac, torch.empty_like(room[0]))
        ranks.broadcast(factor.unit_rows, owners.factor, upper=True)
        ranks.broadcast(factor.column_cost, owners.factor)
        if factor.order is not None:
            ranks.broadcast(factor.order, owners.factor)
    return factor, correction


def gather_rows(
    codes: torch.Tensor,
    scale: torch.Tensor,
    sizes: Sequence[int],
    ranks: Ranks,
    clock: PhaseClock,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes and scales of all ranks; ``sizes`` are the rows that each one has."""
    if ranks.count == 1:
        return codes, scale
    with clock.phase(_PHASE):
        return ranks.gather(codes, sizes), ranks.gather(scale, sizes)


def _room(like: torch.Tensor) -> torch.Tensor:
    """Return an undefined float32 [in, in] for the inputs ``like`` [tokens, in]."""
    size = like.shape[1]
    return torch.empty(size, size, device=like.device)
