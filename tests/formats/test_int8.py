"""The scale, the rounding and the way back; bit-equal with the file that travels beside weights."""

import importlib.util

import pytest
import torch
from texts import SOURCE_DIR

from vacc_deploy.errors import QuantizationError
from vacc_deploy.formats import int8
from vacc_deploy.formats.int8 import (
    INT8_MAX,
    SMALLEST_SCALE,
    choose_scale,
    dequantize,
    quantize_rounding,
    round_to_nearest,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def shipped():
    """``source_code/quantization_vacc.py``, loaded by its path."""
    path = SOURCE_DIR / "quantization_vacc.py"
    spec = importlib.util.spec_from_file_location("shipped_quantization_vacc", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_weight(out_features=48, in_features=40, *, size=1.0, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(out_features, in_features, generator=generator) * size).to(dtype)


def edge_rows(dtype):
    """Rows at every edge of the rule, padded to one width."""
    tiny = torch.finfo(dtype).tiny
    rows = [
        [0.0, 0.0, 0.0],
        [-0.0, 0.0, -0.0],
        [tiny, -tiny, 0.0],
        [2.0**-24, -(2.0**-24), 2.0**-25],
        [127 * 2.0**-24, -63.5 * 2.0**-24, 2.0**-24],
        [1.4 * 127 * 2.0**-24, 2.0**-24, -(2.0**-20)],
        [9.6e-4, -9.6e-4, 1e-5],
        [127.0, -63.5, 0.5],
        [-127.0, 1.5, 2.5],
        [1.328125, -1.328125, 0.7],
        [60000.0, -1.0, 30000.0],
    ]
    return torch.tensor(rows).to(dtype)


def test_int8_literal_values():
    weight = torch.tensor([[127.0, -63.5, 0.5, 1.5], [0.0, 0.0, 0.0, 0.0], [-0.254, 0.1, 0, 0.001]])
    codes, scale = quantize_rounding(weight)
    # Halves go to the even code; 0.254 / 127 = 0.002 is 0.0020008087158203125 in float16.
    assert scale.tolist() == [1.0, 1.0, 0.0020008087158203125]
    assert codes.tolist() == [[127, -64, 0, 2], [0, 0, 0, 0], [-127, 50, 0, 0]]
    assert (codes.dtype, scale.dtype) == (torch.int8, torch.float16)


def test_round_to_nearest_uses_the_rounded_scale():
    # absmax / 127 = 0.1 / 127 lies between two float16 numbers 0.06 % apart: some codes differ.
    weight = torch.linspace(-0.1, 0.1, 4001)[None]
    codes, scale = quantize_rounding(weight)
    exact = weight.abs().amax(1, keepdim=True) / INT8_MAX
    with_rounded = torch.round(weight.double() / scale.double()[:, None]).clamp(-127, 127)
    with_exact = torch.round(weight.double() / exact.double())
    assert torch.equal(codes.double(), with_rounded)
    assert not torch.equal(codes.double(), with_exact)


def test_round_to_nearest_clamps_at_127():
    weight = torch.tensor([[3.0, -3.0, 127.4, -128.0]])
    codes = round_to_nearest(weight, torch.tensor([0.01], dtype=torch.float16))
    assert codes.tolist() == [[127, -127, 127, -127]]


@pytest.mark.parametrize("absmax", [1e-38, 2.0**-25, 2.0**-24, 1e-6, 7e-6, 6.1e-5, 9.65e-4])
def test_quantize_rounding_tiny_row_keeps_range_and_sign(absmax):
    weight = torch.tensor([[absmax, -absmax, absmax / 3, 0.0]])
    codes, scale = quantize_rounding(weight)
    assert scale.item() >= SMALLEST_SCALE
    assert codes.abs().max() <= INT8_MAX
    assert (codes.float() * weight >= 0).all()
    # Never worse than storing zeros.
    assert (dequantize(codes, scale) - weight).abs().max() <= max(absmax, scale.item() / 2)


def test_choose_scale_largest_row_that_fits():
    scale = choose_scale(torch.tensor([[127 * 65504.0, 1.0]]))
    assert scale.item() == 65504


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_quantize_rounding_non_finite_weight_names_the_row(dtype, bad, monkeypatch):
    weight = random_weight(20, 8).to(dtype)
    weight[13, 5] = bad
    weight[17, 2] = bad
    for chunk in (1, 24, 1 << 18):  # the row's number counts from the start of the tensor
        monkeypatch.setattr(int8, "_CHUNK_WEIGHTS", chunk)
        with pytest.raises(QuantizationError) as err:
            quantize_rounding(weight)
        assert str(err.value) == "row 13 holds NaN or infinity."


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_quantize_rounding_never_flips_a_sign(dtype):
    # Row maxima of 1.328 .. 1.484 · 2^k: their bfloat16 quotient of 127.5 rounds to 128 and wraps.
    maxima = (1 + torch.arange(170 - 128, 191 - 128) / 128)[:, None] * 2.0 ** torch.arange(-12, 4)
    maxima = maxima.T.reshape(-1, 1)
    weight = torch.cat((maxima, -maxima, maxima / 3, -maxima / 7), 1).to(dtype)
    if dtype == torch.bfloat16:
        wrapped = weight / (weight.abs().amax(1, keepdim=True) / 127)
        assert (wrapped.round()[:, 0] == 128).all()
    codes, scale = quantize_rounding(weight)
    assert torch.equal(codes.sign().float(), weight.sign().float())
    is_normal = scale >= torch.finfo(torch.float16).tiny  # below, a scale has fewer digits
    assert is_normal.sum() == 11 * 21
    assert (codes[is_normal, 0] == 127).all() and (codes[is_normal, 1] == -127).all()
    assert (codes[:, 0] >= 126).all() and torch.equal(codes[:, 0], -codes[:, 1])
    error = (dequantize(codes, scale) - weight.float()).abs()
    assert (error <= 0.6 * scale.float()[:, None])[is_normal].all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-7, 1e-5, 1e-3, 0.03, 1.0, 300.0, "edges"])
