"""One linear by rounding and by GPTQ: which is chosen, the errors of both, what is recorded."""

import pytest
import torch

from vacc_deploy.errors import QuantizationError
from vacc_deploy.formats.int8 import choose_scale, dequantize, pin_largest, round_to_nearest
from vacc_deploy.phases import PhaseClock
from vacc_deploy.quantize.layer_quantizer import Stage, quantize_linear
from vacc_deploy.solver.correction import correct, regress_shift
from vacc_deploy.solver.gptq import factorize, solve
from vacc_deploy.solver.scale_search import search_scale
from vacc_deploy.solver.stage_sums import HeldOut

NAME = "model.layers.3.mlp.up_proj"


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated_inputs(num_tokens=300, in_features=24, *, seed=1):
    """Inputs of few directions and some noise; all of them have the same directions."""
    mix = random(6, in_features, seed=77)
    base = random(num_tokens, 6, seed=seed) @ mix
    return base + 0.2 * random(num_tokens, in_features, seed=seed + 1)


def factor_of(inputs, **arguments):
    return factorize(inputs.T @ inputs, 0.01, **arguments)


def make_stage(fit, held_out, *, original=None, correction=None, scale_search=False, factor=...):
    factor = factor_of(fit) if factor is ... else factor
    return Stage(factor, correction, HeldOut(held_out, original), scale_search)


def quantize(stage, weight):
    """Return codes, scale and record of one weight."""
    chosen, record = quantize_linear(NAME, weight, stage, PhaseClock())
    return chosen.codes, chosen.scale, record


def naive_error(codes, scale, weight, deployed, original):
    """Token by token and row by row, in float64."""
    weight, total, energy = weight.double(), 0.0, 0.0
    quantized = codes.double() * scale.double()[:, None]
    for seen, meant in zip(deployed.double(), original.double(), strict=True):
        for row, stored in zip(quantized, weight, strict=True):
            total += float(seen @ row - meant @ stored) ** 2
            energy += float(meant @ stored) ** 2
    return (total / energy) ** 0.5


def test_quantize_keeps_gptq_where_it_is_better():
    weight, fit, held_out = random(16, 24), correlated_inputs(), correlated_inputs(60, seed=5)
    codes, scale, record = quantize(make_stage(fit, held_out), weight)
    solution = solve(weight, choose_scale(weight), factor_of(fit))
    expected, num_pinned = pin_largest(weight, solution.codes, scale)
    assert torch.equal(codes, expected) and torch.equal(scale, choose_scale(weight))
    assert (record.name, record.method, record.dampening_frac) == (NAME, "gptq", 0.01)
    assert record.num_saturated == solution.num_saturated
    assert record.error_gptq < 0.8 * record.error_rtn
    assert (record.correction, record.scale_shrink, record.num_pinned) == (0.0, 0.0, num_pinned)


@pytest.mark.parametrize("scale_search", [False, True])
def test_quantize_keeps_rounding_where_gptq_is_not_better_on_held_out(scale_search):
    weight, fit = random(16, 24), correlated_inputs()
    # Held-out tokens of a quite different kind: what helped on the others hurts on these.
    stage = make_stage(fit, random(200, 24, seed=5), scale_search=scale_search)
    codes, scale, record = quantize(stage, weight)
    assert torch.equal(scale, choose_scale(weight))
    assert torch.equal(codes, round_to_nearest(weight, scale))
    assert record.method == "rtn" and record.error_gptq > record.error_rtn > 0
    assert record.dampening_frac == 0.01
    assert record.num_saturated == record.num_pinned == 0 == record.scale_shrink


def test_quantize_keeps_rounding_where_both_are_equal():
    weight, held_out = random(8, 24), random(50, 24, seed=5)
    stage = make_stage(None, held_out, factor=factorize(torch.eye(24), 0.01))
    codes, scale, record = quantize(stage, weight)
    assert record.method == "rtn" and record.error_gptq == record.error_rtn > 0
    assert torch.equal(codes, round_to_nearest(weight, scale))


