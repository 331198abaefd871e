"""The nearest-plane solver beside a naive textbook GPTQ, and the Hessian's accumulation."""

import pytest
import torch

from vacc_deploy.errors import QuantizationError
from vacc_deploy.formats.int8 import choose_scale, dequantize, round_to_nearest
from vacc_deploy.solver import gptq
from vacc_deploy.solver.block import BlockSolver
from vacc_deploy.solver.gptq import factorize, solve
from vacc_deploy.solver.hessian import accumulate_hessian, mirror_upper, shrink_to_diagonal


def correlated_inputs(num_tokens, in_features, *, seed=1, dtype=torch.float64):
    """Inputs with strong correlations and unequal sizes, as activations have."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(num_tokens, in_features // 3 + 1, generator=generator, dtype=torch.float64)
    mix = torch.randn(base.shape[1], in_features, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_tokens, in_features, generator=generator, dtype=torch.float64)
    sizes = torch.exp(torch.randn(in_features, generator=generator, dtype=torch.float64))
    return ((base @ mix + 0.5 * noise) * sizes).to(dtype)


def random_weight(out_features, in_features, *, seed=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out_features, in_features, generator=generator, dtype=torch.float64).to(
        dtype
    )


def full_hessian(inputs):
    hessian = torch.zeros(inputs.shape[1], inputs.shape[1], dtype=inputs.dtype)
    accumulate_hessian(hessian, inputs)
    mirror_upper(hessian)
    return hessian


def textbook_gptq(weight, scale, hessian, columns, dampening_frac):
    """GPTQ column by column with the inverse's Cholesky factor (arXiv 2210.17323, algorithm 1).

    Args:
        columns: the order in which the columns are settled.
    """
    hessian = hessian.clone()
    hessian.diagonal().add_(dampening_frac * hessian.diagonal().mean())
    hessian = hessian[columns][:, columns]
    inverse = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    weight = weight[:, columns].clone()
    scale = scale.to(weight.dtype)
    codes = torch.zeros(weight.shape, dtype=torch.int8)
    for j in range(weight.shape[1]):
        code = torch.round(weight[:, j] / scale).clamp(-127, 127)
        codes[:, j] = code.to(torch.int8)
        error = (weight[:, j] - code * scale) / inverse[j, j]
        weight[:, j:] -= error[:, None] * inverse[j, j:][None]
    restored = torch.empty_like(codes)
    restored[:, columns] = codes
    return restored


def factored_hessian(factor):
    """Return RᵀR in float64, the damped Hessian, columns in their own order."""
    size = len(factor.column_cost)
    order = torch.arange(size) if factor.order is None else factor.order
    rows = factor.column_cost.double()[order].sqrt()[:, None] * factor.unit_rows.double()
    product = torch.empty(size, size, dtype=torch.float64)
    product[order[:, None], order] = rows.T @ rows
    return product


def settling_order(hessian, act_order):
    """The columns in the order in which the solver settles them: from the last to the first."""
    if not act_order:
        return torch.arange(len(hessian)).flip(0)
    return torch.argsort(hessian.diagonal(), stable=True).flip(0)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("in_features", [1, 5, 16, 17, 33, 96])
def test_solve_equals_textbook_gptq_entry_for_entry(in_features, act_order):
    inputs = correlated_inputs(3 * in_features + 20, in_features)
    weight = random_weight(24, in_features)
    scale, hessian = choose_scale(weight), full_hessian(inputs)
    columns = settling_order(hessian, act_order)
    expected = textbook_gptq(weight, scale, hessian, columns, 0.01)
    got = solve(weight, scale, factorize(hessian.clone(), 0.01, act_order=act_order))
    assert torch.equal(got.codes, expected)
    assert got.codes.dtype == torch.int8 and got.codes.is_contiguous()


@pytest.mark.parametrize("act_order", [False, True])
def test_solve_every_leaf_size_gives_the_same_codes(act_order):
    inputs, weight = correlated_inputs(200, 50), random_weight(12, 50)
    scale = choose_scale(weight)
    factor = factorize(full_hessian(inputs), 0.01, act_order=act_order)
    expected = solve(weight, scale, factor, block_solver=BlockSolver(50, gptq.settle_leaf))
    for leaf_columns in (1, 2, 3, 7, 16, 25, 26, 49, 64):
        leaf = BlockSolver(leaf_columns, gptq.settle_leaf)
        got = solve(weight, scale, factor, block_solver=leaf)
        assert torch.equal(got.codes, expected.codes), leaf_columns
        assert got.num_saturated == expected.num_saturated


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_solve_identity_hessian_equals_rounding(dtype, act_order):
    weight = random_weight(32, 40, dtype=dtype)
    scale = choose_scale(weight)
    factor = factorize(torch.eye(40, dtype=dtype), 0.01, act_order=act_order)
    codes = solve(weight, scale, factor).codes
    assert torch.equal(codes, round_to_nearest(weight, scale))


@pytest.mark.parametrize("act_order", [False, True])
def test_solve_dead_input_column_is_rounded(act_order):
    inputs = correlated_inputs(100, 20)
    inputs[:, [0, 7, 19]] = 0
    weight = random_weight(8, 20)
    scale, hessian = choose_scale(weight), full_hessian(inputs)
    codes = solve(weight, scale, factorize(hessian.clone(), 0.01, act_order=act_order)).codes
    rounded = round_to_nearest(weight, scale)
    assert torch.equal(codes[:, [0, 7, 19]], rounded[:, [0, 7, 19]])
    columns = settling_order(hessian, act_order)
    assert torch.equal(codes, textbook_gptq(weight, scale, hessian, columns, 0.01))


def test_factorize_all_zero_hessian_is_none():
    assert factorize(torch.zeros(12, 12), 0.01) is None
    assert factorize(torch.zeros(12, 12), 0.01, act_order=True) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factorize_singular_hessian_is_damped_and_recorded(dtype):
    inputs = correlated_inputs(3, 40, dtype=dtype)  # rank 3 of 40
    hessian = full_hessian(inputs)
    _, info = torch.linalg.cholesky_ex(hessian.clone())
    assert info > 0
    factor = factorize(hessian.clone(), 0.01)
    assert factor.dampening_frac == 0.01
    weight = random_weight(8, 40, dtype=dtype)
    scale = choose_scale(weight)
    codes = solve(weight, scale, factor).codes
    assert torch.linalg.norm(inputs @ (dequantize(codes, scale).to(dtype) - weight).T) < (
        torch.linalg.norm(
            inputs @ (dequantize(round_to_nearest(weight, scale), scale).to(dtype) - weight).T
        )
    )


def test_factorize_climbs_the_ladder_only_when_needed():
    # Smallest eigenvalue −0.05 of a mean diagonal of 1: 0.01 is not enough, 0.1 is.
    indefinite = torch.eye(3, dtype=torch.float64)
    indefinite[0, 1] = indefinite[1, 0] = 1.05
    assert factorize(indefinite.clone(), 0.01).dampening_frac == 0.1
    assert factorize(torch.eye(3), 0.01).dampening_frac == 0.01
    worse = torch.eye(3, dtype=torch.float64)
    worse[0, 1] = worse[1, 0] = 1.5
    assert factorize(worse.clone(), 0.01).dampening_frac == 1.0
    hopeless = torch.eye(3, dtype=torch.float64)
    hopeless[0, 1] = hopeless[1, 0] = 2.5
    assert factorize(hopeless.clone(), 0.01) is None


def test_factorize_steps_of_the_ladder_do_not_add_up():
    worse = torch.eye(3, dtype=torch.float64)
    worse[0, 1] = worse[1, 0] = 1.05
    climbed = factorize(worse.clone(), 0.004)
    direct = factorize(worse.clone(), 0.4)
    assert climbed.dampening_frac == 0.4
    assert torch.allclose(climbed.unit_rows, direct.unit_rows, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("act_order", [False, True])
def test_factorize_non_finite_hessian_is_an_error(bad, act_order):
    inputs = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    inputs[4, 3] = bad
    with pytest.raises(QuantizationError, match="^the activations hold NaN or infinity"):
        factorize(full_hessian(inputs), 0.01, act_order=act_order)


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_shrink_to_diagonal_keeps_the_diagonal_and_scales_the_rest(shrinkage):
    hessian = full_hessian(correlated_inputs(60, 20))
    shrunk = hessian.clone()
    shrink_to_diagonal(shrunk, shrinkage)
    diagonal = torch.diag(hessian.diagonal())
    expected = (1 - shrinkage) * (hessian - diagonal) + diagonal
    assert torch.allclose(shrunk, expected, rtol=1e-14, atol=0)
    assert torch.equal(shrunk.diagonal(), hessian.diagonal())


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("shrinkage", [0.2, 0.7])
def test_factorize_shrinkage_equals_a_hessian_shrunk_before(act_order, shrinkage):
    hessian = full_hessian(correlated_inputs(90, 30))
    shrunk = (1 - shrinkage) * hessian + shrinkage * torch.diag(hessian.diagonal())
    got = factorize(hessian.clone(), 0.01, act_order=act_order, shrinkage=shrinkage)
    expected = factorize(shrunk, 0.01, act_order=act_order)
    assert torch.allclose(got.unit_rows, expected.unit_rows, rtol=1e-10, atol=1e-12)
    plain = factorize(hessian.clone(), 0.01, act_order=act_order)
    assert not torch.allclose(got.unit_rows, plain.unit_rows, rtol=0.01)


@pytest.mark.parametrize("act_order", [False, True])
def test_factorize_column_cost_is_what_an_error_costs_after_the_rest_is_settled(act_order):
    """The columns settled later move so as to make up for it: a least-squares fit of it by them."""
    inputs = correlated_inputs(90, 12)
    hessian = full_hessian(inputs)
    factor = factorize(hessian.clone(), 1e-12, act_order=act_order)
    settled_first = settling_order(hessian, act_order).tolist()
    for place, column in enumerate(settled_first):
        later = inputs[:, settled_first[place + 1 :]]
        left = inputs[:, column]
        if later.shape[1]:
            left = left - later @ torch.linalg.lstsq(later, left[:, None]).solution[:, 0]
        assert factor.column_cost[column].item() == pytest.approx(
            left.square().sum().item(), rel=1e-6
        )


@pytest.mark.parametrize("size", [1, 4, 5, 11])
def test_permute_equals_fancy_indexing(monkeypatch, size):
    monkeypatch.setattr(gptq, "HESSIAN_BLOCK", 4)
    matrix = random_weight(size, size)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(5))
    before = matrix.clone()
    assert torch.equal(gptq.permute(matrix, order), matrix[order][:, order])
    assert torch.equal(matrix, before)
    values = matrix[0].clone()
    assert torch.equal(gptq.restore(values[order], order), values)
    assert gptq.restore(values, None) is values


@pytest.mark.parametrize("size", [1, 7, 1023, 1024, 1025, 2100])
def test_accumulate_hessian_equals_the_full_product(size):
    inputs = torch.randn(9, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    hessian = full_hessian(inputs)
    assert torch.allclose(hessian, inputs.T @ inputs, rtol=1e-13, atol=1e-13)
    assert torch.equal(hessian, hessian.T)


@pytest.mark.parametrize("split", [1, 77, 199])
def test_accumulate_hessian_in_two_batches_equals_one(split):
    inputs = correlated_inputs(200, 30)
    hessian = torch.zeros(30, 30, dtype=torch.float64)
    accumulate_hessian(hessian, inputs[:split])
    accumulate_hessian(hessian, inputs[split:])
    mirror_upper(hessian)
    assert torch.allclose(hessian, full_hessian(inputs), rtol=1e-12, atol=1e-12)
    weight = random_weight(16, 30)
    scale = choose_scale(weight)
    codes, expected = (
        solve(weight, scale, factorize(h, 0.01)).codes for h in (hessian, full_hessian(inputs))
    )
    assert torch.equal(codes, expected)


@pytest.mark.parametrize("act_order", [False, True])
def test_solve_float32_is_as_good_as_float64(act_order):
    inputs, weight = correlated_inputs(600, 192), random_weight(64, 192)
    scale = choose_scale(weight)
    errors = []
    for dtype in (torch.float32, torch.float64):
        factor = factorize(full_hessian(inputs.to(dtype)), 0.01, act_order=act_order)
        codes = solve(weight.to(dtype), scale, factor).codes
        difference = dequantize(codes, scale).double() - weight
        errors.append(torch.linalg.norm(inputs @ difference.T).item())
    assert errors[0] == pytest.approx(errors[1], rel=0.01)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_bfloat16_hessian_is_as_good_as_float32(act_order, shrinkage):
    """Products in bfloat16 move single codes; on tokens of their own the errors are the same."""
    inputs = correlated_inputs(1600, 192, dtype=torch.float32)
    inputs[:, [3, 50, 120]] *= 60  # the outlier columns of a transformer
    fit, held_out = inputs[:1200], inputs[1200:].double()
    weight = random_weight(64, 192, dtype=torch.float32)
    scale, factors, errors, fits = choose_scale(weight), [], [], []
    for dtype in (torch.float32, torch.bfloat16):
        hessian = torch.zeros(192, 192)
        for batch in fit.chunk(4):
            accumulate_hessian(hessian, batch.to(dtype))
        mirror_upper(hessian)
        factors.append(factorize(hessian, 0.1, act_order=act_order, shrinkage=shrinkage))
        codes = solve(weight, scale, factors[-1]).codes
        difference = dequantize(codes, scale).double() - weight.double()
        output = torch.linalg.norm(held_out @ weight.double().T)
        errors.append((torch.linalg.norm(held_out @ difference.T) / output).item())
        fits.append(torch.linalg.norm(fit.double() @ difference.T).item())
    assert errors[1] == pytest.approx(errors[0], rel=0.01)
    assert fits[1] == pytest.approx(fits[0], rel=0.01)
    exact, half = factors
    assert exact.dampening_frac == half.dampening_frac == 0.1
    assert not torch.equal(exact.unit_rows, half.unit_rows)
    assert torch.allclose(half.column_cost, exact.column_cost, rtol=0.05)
    products = [factored_hessian(factor) for factor in factors]
    off = torch.linalg.norm(products[1] - products[0]) / torch.linalg.norm(products[0])
    assert 0 < off < 0.01


def test_solve_counts_saturated_codes_exactly():
    # A chain of strong couplings pushes columns past ±127; scales far too small do the rest.
    inputs, weight = correlated_inputs(300, 40), random_weight(20, 40)
    scale = (choose_scale(weight).float() * 0.7).half()
    factor = factorize(full_hessian(inputs), 0.01)
    targets = (weight / scale.double()[:, None]).clone()
    values, saturated = targets.clone(), 0
    for j in range(39, -1, -1):
        target = targets[:, j] + (values[:, j + 1 :] * factor.unit_rows[j, j + 1 :]).sum(1)
        code = target.round().clamp(-127, 127)
        saturated += int((target.round().abs() > 127).sum())
        values[:, j] = targets[:, j] - code
    solution = solve(weight, scale, factor)
    assert solution.num_saturated == saturated > 10
    assert solution.codes.abs().max() == 127


@pytest.mark.parametrize("act_order", [False, True])
def test_solve_leaves_its_inputs_alone(act_order):
    inputs, weight = correlated_inputs(50, 20), random_weight(6, 20)
    scale, factor = choose_scale(weight), factorize(full_hessian(inputs), 0.01, act_order=act_order)
    before = (weight.clone(), scale.clone(), factor.unit_rows.clone())
    first = solve(weight, scale, factor)
    assert all(
        torch.equal(a, b) for a, b in zip(before, (weight, scale, factor.unit_rows), strict=True)
    )
    assert torch.equal(solve(weight, scale, factor).codes, first.codes)


@pytest.mark.parametrize("act_order", [False, True])
def test_solve_nan_is_an_error_with_the_row(act_order):
    weight = random_weight(12, 40, dtype=torch.float32)
    scale = choose_scale(weight)
    factor = factorize(
        full_hessian(correlated_inputs(90, 40, dtype=torch.float32)), 0.01, act_order=act_order
    )
    weight[7, 23] = torch.nan
    with pytest.raises(QuantizationError, match="^row 7 became NaN while it was solved: "):
        solve(weight, scale, factor)


def test_solve_widens_a_half_weight_to_the_factors_dtype():
    weight = random_weight(12, 40).bfloat16()
    scale, factor = choose_scale(weight), factorize(full_hessian(correlated_inputs(90, 40)), 0.01)
    expected = solve(weight.double(), scale, factor)
    assert torch.equal(solve(weight, scale, factor).codes, expected.codes)


def test_solve_aligned_splits_solve_full_blocks_and_one_rest():
    inputs, weight = correlated_inputs(200, 50), random_weight(12, 50)
    scale, factor = choose_scale(weight), factorize(full_hessian(inputs), 0.01)
    sizes = []

    def solve_block(block):
        sizes.append(len(block.targets))
        gptq.settle_leaf(block)

    aligned = solve(weight, scale, factor, block_solver=BlockSolver(8, solve_block, True))
    assert sizes == [2, 8, 8, 8, 8, 8, 8]
    assert torch.equal(aligned.codes, solve(weight, scale, factor).codes)


def test_choose_block_solver_takes_the_kernel_for_float32_on_cuda(monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 1)
    monkeypatch.setattr(gptq, "can_run_triton", lambda: True)
    assert gptq.choose_block_solver(cuda, torch.float32).max_columns == 128
    for device, dtype in ((cpu, torch.float32), (cuda, torch.float64)):
        assert gptq.choose_block_solver(device, dtype).solve is gptq.settle_leaf
    monkeypatch.setattr(gptq, "can_run_triton", lambda: False)
    assert gptq.choose_block_solver(cuda, torch.float32).solve is gptq.settle_leaf
