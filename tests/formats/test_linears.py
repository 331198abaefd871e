"""The layouts: the same codes in each, and what rounding or GPTQ makes of them again."""

import pytest
import torch

from vacc_deploy.errors import QuantizationError
from vacc_deploy.formats.dtypes import dtype_code
from vacc_deploy.formats.int8 import (
    INT8_MAX,
    choose_scale,
    dequantize,
    pin_largest,
    quantize_rounding,
    round_to_nearest,
)
from vacc_deploy.formats.layouts import LAYOUTS
from vacc_deploy.formats.linears import codes_from, linear_tensors, stored_linear_bytes
from vacc_deploy.formats.packing import float16_weight
from vacc_deploy.solver.gptq import factorize, solve

NAME = "model.layers.0.mlp.up_proj"
# The largest scale whose product with 127 is a float16.
LARGEST_SCALE = 515.5


def random_weight(out_features=64, in_features=64, *, size=0.02, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out_features, in_features, generator=generator) * size


def all_scales():
    """Every positive finite float16."""
    return torch.arange(1, 0x7C00, dtype=torch.int16).view(torch.float16)


def all_codes(num_rows):
    return torch.arange(-127, 128, dtype=torch.int8).expand(num_rows, -1)


def requantize(weight, dtype):
    """Rounding by absmax / 127 in ``dtype``, as a tool does that knows nothing of our scale."""
    weight = weight.to(dtype)
    scale = weight.abs().amax(1) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


# ---- the same codes and scales in every layout ------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_and_scale_come_back_from_every_layout(layout):
    codes, scale = quantize_rounding(random_weight(48, 256))
    tensors = linear_tensors(layout, NAME, codes, scale)
    got, got_scale = codes_from(layout, tensors.__getitem__, NAME, scale)
    assert torch.equal(got, codes) and torch.equal(got_scale, scale)
    assert (got.dtype, got_scale.dtype) == (torch.int8, torch.float16)


def test_codes_come_back_from_vamc_without_the_scale():
    codes, scale = quantize_rounding(random_weight(512, 64))
    tensors = linear_tensors("vamc", NAME, codes, scale)
    got, got_scale = codes_from("vamc", tensors.__getitem__, NAME)
    assert torch.equal(got, codes)
    assert ((got_scale / scale).float() - 1).abs().max() <= 2.0**-10


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stored_linear_and_its_bytes_are_those_of_the_tensors(layout):
    codes, scale = quantize_rounding(random_weight(48, 256))
    tensors = linear_tensors(layout, NAME, codes, scale)
    stated = LAYOUTS[layout].tensors(48, 256)
    assert {n: (tuple(t.shape), dtype_code(t.dtype)) for n, t in tensors.items()} == {
        f"{NAME}.{suffix}": shape_and_dtype for suffix, shape_and_dtype in stated.items()
    }
    num_bytes = sum(t.numel() * t.element_size() for t in tensors.values())
    assert stored_linear_bytes(layout, 48, 256) == num_bytes


def test_compressed_tensors_holds_columns_that_are_no_multiple_of_4():
    codes, scale = quantize_rounding(random_weight(3, 7))
    tensors = linear_tensors("compressed-tensors", NAME, codes, scale)
    assert tensors[f"{NAME}.weight_packed"].shape == (3, 2)
    assert tensors[f"{NAME}.weight_shape"].tolist() == [3, 7]
    got, _ = codes_from("compressed-tensors", tensors.__getitem__, NAME)
    assert torch.equal(got, codes)


def test_an_error_of_a_linear_names_it():
    codes, scale = quantize_rounding(random_weight(3, 7))
    tensors = linear_tensors("compressed-tensors", NAME, codes, scale)
    tensors[f"{NAME}.weight_shape"] = torch.tensor([4, 7])
    with pytest.raises(QuantizationError, match="weight_shape has 4 rows, weight_packed 3"):
        codes_from("compressed-tensors", tensors.__getitem__, NAME)
    tensors[f"{NAME}.weight_shape"] = torch.tensor([3, 9])
    with pytest.raises(QuantizationError, match=f"^{NAME}: packed weights"):
        codes_from("compressed-tensors", tensors.__getitem__, NAME)


