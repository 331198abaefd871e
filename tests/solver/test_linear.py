"""The candidates for one linear by themselves: rounding, how they are rated, which is chosen."""

import pytest
import torch

from vacc_deploy.formats.int8 import choose_scale
from vacc_deploy.solver.linear import (
    Candidate,
    Judge,
    choose,
    count_cut,
    round_weight,
)
from vacc_deploy.solver.stage_sums import HeldOut


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_count_cut_counts_what_rounding_cuts_with_a_subnormal_scale():
    """Row 0 wants 1.3 times the smallest float16 and gets that one; a normal scale cuts none."""
    weight = random(6, 24)
    assert count_cut(weight, choose_scale(weight)) == 0
    weight[0] = 0
    weight[0, :3] = 2.0**-24 * torch.tensor([127 * 1.3, -127 * 1.2, 100.0])
    assert count_cut(weight, choose_scale(weight)) == 2
    assert round_weight(weight).num_saturated == 2


def test_judge_rates_only_what_differs():
    weight, inputs = random(6, 24), random(30, 24, seed=1)
    judge = Judge(weight, HeldOut(inputs, None))
    rated = judge.rate(round_weight(weight))
    exact = Candidate("gptq", torch.ones(6, 24, dtype=torch.int8), torch.ones(6).half(), 0)
    assert judge.wanted is None and 0 < rated.error < 0.02
    assert Judge(torch.ones(6, 24), HeldOut(inputs, None)).rate(exact).error == 0


@pytest.mark.parametrize(("error", "method"), [(0.1, "gptq"), (0.2, "rtn"), (0.3, "rtn")])
def test_choose_takes_gptq_only_where_its_error_is_smaller(error, method):
    codes, scale = torch.zeros(1, 1, dtype=torch.int8), torch.ones(1).half()
    rounded = Candidate("rtn", codes, scale, 1, error=0.2)
    solved = Candidate("gptq", codes, scale, 2, 3, 0.51239, 0.25, error)
    chosen, record = choose("name", rounded, solved)
    assert chosen.method == record.method == method
    assert (record.error_gptq, record.error_rtn) == (error, 0.2)
    made = (record.num_saturated, record.num_pinned, record.correction, record.scale_shrink)
    assert made == ((2, 3, 0.5124, 0.25) if method == "gptq" else (1, 0, 0.0, 0.0))
