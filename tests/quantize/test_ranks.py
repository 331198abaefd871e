"""What several processes of one run exchange, and how one of them ends the others."""

import os
import signal
import time

import pytest
import torch
from rank_processes import Raised, run_ranks

from vacc_deploy.errors import RankLostError
from vacc_deploy.quantize import processes
from vacc_deploy.quantize.ranks import ALONE, join_statistics
from vacc_deploy.solver.stage_sums import StageStatistics


def test_alone_gives_back_what_it_is_given():
    matrix = torch.arange(9.0).view(3, 3)
    ALONE.add(matrix)
    ALONE.broadcast(matrix)
    assert torch.equal(matrix, torch.arange(9.0).view(3, 3))
    assert ALONE.share(matrix) is matrix and ALONE.collect(3) == [3]


# ---- three processes ---------------------------------------------------------------------------

COUNT, SIZE = 3, 50


def part_of(rank, *shape):
    """Numbers of so different sizes that the order of their sum shows."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(*shape, generator=generator) * 10.0 ** (3 * rank)


def exchange_everything(ranks):
    processes.PIECE_NUMBERS = 7 * SIZE  # several pieces, and a rest
    rank = ranks.rank
    found = {"collect": ranks.collect((rank + 0.1, 2**53)), "share": ranks.share([rank, "ä"])}
    matrix, triangle = part_of(rank, SIZE, SIZE + 1), part_of(rank, SIZE, SIZE)
    ranks.add(matrix)
    ranks.add(triangle, upper=True)
    found["sum"], found["upper sum"] = matrix.numpy(), triangle.triu().numpy()
    codes, scale = torch.full((4, 2), rank, dtype=torch.int8), torch.full((4,), rank + 0.5).half()
    ranks.broadcast(codes, scale)
    found["broadcast"] = (codes.tolist(), scale.tolist())
    return found


def test_ranks_exchange_and_add_in_rank_order():
    outcomes = run_ranks(COUNT, exchange_everything)
    first, second, last = (part_of(rank, SIZE, SIZE + 1) for rank in range(COUNT))
    assert not torch.equal(first + second + last, first + (second + last))
    total = sum(part_of(rank, SIZE, SIZE) for rank in range(COUNT)).triu()
    for found in outcomes:
        assert found["collect"] == [(other + 0.1, 2**53) for other in range(COUNT)]
        assert found["share"] == [0, "ä"]
        assert torch.equal(torch.from_numpy(found["sum"]), first + second + last)
        assert torch.equal(torch.from_numpy(found["upper sum"]), total)
        assert found["broadcast"] == ([[0, 0]] * 4, [0.5] * 4)


# Tokens of each rank: held out, fitted with a float stream, fitted without one.
TOKENS = [(3, 20, 0), (0, 0, 30), (2, 10, 10)]


def statistics_of(rank):
    held_out, shared, plain = (part_of(rank + seed, n, 6) for seed, n in enumerate(TOKENS[rank]))
    statistics = StageStatistics()
    if len(shared):
        statistics.add_fit(shared, 1.1 * shared)
    if len(plain):
        statistics.end_shared()
        statistics.add_fit(plain)
    if len(held_out):
        statistics.add_held_out(held_out, held_out + 1, 1)
    return statistics


def join(ranks):
    statistics = statistics_of(ranks.rank)
    held_out = join_statistics(statistics, ranks)
    sums = (statistics.hessian, statistics.shared_hessian, statistics.cross)
    return [tensor.numpy() for tensor in (*sums, held_out.inputs, held_out.float_inputs)]


def test_sums_of_ranks_without_rows_of_a_kind_are_those_of_all_rows():
    outcomes = run_ranks(COUNT, join)
    held_out, shared, plain = (
        torch.cat([part_of(rank + seed, TOKENS[rank][seed], 6) for rank in range(COUNT)])
        for seed in range(3)
    )
    fitted = torch.cat((shared, plain)).double()
    exact = shared.double()
    for hessian, shared_hessian, cross, inputs, float_inputs in outcomes:
        for got, expected in (
            (hessian, fitted.T @ fitted),
            (shared_hessian, exact.T @ exact),
            (cross, exact.T @ (1.1 * shared - shared).double()),
        ):
            assert torch.allclose(torch.from_numpy(got).double(), expected, rtol=1e-4)
        assert torch.equal(torch.from_numpy(inputs), held_out)
        assert torch.equal(torch.from_numpy(float_inputs), held_out + 1)


# ---- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wait", "end"),
    [("share", "kill"), ("collect", "error"), ("add", "kill"), ("broadcast", "error")],
)
def test_a_rank_that_ends_is_noticed_by_one_that_waits_for_it(wait, end):
    """Without torchrun: by the connections that it closes."""

    def work(ranks):
        if ranks.rank == 0:
            if end == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("mine")
        getattr(ranks, wait)(torch.ones(2, 2))

    began = time.monotonic()
    failed, error = run_ranks(2, work)
    assert time.monotonic() - began < 20
    assert failed == (Raised(ValueError, "mine") if end == "error" else -signal.SIGKILL)
    assert error.kind is RankLostError
    assert error.text.startswith("Process 1 has lost the others: ")
    assert ".cc" not in error.text and " by peer" in error.text


def test_only_the_first_failure_is_told():
    assert sorted(run_ranks(3, lambda ranks: ranks.claim_failure())) == [False, False, True]