# ---- vamc: rounded again, the integers are the same -------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_every_code_of_every_scale_survives_a_second_rounding(dtype):
    scale = all_scales()
    scale = scale[scale <= LARGEST_SCALE]
    codes = all_codes(len(scale))
    weight = float16_weight(codes, scale)
    assert torch.equal(quantize_rounding(weight)[0], codes)  # the package's own rounding
    again, again_scale = requantize(weight, dtype)
    assert torch.equal(again, codes)
    # The scale itself is found to half a unit of the 11 digits of 127 · scale, or exactly where it
    # is subnormal and the division rounds to its own grid.
    relative = (again_scale.float() / scale.float() - 1).abs()
    assert relative.max() <= 2.0**-10


def test_float16_weight_is_the_product_rounded_once():
    scale, codes = all_scales()[::97], all_codes(1)
    scale = scale[scale <= LARGEST_SCALE]
    codes = codes.expand(len(scale), -1)
    expected = (codes.double() * scale.double()[:, None]).half()
    assert torch.equal(float16_weight(codes, scale), expected)


def test_float16_weight_refuses_scales_above_its_range():
    scale = all_scales()
    too_large = scale[scale > LARGEST_SCALE]
    assert (127 * too_large.double()).min() >= 65520  # rounds to infinity
    for value in too_large[::500]:
        with pytest.raises(QuantizationError) as caught:
            linear_tensors("vamc", NAME, all_codes(2), torch.stack((scale[0], value)))
        assert str(caught.value) == (
            f"{NAME}: row 1 has the scale {float(value):g}, its weights do not fit float16. Use "
            "another --format."
        )


# ---- a row keeps its largest code -------------------------------------------------------------


def tiny_rows():
    """Rows whose scale is a subnormal float16 with few digits, down to none."""
    sizes = torch.logspace(-9, -2.8, 400)[:, None]
    return random_weight(400, 24, size=1.0, seed=3) * sizes


def test_pin_largest_gives_every_row_its_largest_code_or_zeros():
    weight = tiny_rows()
    codes, scale = quantize_rounding(weight)
    pinned, num_rows = pin_largest(weight, codes, scale)
    largest = pinned.abs().amax(1)
    assert set(largest.tolist()) == {0, 127} and num_rows > 50
    assert num_rows == int(((codes.abs().amax(1) % INT8_MAX) != 0).sum())
    assert (pinned.float() * weight >= 0).all()
    for dtype in (torch.float16, torch.float32):
        kept = largest > 0
        again, _ = requantize(float16_weight(pinned, scale)[kept], dtype)
        assert torch.equal(again, pinned[kept])


def test_pin_largest_changes_one_code_or_makes_the_row_zero_where_that_is_nearer():
    weight = tiny_rows()
    codes, scale = quantize_rounding(weight)
    pinned, _ = pin_largest(weight, codes, scale)
    changed = (pinned != codes).sum(1)
    is_zeroed = (pinned == 0).all(1) & (codes != 0).any(1)
    assert is_zeroed.any() and (changed[~is_zeroed] <= 1).all()
    exact = weight.double() / scale.double()[:, None]
    error = (exact - pinned).square().sum(1)
    assert (error <= exact.square().sum(1) * (1 + 1e-6)).all()
    # Half a row's range at the most, and no row larger than 128 units of the smallest float16.
    rows = changed > 0
    assert (weight[rows].abs().amax(1) < 128 * 128 * 2.0**-24).all()


def test_pin_largest_literal_values():
    scale = torch.tensor([1.0, 1.0, 2.0**-24, 1.0], dtype=torch.float16)
    weight = torch.tensor([[127.0, 3, -4], [-127, 90, 1], [2.0**-22, 0, 2.0**-24], [0, 0, 0]])
    codes = torch.tensor([[127, 3, -4], [-125, 91, 1], [4, 0, 1], [0, 0, 0]], dtype=torch.int8)
    before = codes.clone()
    pinned, num_rows = pin_largest(weight, codes, scale)
    assert pinned.tolist() == [[127, 3, -4], [-127, 91, 1], [0, 0, 0], [0, 0, 0]]
    assert num_rows == 2 and torch.equal(codes, before)
    rounded, scale = quantize_rounding(random_weight(256, 64))  # rows of a normal scale
    pinned, num_rows = pin_largest(random_weight(256, 64), rounded, scale)
    assert num_rows == 0 and pinned is rounded