@pytest.mark.parametrize("with_original", [False, True])
def test_quantize_errors_equal_a_naive_computation(with_original):
    weight, fit, held_out = random(7, 24), correlated_inputs(), correlated_inputs(20, seed=5)
    original = held_out + 0.002 * random(20, 24, seed=6) if with_original else None
    stage = make_stage(fit, held_out, original=original)
    codes, scale, record = quantize(stage, weight)
    rounded = round_to_nearest(weight, choose_scale(weight))
    meant = held_out if original is None else original
    expected = [naive_error(c, scale, weight, held_out, meant) for c in (codes, rounded)]
    assert record.method == "gptq"
    assert [record.error_gptq, record.error_rtn] == pytest.approx(expected, rel=1e-4)


def test_quantize_zero_outputs_have_no_error():
    weight, fit = random(8, 24), correlated_inputs()
    _, _, record = quantize(make_stage(fit, torch.zeros(5, 24)), weight)
    assert (record.method, record.error_gptq, record.error_rtn) == ("rtn", 0.0, 0.0)


def test_quantize_without_a_factor_rounds_and_says_so():
    weight = random(4, 24)
    stage = make_stage(None, torch.zeros(5, 24), factor=None)
    codes, scale, record = quantize(stage, weight)
    assert torch.equal(codes, round_to_nearest(weight, scale))
    assert (record.method, record.error_gptq, record.error_rtn) == ("rtn", None, 0.0)
    assert record.dampening_frac is None


def test_quantize_searched_scales_serve_gptq_only():
    """Costs far apart make some rows shrink; the record says by how much."""
    fit = correlated_inputs() * torch.exp(random(24, seed=8))
    weight = random(16, 24) ** 3
    codes, scale, record = quantize(
        make_stage(
            fit, correlated_inputs(60, seed=5) * torch.exp(random(24, seed=8)), scale_search=True
        ),
        weight,
    )
    factor, absmax = factor_of(fit), choose_scale(weight)
    expected = search_scale(weight, absmax, factor.column_cost)
    assert (expected < absmax).any()
    assert record.method == "gptq" and torch.equal(scale, expected)
    assert torch.equal(
        codes, pin_largest(weight, solve(weight, expected, factor).codes, expected)[0]
    )
    shrink = (1 - expected.double() / absmax.double()).mean().item()
    assert record.scale_shrink == pytest.approx(shrink, abs=2e-5) and shrink > 0


# ---- the correction ---------------------------------------------------------------------------


def make_streams(num_tokens=300, *, seed=1, share=0.1):
    deployed = correlated_inputs(num_tokens, seed=seed)
    return deployed, deployed + share * deployed @ random(24, 24, seed=88) / 24**0.5


def regression_of(deployed, original):
    return regress_shift(deployed.T @ deployed, deployed.T @ (original - deployed))


def test_quantize_correction_moves_the_target_and_lowers_the_error():
    weight, (fit, fit_original) = random(16, 24), make_streams()
    held_out, original = make_streams(80, seed=5)
    matrix = regression_of(fit, fit_original)
    plain = quantize(make_stage(fit, held_out, original=original), weight)[2]
    codes, scale, record = quantize(
        make_stage(fit, held_out, original=original, correction=matrix), weight
    )
    assert record.method == "gptq" and 0.5 < record.correction <= 0.75
    assert record.error_gptq < 0.8 * plain.error_gptq
    assert record.error_rtn == plain.error_rtn
    target = weight + record.correction * correct(weight, matrix)
    expected = solve(target, choose_scale(target), factor_of(fit)).codes
    # The record's strength is rounded to four digits, which moves a rounding here and there.
    assert (codes != expected).float().mean() < 0.05
    assert (scale.float() / choose_scale(target).float() - 1).abs().max() < 1e-3
    assert record.error_gptq == pytest.approx(
        naive_error(codes, scale, weight, held_out, original), rel=1e-4
    )


