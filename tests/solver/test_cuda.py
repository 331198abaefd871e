"""The solver on a real CUDA device beside the CPU's. Skipped without one."""

import pytest
import torch

from vacc_deploy.formats.int8 import choose_scale, dequantize
from vacc_deploy.solver.block import Block, BlockSolver
from vacc_deploy.solver.gptq import choose_block_solver, factorize, settle_leaf, solve
from vacc_deploy.solver.hessian import accumulate_hessian, mirror_upper

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def correlated_inputs(num_tokens, in_features):
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(num_tokens, in_features // 3 + 1, generator=generator)
    mix = torch.randn(base.shape[1], in_features, generator=generator)
    noise = torch.randn(num_tokens, in_features, generator=generator)
    sizes = torch.exp(torch.randn(in_features, generator=generator))
    return ((base @ mix + noise) * sizes / in_features**0.5).bfloat16()


def full_hessian(inputs, device):
    size = inputs.shape[1]
    hessian = torch.zeros(size, size, device=device)
    inputs = inputs.to(device)
    accumulate_hessian(hessian, inputs if inputs.is_cuda else inputs.float())
    mirror_upper(hessian)
    return hessian


@pytest.mark.parametrize("shape", [(128, 3584), (128, 20000), (37, 65), (1, 1), (100, 33)])
def test_solve_block_equals_the_torch_loop_on_cuda(shape):
    kernel = choose_block_solver(torch.device("cuda"), torch.float32)
    assert kernel.is_aligned, "Triton is missing on this machine"
    num_columns, num_outputs = shape
    generator = torch.Generator().manual_seed(0)
    wide = torch.randint(-8, 9, (num_columns, num_columns + 5), generator=generator) / 32
    values = torch.randint(-520, 521, shape, generator=generator) / 4
    targets = values + torch.randint(-8, 9, shape, generator=generator) / 4
    results = []
    for device, solve_block in (("cpu", settle_leaf), ("cuda", kernel.solve)):
        unit_rows, errors = wide.to(device)[:, 5:], values.to(device, copy=True)
        codes = torch.empty(shape, dtype=torch.int8, device=device)
        count = torch.zeros(1, dtype=torch.int32, device=device)
        block = Block(unit_rows, targets.to(device, copy=True), errors, codes, count)
        solve_block(block)
        results.append((codes.cpu(), errors.cpu(), int(count)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("in_features", "out_features"), [(896, 1152), (333, 257)])
def test_solve_on_cuda_is_as_good_as_on_the_cpu(in_features, out_features, act_order):
    inputs = correlated_inputs(2 * in_features, in_features)
    weight = torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(2))
    scale, errors = choose_scale(weight), []
    for device in ("cpu", "cuda"):
        factor = factorize(full_hessian(inputs, device), 0.01, act_order=act_order)
        assert device == "cpu" or factor.unit_rows.is_contiguous()
        solution = solve(weight.to(device), scale.to(device), factor)
        assert solution.codes.device.type == device
        codes = solution.codes.cpu()
        assert codes.dtype == torch.int8 and codes.abs().max() <= 127
        difference = dequantize(codes, scale) - weight
        errors.append(torch.linalg.norm(inputs.double() @ difference.double().T).item())
    assert errors[1] == pytest.approx(errors[0], rel=0.01)


def test_solve_on_cuda_twice_is_equal_and_does_not_use_tf32():
    inputs = correlated_inputs(2000, 600)
    weight = torch.randn(500, 600, generator=torch.Generator().manual_seed(2)).cuda()
    scale, factor = choose_scale(weight), factorize(full_hessian(inputs, "cuda"), 0.01)
    first = solve(weight, scale, factor)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        second = solve(weight, scale, factor)
        assert torch.backends.cuda.matmul.allow_tf32 is True
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert torch.equal(first.codes, second.codes)
    assert first.num_saturated == second.num_saturated
    loop = solve(weight, scale, factor, block_solver=BlockSolver(16, settle_leaf))
    assert (first.codes == loop.codes).float().mean() > 0.5


@pytest.mark.parametrize("size", [100, 2048, 2500])
def test_accumulate_hessian_bfloat16_on_cuda_sums_in_float32(size):
    inputs = correlated_inputs(3000, size)
    hessian = torch.zeros(size, size, device="cuda")
    accumulate_hessian(hessian, inputs[:1000].cuda())
    accumulate_hessian(hessian, inputs[1000:].cuda())
    mirror_upper(hessian)
    expected = inputs.double().T @ inputs.double()
    size_of_entries = expected.diagonal().sqrt()
    error = (hessian.cpu().double() - expected) / size_of_entries[:, None] / size_of_entries
    # Tensor cores cut where they add: some 1e-5 after 3000 tokens. A bfloat16 sum is 1e-3 off.
    assert error.abs().max() < 1e-4
