"""The scale of each row beside a brute-force search over the same candidates, and its limits."""

import pytest
import torch

from vacc_deploy.formats.int8 import SMALLEST_SCALE, choose_scale
from vacc_deploy.solver.scale_search import search_scale

NUM_STEPS, MOST_SHRINK, MOST_CUT = 20, 0.2, 15


def random_weight(out_features, in_features, *, seed=0):
    """Rows with a few large weights, as trained ones have."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out_features, in_features, generator=generator) ** 3 * 0.02


def random_cost(in_features, *, seed=1):
    """Costs that differ by some powers of ten."""
    return torch.exp(3 * torch.randn(in_features, generator=torch.Generator().manual_seed(seed)))


def candidates(scale):
    """The scale and 20 smaller ones, float16."""
    return [(scale.float() * (1 - 0.01 * step)).half() for step in range(NUM_STEPS + 1)]


def expected_cost(row, scale, column_cost):
    """The cost of one row [in_features], every weight looked at, in float64."""
    cut = (row.double().abs() - 127 * scale).clamp_min(0)
    return float((column_cost.double() * (scale**2 / 12 + cut**2)).sum())


def brute_force(weight, scale, column_cost):
    """The best candidate of every row among those that cut 15 weights or fewer."""
    chosen = []
    for row, tried in zip(weight, torch.stack(candidates(scale), 1).tolist(), strict=True):
        costs = {
            s: expected_cost(row, s, column_cost)
            for place, s in enumerate(tried)
            if place == 0 or int((row.double().abs() > 127 * s).sum()) <= MOST_CUT
        }
        chosen.append(min(costs, key=costs.get))
    return torch.tensor(chosen).half()


@pytest.mark.parametrize("in_features", [3, 16, 17, 64, 200])
def test_search_scale_equals_brute_force(in_features):
    weight, cost = random_weight(60, in_features), random_cost(in_features)
    scale = choose_scale(weight)
    found = search_scale(weight, scale, cost)
    assert found.dtype == torch.float16 and found.shape == scale.shape
    assert torch.equal(found, brute_force(weight, scale, cost))
    shrinks = set((found.float() / scale.float()).mul(100).round().tolist())
    assert len(shrinks) >= (3 if in_features > 3 else 1)


def test_search_scale_shrinks_a_row_with_one_outlier_and_not_a_uniform_one():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(512, generator=generator) - 0.5
    outlier = uniform.clone()
    outlier[100] = 0.6  # a fifth above the others: the most that can be taken off
    outlier[200] = 0.5
    flat = torch.full((512,), 0.5)
    weight = torch.stack((uniform, outlier, flat))
    weight[0, 7] = 0.5
    weight[2, ::2] *= -1
    cost = torch.ones(512)
    cost[100] = 1e-4  # where nobody looks
    scale = choose_scale(weight)
    shrink = 1 - search_scale(weight, scale, cost).float() / scale.float()
    assert shrink[1] > 0.1
    assert shrink[0] < 0.03 and shrink[2] == 0


def test_search_scale_row_of_zeros_keeps_its_scale_of_one():
    weight = random_weight(5, 40)
    weight[2] = 0
    scale = choose_scale(weight)
    found = search_scale(weight, scale, random_cost(40))
    assert scale[2] == found[2] == 1
    assert (found != scale).any()


@pytest.mark.parametrize("multiple", [1, 2, 3, 5, 9, 100])
def test_search_scale_subnormal_scales_stay_positive_and_on_their_grid(multiple):
    """Few steps are left there: every candidate is a multiple of 2⁻²⁴."""
    weight = random_weight(30, 64)
    weight *= 127 * multiple * SMALLEST_SCALE / weight.abs().amax(1, keepdim=True)
    cost, scale = random_cost(64), choose_scale(weight)
    found = search_scale(weight, scale, cost)
    assert (found >= SMALLEST_SCALE).all() and (found <= scale).all()
    steps = found.double() / SMALLEST_SCALE
    assert torch.equal(steps, steps.round())
    if multiple == 1:
        assert torch.equal(found, scale)
    for row, before, after in zip(weight, scale.tolist(), found.tolist(), strict=True):
        assert expected_cost(row, after, cost) <= expected_cost(row, before, cost)


@pytest.mark.parametrize("num_large", [15, 16, 17, 30])
def test_search_scale_cuts_fifteen_weights_and_no_more(num_large):
    """Only the 16 largest are looked at: where 16 or more are as large, none may be cut."""
    weight = torch.full((1, 2000), 0.001)
    weight[0, :num_large] = 1.0
    cost = torch.ones(2000)
    cost[:num_large] = 1e-6  # cutting them would pay
    scale = choose_scale(weight)
    found = search_scale(weight, scale, cost)
    assert torch.equal(found, brute_force(weight, scale, cost))
    assert (found < scale) == (num_large <= MOST_CUT)


def test_search_scale_leaves_its_inputs_alone():
    weight, cost = random_weight(8, 32), random_cost(32)
    scale = choose_scale(weight)
    before = weight.clone(), scale.clone(), cost.clone()
    search_scale(weight, scale, cost)
    after = weight, scale, cost
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