def test_quantize_correction_that_held_out_tokens_refuse_changes_nothing():
    weight, (fit, fit_original) = random(16, 24), make_streams()
    held_out, original = make_streams(80, seed=5, share=-0.1)
    matrix = regression_of(fit, fit_original)
    expected = quantize(make_stage(fit, held_out, original=original), weight)
    got = quantize(make_stage(fit, held_out, original=original, correction=matrix), weight)
    assert got[2] == expected[2] and got[2].correction == 0.0
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


def test_quantize_correction_is_not_recorded_where_rounding_is_kept():
    """The codes kept are those of the stored weight: nothing was made up for."""
    weight, (fit, fit_original) = random(16, 24), make_streams(share=0.001)
    held_out = random(300, 24, seed=5)
    original = held_out + 0.001 * held_out @ random(24, 24, seed=88) / 24**0.5
    codes, scale, record = quantize(
        make_stage(fit, held_out, original=original, correction=regression_of(fit, fit_original)),
        weight,
    )
    assert record.method == "rtn" and torch.equal(codes, round_to_nearest(weight, scale))
    assert record.correction == 0.0


# ---- ±127 in every row ------------------------------------------------------------------------


def test_quantize_pins_the_largest_code_of_rows_that_lost_their_127():
    """Error feedback lowers the one large code of row 0; the record counts the row."""
    fit = correlated_inputs(400)
    weight = random(16, 24) * 0.01
    factor, held_out = factor_of(fit), correlated_inputs(100, seed=5)
    weight[:, 5] = 1.0  # every row's largest weight, beside columns that move it
    scale = choose_scale(weight)
    plain = solve(weight, scale, factor).codes
    expected, num_pinned = pin_largest(weight, plain, scale)
    assert num_pinned > 0
    codes, _, record = quantize(make_stage(fit, held_out), weight)
    assert record.method == "gptq" and record.num_pinned == num_pinned
    assert torch.equal(codes, expected) and (codes.abs().amax(1) == 127).all()


def subnormal_weight():
    """Rounding cuts two weights of row 0; see the test of ``count_cut``."""
    weight = random(6, 24)
    weight[0] = 0
    weight[0, :3] = 2.0**-24 * torch.tensor([127 * 1.3, -127 * 1.2, 100.0])
    return weight


@pytest.mark.parametrize("with_factor", [False, True])
def test_quantize_counts_what_rounding_cuts(with_factor):
    weight, fit = subnormal_weight(), random(200, 24, seed=1)
    factor = factor_of(fit) if with_factor else None
    stage = make_stage(fit, torch.zeros(5, 24), factor=factor)
    _, _, record = quantize(stage, weight)
    assert (record.method, record.num_saturated) == ("rtn", 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_quantize_weight_that_is_not_finite_names_tensor_and_row(bad):
    weight, fit = random(6, 24), correlated_inputs()
    weight[4, 2] = bad
    with pytest.raises(QuantizationError) as caught:
        quantize(make_stage(fit, fit), weight)
    assert str(caught.value) == f"{NAME}.weight: row 4 holds NaN or infinity."


def test_quantize_factor_that_is_not_finite_names_the_tensor():
    weight, fit = random(6, 24), correlated_inputs()
    factor = factor_of(fit)
    factor.unit_rows[3, 9] = torch.nan
    with pytest.raises(QuantizationError) as caught:
        quantize(make_stage(fit, fit, factor=factor), weight)
    assert caught.value.row == 0 and caught.value.tensor.startswith(f"{NAME}.weight after")


def test_quantize_leaves_the_weight_and_the_held_out_tokens_alone():
    weight, (fit, fit_original) = random(16, 24), make_streams()
    held_out, original = make_streams(80, seed=5)
    tensors = weight, held_out, original
    before = [tensor.clone() for tensor in tensors]
    matrix = regression_of(fit, fit_original)
    stage = make_stage(fit, held_out, original=original, correction=matrix, scale_search=True)
    first = quantize(stage, weight)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    again = quantize(stage, weight)
    assert torch.equal(first[0], again[0]) and first[2] == again[2]
    assert dequantize(*first[:2]).shape == weight.shape
