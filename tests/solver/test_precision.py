"""Precision switches and mixed products. No GPU: torch keeps the switches in every build."""

from types import SimpleNamespace

import pytest
import torch

from vacc_deploy.solver import hessian as hessian_module
from vacc_deploy.solver import precision
from vacc_deploy.solver.hessian import accumulate_half, find_half_product
from vacc_deploy.solver.precision import can_run_triton, float32_products

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


class OldSwitch(SimpleNamespace):
    """``torch.backends.cuda.matmul`` as it was before torch 2.9."""

    def __init__(self, allow_tf32):
        super().__init__(allow_tf32=allow_tf32)


@pytest.mark.parametrize("before", [False, True])
def test_float32_products_old_switch_is_off_within_and_restored(monkeypatch, before):
    switch = OldSwitch(before)
    monkeypatch.setattr(torch.backends.cuda, "matmul", switch)
    with float32_products(CUDA):
        assert switch.allow_tf32 is False
        with float32_products(CUDA, "tf32"):
            assert switch.allow_tf32 is True
        assert switch.allow_tf32 is False
    assert switch.allow_tf32 is before


@pytest.mark.parametrize("before", ["ieee", "tf32", "none"])
def test_float32_products_new_switch_is_off_within_and_restored(monkeypatch, before):
    switch = SimpleNamespace(fp32_precision=before)  # and nothing of the old one
    monkeypatch.setattr(torch.backends.cuda, "matmul", switch)
    with float32_products(CUDA):
        assert switch.fp32_precision == "ieee"
    with float32_products(CUDA, "tf32"):
        assert switch.fp32_precision == "tf32"
    assert switch.fp32_precision == before


def test_float32_products_restores_after_an_error(monkeypatch):
    for switch in (OldSwitch(True), SimpleNamespace(fp32_precision="tf32")):
        monkeypatch.setattr(torch.backends.cuda, "matmul", switch)
        before = dict(vars(switch))
        with pytest.raises(ZeroDivisionError), float32_products(CUDA):
            raise ZeroDivisionError
        assert vars(switch) == before


def test_float32_products_real_switch_set_the_old_way_is_restored():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with float32_products(CUDA):
            pass
        assert torch.backends.cuda.matmul.allow_tf32 is True
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def half_inputs(num_tokens, in_features, dtype):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(num_tokens, in_features, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 39, 40, 41, 100])
def test_accumulate_half_equals_the_full_product(monkeypatch, dtype, size):
    for name in ("_PANEL_ROWS", "_CPU_PANEL_ROWS"):
        monkeypatch.setattr(hessian_module, name, 40)
    inputs = half_inputs(30, size, dtype)
    hessian, expected = torch.ones(size, size), torch.ones(size, size, dtype=torch.float64)
    allowed = torch.full((size, size), 1e-5, dtype=torch.float64)
    for part in (inputs[:10].double(), inputs[10:].double()):
        accumulate_half(hessian, part.to(dtype))
        product = part.T @ part
        expected += product
        if dtype == torch.bfloat16:
            # torch rounds such a product of a batch on a CPU; only sums of batches are float32.
            allowed += product.abs() / 256
    assert ((hessian.double() - expected).abs() <= allowed)[torch.ones(size, size).triu() > 0].all()


def test_accumulate_half_float16_sums_may_pass_its_largest_number():
    inputs = torch.full((100, 3), 40, dtype=torch.float16)
    hessian = torch.zeros(3, 3)
    accumulate_half(hessian, inputs)
    assert (hessian.triu() == torch.full((3, 3), 160000.0).triu()).all()


def widened(left, right):
    return left.float() @ right.float()


def fake_addmm(total, left, right, *, out_dtype, out):
    out.copy_(total + widened(left, right).to(out_dtype))


def fake_mm(left, right, *, out_dtype):
    return widened(left, right).to(out_dtype)


def refuse(*args, **options):
    raise NotImplementedError("no kernel")


def refuse_option(*args, **options):
    raise TypeError("unexpected keyword argument 'out_dtype'")


def forget_the_total(total, left, right, *, out_dtype, out):
    out.copy_(widened(left, right))


@pytest.mark.parametrize(
    ("addmm", "mm", "expected"),
    [
        (fake_addmm, fake_mm, hessian_module._add_product),
        (refuse, fake_mm, hessian_module._add_made_product),
        (forget_the_total, fake_mm, hessian_module._add_made_product),
        (refuse_option, refuse_option, None),
        (refuse, refuse, None),
    ],
)
def test_find_half_product_takes_the_first_that_is_right(monkeypatch, addmm, mm, expected):
    monkeypatch.setattr(torch, "addmm", addmm)
    monkeypatch.setattr(torch, "mm", mm)
    product = find_half_product.__wrapped__(CPU, torch.float16)
    assert product is expected
    monkeypatch.setattr(hessian_module, "find_half_product", lambda *_: product)
    monkeypatch.setattr(hessian_module, "_PANEL_ROWS", 40)
    inputs, hessian = half_inputs(8, 50, torch.float16), torch.ones(50, 50)
    accumulate_half(hessian, inputs)
    assert torch.allclose(hessian.triu(), (1 + widened(inputs.T, inputs)).triu(), atol=1e-5)


@pytest.mark.parametrize(
    ("has_triton", "tools", "variable", "expected"),
    [
        (True, {"gcc"}, None, True),
        (True, {"clang"}, None, True),
        (True, set(), "/somewhere/cc", True),
        (True, set(), None, False),
        (False, {"gcc"}, None, False),
    ],
)
def test_can_run_triton_needs_the_package_and_a_compiler(
    monkeypatch, has_triton, tools, variable, expected
):
    found = object() if has_triton else None
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(precision.shutil, "which", lambda name: name if name in tools else None)
    monkeypatch.delenv("CC", raising=False)
    if variable:
        monkeypatch.setenv("CC", variable)
    assert can_run_triton.__wrapped__() is expected