def test_int8_equals_the_shipped_file_bit_for_bit(shipped, dtype, size):
    is_edge = size == "edges"
    weight = edge_rows(dtype) if is_edge else random_weight(64, 72, size=size, dtype=dtype, seed=7)
    codes, scale = quantize_rounding(weight)
    shipped_codes, shipped_scale = shipped.quantize_weight(weight)
    assert torch.equal(choose_scale(weight), shipped.choose_scale(weight))
    assert torch.equal(codes, shipped_codes) and torch.equal(scale, shipped_scale)
    assert torch.equal(dequantize(codes, scale), shipped.dequantize_weight(codes, scale))


def test_int8_has_the_constants_of_the_shipped_file(shipped):
    constants = (shipped.INT8_MAX, shipped.SCALE_DTYPE, shipped.SMALLEST_SCALE)
    assert constants == (INT8_MAX, int8.SCALE_DTYPE, SMALLEST_SCALE)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e7])
def test_int8_and_the_shipped_file_refuse_the_same_rows(shipped, value):
    weight = torch.ones(3, 4)
    weight[2, 0] = value
    with pytest.raises(
        QuantizationError, match=r"^row 2 (holds NaN|has the largest weight 1e\+07)"
    ):
        quantize_rounding(weight)
    with pytest.raises(ValueError, match="in row 2$"):
        shipped.quantize_weight(weight)


@pytest.mark.parametrize("chunk", [1, 41, 79, 80, 47 * 40, 48 * 40, 1 << 18])
def test_quantize_rounding_chunks_do_not_matter(monkeypatch, chunk):
    weight = random_weight()
    monkeypatch.setattr(int8, "_CHUNK_WEIGHTS", chunk)
    codes, scale = quantize_rounding(weight)
    assert torch.equal(scale, choose_scale(weight))
    assert torch.equal(codes, round_to_nearest(weight, scale))


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantize_rounding_reads_a_transposed_weight_and_leaves_it_alone(dtype):
    weight = random_weight(40, 48, dtype=dtype).T
    before = weight.clone()
    codes, scale = quantize_rounding(weight)
    assert torch.equal(weight, before)
    expected_codes, expected_scale = quantize_rounding(weight.contiguous())
    assert torch.equal(codes, expected_codes) and torch.equal(scale, expected_scale)


def test_dequantize_literal_and_error_bound():
    restored = dequantize(
        torch.tensor([[127, -1], [5, 0]], dtype=torch.int8),
        torch.tensor([0.5, 2.0], dtype=torch.float16),
    )
    assert restored.tolist() == [[63.5, -0.5], [10.0, 0.0]]
    assert restored.dtype == torch.float32
    weight = random_weight(size=0.02)
    codes, scale = quantize_rounding(weight)
    assert ((dequantize(codes, scale) - weight).abs() <= 0.5001 * scale.float()[:, None]).all()
