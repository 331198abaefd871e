"""The sums over a stage's inputs: what is added, over which tokens, and the sample held out."""

import pytest
import torch

from vacc_deploy.solver.stage_sums import StageStatistics


def make_inputs(num_tokens=40, in_features=7, *, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, in_features, generator=generator).to(dtype)


def finished(statistics, in_features=7):
    """Complete the sums; ``finish`` also needs something that was held out."""
    statistics.add_held_out(torch.zeros(1, in_features), None, 1)
    statistics.finish()
    return statistics


def assert_near(got, expected):
    assert torch.allclose(got.double(), expected, rtol=1e-5, atol=1e-4)


def test_add_fit_weights_count_squared_in_both_sums():
    inputs, original = make_inputs(), make_inputs(seed=1)
    weights = make_inputs(in_features=1, seed=2)[:, 0].abs()
    statistics = StageStatistics()
    statistics.add_fit(inputs, original, weights)
    finished(statistics)
    exact, shift = inputs.double(), (original - inputs).double()
    squared = weights.double().square()
    hessian = sum(s * torch.outer(x, x) for s, x in zip(squared, exact, strict=True))
    pairs = zip(squared, exact, shift, strict=True)
    cross = sum(s * torch.outer(x, d) for s, x, d in pairs)
    assert_near(statistics.hessian, hessian)
    assert_near(statistics.cross, cross)
    assert torch.equal(statistics.hessian, statistics.hessian.T)


def test_add_fit_without_a_float_stream_sums_no_cross():
    statistics = StageStatistics()
    statistics.add_fit(make_inputs())
    statistics.end_shared()
    finished(statistics)
    assert statistics.cross is None and statistics.shared_hessian is None


@pytest.mark.parametrize("num_later_batches", [1, 2, 5])
def test_shared_hessian_is_over_the_tokens_that_have_a_float_stream(num_later_batches):
    shared, original, statistics = make_inputs(), make_inputs(seed=1), StageStatistics()
    statistics.add_fit(shared[:25], original[:25])
    statistics.add_fit(shared[25:], original[25:])
    later = make_inputs(60, seed=2)
    for part in later.chunk(num_later_batches):
        statistics.end_shared()
        statistics.add_fit(part)
    finished(statistics)
    exact, everything = shared.double(), torch.cat((shared, later)).double()
    assert_near(statistics.shared_hessian, exact.T @ exact)
    assert_near(statistics.hessian, everything.T @ everything)
    assert_near(statistics.cross, exact.T @ (original.double() - exact))
    assert torch.equal(statistics.shared_hessian, statistics.shared_hessian.T)


def test_shared_hessian_is_none_where_all_tokens_have_a_float_stream():
    statistics = StageStatistics()
    statistics.add_fit(make_inputs(), make_inputs(seed=1))
    assert finished(statistics).shared_hessian is None


@pytest.mark.parametrize("in_features", [7, 600])
def test_bfloat16_sums_are_within_the_rounding_of_each_batch(in_features):
    """Every entry of every batch is rounded once, by 1/256 at most; sums are float32."""
    inputs = (make_inputs(300, in_features) * torch.linspace(1, 50, in_features)).bfloat16()
    original = (inputs + make_inputs(300, in_features, seed=1)).bfloat16()
    statistics, allowed, allowed_cross = StageStatistics(), 0.0, 0.0
    exact, shift = inputs.double(), (original - inputs).double()
    for part in torch.arange(300).chunk(3):
        statistics.add_fit(inputs[part], original[part])
        allowed = allowed + (exact[part].T @ exact[part]).abs() / 256
        allowed_cross = allowed_cross + (exact[part].T @ shift[part]).abs() / 256
    finished(statistics, in_features)
    sums = exact.abs().T @ exact.abs(), exact.abs().T @ shift.abs()
    for got, expected, bound, size in (
        (statistics.hessian, exact.T @ exact, allowed, sums[0]),
        (statistics.cross, exact.T @ shift, allowed_cross, sums[1]),
    ):
        assert got.dtype == torch.float32
        # The second part is the rounding of the float32 sums.
        assert ((got.double() - expected).abs() <= bound + 1e-6 * size).all()
        assert not torch.allclose(got.double(), expected, rtol=1e-6, atol=0)  # it was bfloat16


def test_bfloat16_weights_cost_a_few_roundings():
    inputs = make_inputs(200, 9, dtype=torch.bfloat16)
    weights = torch.linspace(0.01, 3, 200)
    statistics = StageStatistics()
    statistics.add_fit(inputs, None, weights)
    finished(statistics, 9)
    exact = inputs.double() * weights.double()[:, None]
    size = exact.abs().T @ exact.abs()
    # Two factors, each off by its weight's and its own rounding, and the product's.
    assert ((statistics.hessian.double() - exact.T @ exact).abs() <= 5.1 / 256 * size).all()


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_held_out_keeps_every_stride_th_token_of_each_batch(stride):
    statistics, batches = StageStatistics(), (make_inputs(10), make_inputs(17, seed=1))
    statistics.add_fit(make_inputs())
    for number, batch in enumerate(batches):
        statistics.add_held_out(batch, batch + number, stride)
    held_out = statistics.finish()
    wanted = [batch[start] for batch in batches for start in range(0, len(batch), stride)]
    assert torch.equal(held_out.inputs, torch.stack(wanted))
    shift = held_out.float_inputs - held_out.inputs
    assert shift[: len(range(0, 10, stride))].eq(0).all()
    assert torch.allclose(shift[len(range(0, 10, stride)) :], torch.tensor(1.0))


def test_held_out_is_a_copy_and_not_fitted():
    statistics, inputs = StageStatistics(), make_inputs()
    statistics.add_fit(make_inputs(seed=1))
    statistics.add_held_out(inputs, None, 1)
    before = inputs.clone()
    inputs.zero_()
    held_out = statistics.finish()
    assert held_out.float_inputs is None and torch.equal(held_out.inputs, before)
    fitted = make_inputs(seed=1).double()
    assert_near(statistics.hessian, fitted.T @ fitted)