# ---- GPTQ over the result ---------------------------------------------------------------------

HESSIANS = ("identity", "low-rank", "correlated", "outliers")


def make_hessian(kind, size, seed=1):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    if kind == "identity":
        return torch.eye(size)
    if kind == "low-rank":
        inputs = normal(size // 8, size)
    elif kind == "correlated":
        inputs = normal(4 * size, 1) + 0.05 * normal(4 * size, size)
    else:
        inputs = normal(4 * size, size) @ normal(size, size) / size**0.5
        inputs[:, torch.randperm(size, generator=generator)[:3]] *= 100
    return inputs.T @ inputs / len(inputs)


def textbook_gptq(weight, scale, hessian, dampening_frac=0.01):
    """GPTQ as in the paper: the inverse's upper factor, one column after the other."""
    weight, hessian = weight.clone(), hessian.clone()
    hessian.diagonal().add_(dampening_frac * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper = torch.linalg.cholesky(inverse, upper=True)
    codes = torch.empty(weight.shape, dtype=torch.int8)
    for column in range(weight.shape[1]):
        value = (weight[:, column] / scale).round().clamp(-127, 127)
        codes[:, column] = value.to(torch.int8)
        error = (weight[:, column] - value * scale) / upper[column, column]
        weight[:, column:] -= error[:, None] * upper[column, column:]
    return codes


def quantized_by_gptq(kind, size, act_order=False):
    """Codes with their ±127, the scale and the Hessian of a weight that GPTQ settled."""
    weight, hessian = random_weight(32, size), make_hessian(kind, size)
    scale = choose_scale(weight)
    factor = factorize(hessian.clone(), 0.01, act_order=act_order)
    codes, _ = pin_largest(weight, solve(weight, scale, factor).codes, scale)
    assert not torch.equal(codes, round_to_nearest(weight, scale)) or kind == "identity"
    return codes, scale, hessian


@pytest.mark.parametrize("kind", HESSIANS)
@pytest.mark.parametrize("size", [64, 192])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_over_the_exact_products_gives_the_same_codes(kind, size, act_order):
    """With no error there is no feedback, whatever the Hessian."""
    codes, scale, _ = quantized_by_gptq(kind, size)
    for other in HESSIANS:
        hessian = make_hessian(other, size, seed=5)
        weight = dequantize(codes, scale)
        factor = factorize(hessian.clone(), 0.01, act_order=act_order)
        assert torch.equal(solve(weight, scale, factor).codes, codes)
        assert torch.equal(textbook_gptq(weight, scale.float(), hessian), codes)


@pytest.mark.parametrize("kind", HESSIANS)
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_over_the_vamc_weights_gives_the_same_codes_within_the_bound(kind, act_order):
    """The float16 rounding is an error that GPTQ feeds on; below half a step it changes nothing."""
    codes, scale, _ = quantized_by_gptq(kind, 192)
    weight = float16_weight(codes, scale).float()
    found = weight.abs().amax(1) / INT8_MAX
    for other in HESSIANS:
        hessian = make_hessian(other, 192, seed=5)
        factor = factorize(hessian.clone(), 0.01, act_order=act_order)
        got = solve(weight, found, factor).codes
        errors = weight / found[:, None] - codes
        ordered = errors if factor.order is None else errors[:, factor.order]
        shift = ordered.abs().amax(1) + (ordered @ factor.unit_rows.triu(1).T).abs().amax(1)
        is_safe = shift < 0.499
        assert is_safe.float().mean() > 0.8
        assert torch.equal(got[is_safe], codes[is_safe])


def test_gptq_over_the_vamc_weights_can_change_codes():
    """Why the documentation promises it for the exact products only."""
    codes, scale, hessian = quantized_by_gptq("low-rank", 64)
    weight = float16_weight(codes, scale).float()
    hessian[:, 0] *= 1e-2
    hessian[0] *= 1e-2
    factor = factorize(hessian, 1e-6)
    got = solve(weight, weight.abs().amax(1) / INT8_MAX, factor).codes
    assert not torch.equal(got, codes)
    assert torch.equal(solve(dequantize(codes, scale), scale, factor).codes, codes)
