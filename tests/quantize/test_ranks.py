"""What several processes of one run exchange, and how one of them ends the others."""

import time

import pytest
import torch
from rank_processes import Raised, run_ranks

from vacc_deploy.errors import RankLostError, UsageError
from vacc_deploy.quantize import processes as process_ranks
from vacc_deploy.quantize.ranks import ALONE, check_shares, choose_owners, share_evenly


@pytest.mark.parametrize(
    ("total", "count", "expected"), [(7, 3, [3, 2, 2]), (6, 3, [2, 2, 2]), (1, 2, [1, 0])]
)
def test_share_evenly(total, count, expected):
    assert share_evenly(total, count) == expected


@pytest.mark.parametrize(
    ("costs", "count", "expected"),
    [
        ((1, 7), 1, [0, 0]),
        ((1, 7), 2, [0, 1]),
        ((1, 7), 4, [2, 3]),
        ((5,), 3, [2]),
        # 7 beside 3 + 3 + 1
        ((3, 7, 3, 1), 2, [0, 1, 0, 0]),
    ],
)
def test_choose_owners_shares_the_load(costs, count, expected):
    assert choose_owners(costs, count) == expected


def test_check_shares_refuses_more_processes_than_rows_or_outputs():
    check_shares(4, num_fit_rows=4, smallest_output=4)
    with pytest.raises(UsageError) as err:
        check_shares(5, num_fit_rows=4, smallest_output=32)
    assert str(err.value) == (
        "5 processes are too many: there are 4 calibration rows to fit, and the narrowest linear "
        "has 32 outputs. Start at most 4, or raise --num-samples."
    )
    with pytest.raises(UsageError, match="Start at most 3"):
        check_shares(4, num_fit_rows=9, smallest_output=3)


def test_alone_gives_back_what_it_is_given():
    matrix = torch.arange(9.0).view(3, 3)
    ALONE.sum_to(0, matrix)
    ALONE.broadcast(matrix, 0)
    assert torch.equal(matrix, torch.arange(9.0).view(3, 3))
    assert ALONE.gather(matrix, [3]) is matrix
    assert ALONE.add(1.5, -2) == [1.5, -2] and ALONE.exchange(3) == [[3]]
    assert ALONE.agree(None) is None and ALONE.agree(15) == 15
    assert ALONE.await_begin() is None


# ---- three processes ---------------------------------------------------------------------------

COUNT, SIZE = 3, 50


def part_of(rank, *shape):
    """Numbers of so different sizes that the order of their sum shows."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(*shape, generator=generator) * 10.0 ** (3 * rank)


def exchange_everything(ranks):
    process_ranks._PIECE_NUMBERS = 7 * SIZE  # several pieces, and a rest
    rank = ranks.rank
    found = {"exchange": ranks.exchange(rank + 0.1, 2**53), "add": ranks.add(0.1 * rank, 1)}
    found["agree"] = [
        ranks.agree(value) for value in (None, 15 if rank else None, 2 if rank == 2 else 0)
    ]
    for owner in range(COUNT):
        matrix = part_of(rank, SIZE, SIZE)
        ranks.sum_to(owner, matrix)
        found["sum", owner] = matrix.numpy()
    triangle = part_of(rank, SIZE, SIZE)
    ranks.sum_to(1, triangle, upper=True)
    found["upper sum"] = triangle.triu().numpy()
    ranks.broadcast(triangle, 1, upper=True)
    found["upper broadcast"] = triangle.triu().numpy()
    for dtype in (torch.int8, torch.float16, torch.bfloat16, torch.int64):
        sent = torch.full((4,), rank, dtype=dtype)
        ranks.broadcast(sent, 2)
        found[dtype] = sent.tolist()
    sizes = (2, 0, 3)
    part = torch.full((sizes[rank], 2), rank, dtype=torch.bfloat16)
    found["gather"] = ranks.gather(part, sizes).tolist()
    if rank:
        found["begin"] = ranks.await_begin()
    else:
        time.sleep(0.2)
        ranks.begin({"work": [1, "ä"]})
    return found


def test_ranks_exchange_in_rank_order():
    outcomes = run_ranks(COUNT, exchange_everything)
    parts = [part_of(rank, SIZE, SIZE) for rank in range(COUNT)]
    for rank, found in enumerate(outcomes):
        assert found["exchange"] == [[other + 0.1, 2**53] for other in range(COUNT)]
        assert found["add"] == [0.0 + 0.1 + 0.2, 3]
        assert found["agree"] == [None, 15, 0]
        for owner in range(COUNT):
            first, second, last = (parts[(owner + step) % COUNT] for step in (1, 2, 3))
            expected = first + second + last if rank == owner else parts[rank]
            assert torch.equal(torch.from_numpy(found["sum", owner]), expected)
        total = (parts[2] + parts[0] + parts[1]).triu()
        assert torch.equal(torch.from_numpy(found["upper broadcast"]), total)
        expected = total if rank == 1 else parts[rank].triu()
        assert torch.equal(torch.from_numpy(found["upper sum"]), expected)
        for dtype in (torch.int8, torch.float16, torch.bfloat16, torch.int64):
            assert found[dtype] == [2] * 4
        assert found["gather"] == [[0, 0]] * 2 + [[2, 2]] * 3
        assert rank == 0 or found["begin"] == {"work": [1, "ä"]}


def test_ranks_without_work_are_sent_away():
    assert run_ranks(2, lambda ranks: ranks.rank and ranks.await_begin()) == [0, None]


# ---- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failing_rank_ends_one_that_waits_for_it(failing):
    def work(ranks):
        if ranks.rank == failing:
            raise ValueError("mine")
        ranks.add(1.0)

    began = time.monotonic()
    outcomes = run_ranks(2, work)
    assert time.monotonic() - began < 20
    assert outcomes[failing] == Raised(ValueError, "mine")
    error = outcomes[1 - failing]
    assert error.kind is RankLostError
    assert error.text.startswith(f"Process {1 - failing} has lost the others: ")
    assert ".cc" not in error.text and " by peer" in error.text


def test_a_failing_first_rank_ends_one_that_waits_for_work():
    def work(ranks):
        if ranks.rank == 0:
            raise ValueError("mine")
        ranks.await_begin()

    assert run_ranks(2, work)[1].kind is RankLostError


def test_a_rank_that_cannot_notice_is_ended(monkeypatch):
    """As one that waits on a device for a rank that is gone."""
    monkeypatch.setattr(process_ranks, "_GRACE_SECONDS", 0.2)

    def work(ranks):
        if ranks.rank == 1:
            raise ValueError("mine")
        time.sleep(50)

    began = time.monotonic()
    assert run_ranks(2, work)[0] == 1  # its exit code
    assert time.monotonic() - began < 20


def test_only_the_first_failure_is_told():
    assert sorted(run_ranks(3, lambda ranks: ranks.claim_failure())) == [False, False, True]
