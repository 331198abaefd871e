"""The regression of what quantized layers have changed, and how much of it is taken back."""

import pytest
import torch

from vacc_deploy.solver.correction import choose_strength, correct, regress_shift

SHRINKAGE, DAMPENING_FRAC, STRENGTH = 0.5, 0.3, 0.75


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_streams(num_tokens=300, in_features=12, *, seed=0, share=0.2):
    """Inputs behind quantized layers, and behind float ones that differ by a linear map of them."""
    mix = random(in_features, in_features, seed=50)
    deployed = random(num_tokens, in_features, seed=seed) @ mix
    return deployed, deployed + share * deployed @ random(in_features, in_features, seed=51) / 4


def regression(deployed, original):
    hessian, cross = deployed.T @ deployed, deployed.T @ (original - deployed)
    return regress_shift(hessian, cross)


def test_regress_shift_equals_least_squares_with_the_same_ridge():
    """Rows beside the tokens' stand for the ridge: their normal equations are the same."""
    deployed, original = (states.double() for states in make_streams())
    shift, energy = original - deployed, deployed.square().sum(0)
    keep = 1 - SHRINKAGE
    rows = torch.cat(
        (
            keep**0.5 * deployed,
            torch.diag((SHRINKAGE * energy).sqrt()),
            (DAMPENING_FRAC * energy.mean()).sqrt() * torch.eye(12),
        )
    )
    wanted = torch.cat((shift / keep**0.5, torch.zeros(24, 12)))
    expected = torch.linalg.lstsq(rows, wanted).solution
    got = regression(deployed.float(), original.float())
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().max() > 0.01


def test_regress_shift_of_a_hessian_that_cannot_be_factored_is_none():
    assert regress_shift(torch.zeros(5, 5), torch.zeros(5, 5)) is None
    indefinite = torch.eye(2)
    indefinite[0, 1] = indefinite[1, 0] = 10.0
    assert regress_shift(indefinite, torch.zeros(2, 2)) is None


def test_corrected_weight_gives_the_float_outputs_for_the_deployed_inputs():
    """x̂·(W + W·Gᵀ)ᵀ = (x̂ + x̂·G)·Wᵀ, the outputs for the inputs as they are predicted."""
    deployed, original = make_streams()
    weight, matrix = random(5, 12, seed=2), regression(deployed, original)
    got = deployed @ (weight + correct(weight, matrix)).T
    assert torch.allclose(got, (deployed + deployed @ matrix) @ weight.T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("factor", [0.1, 0.7, 1.0, 1.8, 30.0])
def test_choose_strength_is_three_quarters_of_the_least_squares_fit_within_its_limits(factor):
    inputs, shift = random(40, 6), random(3, 6, seed=1)
    given = inputs.double() @ shift.double().T
    wanted = factor * given + 0.3 * random(40, 3, seed=2).double()
    column = given.reshape(-1, 1)
    best = torch.linalg.lstsq(column, wanted.reshape(-1, 1)).solution.item()
    expected = STRENGTH * min(max(best, 0.0), 1.0)
    assert choose_strength(wanted.float(), inputs, shift) == pytest.approx(expected, abs=1e-5)


def test_choose_strength_opposite_shift_gives_zero():
    inputs, shift = random(40, 6), random(3, 6, seed=1)
    assert choose_strength(-(inputs @ shift.T), inputs, shift) == 0.0


def corrected_error(fit, held_out, weight):
    """Return the held-out output error before and after, and the strength."""
    deployed, original = held_out
    shift = correct(weight, regression(*fit))
    strength = choose_strength((original - deployed) @ weight.T, deployed, shift)
    wanted = original @ weight.T
    errors = [
        torch.linalg.norm(deployed @ candidate.T - wanted).item()
        for candidate in (weight, weight + strength * shift)
    ]
    return *errors, strength


def test_correction_lowers_the_held_out_error_where_the_shift_is_the_same_map():
    """Three quarters of the best step along a line take 15/16 of what can be taken."""
    fit, held_out = make_streams(), make_streams(100, seed=9)
    before, after, strength = corrected_error(fit, held_out, random(5, 12, seed=2))
    assert strength > 0.4 and after < 0.8 * before


def test_correction_is_left_out_where_the_held_out_shift_is_another_one():
    fit, held_out = make_streams(), make_streams(100, seed=9, share=-0.2)
    before, after, strength = corrected_error(fit, held_out, random(5, 12, seed=2))
    assert strength == 0.0 and after == before > 0
