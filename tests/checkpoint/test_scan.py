"""What a scan tells of a tensor, compared with torch's own arithmetic."""

import pytest
import torch
from safetensors.torch import save_file

from vacc_deploy.checkpoint import scan
from vacc_deploy.checkpoint.header import read_header
from vacc_deploy.checkpoint.scan import looks_filled, scan_tensor
from vacc_deploy.errors import CheckpointError

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def store(tmp_path, tensor):
    save_file({"x": tensor}, tmp_path / "x.safetensors")
    return read_header(tmp_path / "x.safetensors").tensors[0]


def normal(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(64,), (40, 16), (1, 5), ()])
@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_a_sound_tensor_of_any_shape(tmp_path, monkeypatch, dtype, shape, chunk):
    monkeypatch.setattr(scan, "CHUNK_BYTES", chunk)
    facts = scan_tensor(store(tmp_path, normal(*shape, dtype=dtype)))
    assert facts.num_rows * facts.row_values == max(1, normal(*shape).numel())
    assert (facts.num_zero_rows, facts.trailing_zeros, facts.broken_row) == (0, 0, None)
    assert facts.is_constant == (shape == ()) and not facts.is_zero


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("value", "word"), [("nan", "NaN"), ("-nan", "NaN"), ("inf", "infinity"), ("-inf", "infinity")]
)
@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_the_first_broken_row(tmp_path, monkeypatch, dtype, value, word, chunk):
    monkeypatch.setattr(scan, "CHUNK_BYTES", chunk)
    tensor = normal(40, 16, dtype=dtype)
    tensor[31, 2], tensor[17, 15] = float("nan"), float(value)
    facts = scan_tensor(store(tmp_path, tensor))
    assert (facts.broken_row, facts.broken_by) == (17, word)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_and_the_smallest_numbers_are_sound(tmp_path, dtype):
    # float64 is used as float32, whatever it can hold.
    limits = torch.finfo(torch.float32 if dtype == torch.float64 else dtype)
    tensor = torch.tensor([[limits.max, limits.min], [limits.smallest_normal, 1]], dtype=dtype)
    facts = scan_tensor(store(tmp_path, tensor))
    assert facts.broken_row is None and not facts.num_zero_rows


def test_float64_is_judged_as_the_float32_that_it_becomes(tmp_path):
    tensor = normal(4, 8, dtype=torch.float64)
    tensor[1], tensor[2, 3] = 1e-60, 1e300
    facts = scan_tensor(store(tmp_path, tensor))
    assert (facts.broken_row, facts.broken_by, facts.first_zero_row) == (2, "infinity", 1)


@pytest.mark.parametrize("chunk", [64, 1 << 20])
def test_rows_of_zeros_and_zeros_at_the_end(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(scan, "CHUNK_BYTES", chunk)
    tensor = normal(40, 16, dtype=torch.bfloat16)
    tensor[7], tensor[8], tensor[38:], tensor[37, 5:] = 0, -0.0, 0, 0
    facts = scan_tensor(store(tmp_path, tensor))
    assert (facts.num_zero_rows, facts.first_zero_row) == (4, 7)
    assert (facts.trailing_zero_rows, facts.trailing_zeros) == (2, 2 * 16 + 11)


def test_all_zero_and_constant(tmp_path):
    zero = scan_tensor(store(tmp_path, torch.zeros(3, 4)))
    assert zero.is_zero and zero.is_constant and zero.trailing_zeros == 12
    ones = scan_tensor(store(tmp_path, torch.ones(3, 4, dtype=torch.bfloat16)))
    assert ones.is_constant and not ones.is_zero
    signs = torch.tensor([[1.0, -1.0]])  # differ in nothing but the sign
    assert not scan_tensor(store(tmp_path, signs)).is_constant
    almost = torch.ones(3, 40)
    almost[2, 39] = 2
    assert not scan_tensor(store(tmp_path, almost)).is_constant


def test_codes_have_no_infinity(tmp_path):
    facts = scan_tensor(store(tmp_path, torch.tensor([[-128, 0], [0, 0]], dtype=torch.int8)))
    assert (facts.num_zero_rows, facts.first_zero_row, facts.broken_row) == (1, 1, None)
    words = scan_tensor(store(tmp_path, torch.full((2, 2), -1, dtype=torch.int32)))
    assert words.is_constant and not words.is_zero


def test_an_empty_tensor(tmp_path):
    facts = scan_tensor(store(tmp_path, torch.empty(0, 4)))
    assert facts.num_rows == 0 and facts.broken_row is None


def test_three_rows_tell_a_tensor_that_was_never_filled(tmp_path):
    sound = normal(41, 16)
    assert looks_filled(store(tmp_path, sound))
    for rows in (slice(0, 1), slice(20, 21), slice(40, 41), slice(None)):
        for value in (0.0, -0.0, 1.0, float("nan")):
            tensor = sound.clone()
            tensor[rows] = value
            assert looks_filled(store(tmp_path, tensor)) == (value != value), (rows, value)


def test_a_file_that_becomes_shorter(tmp_path):
    info = store(tmp_path, normal(40, 16))
    with info.path.open("r+b") as file:
        file.truncate(info.offset + 100)
    with pytest.raises(CheckpointError, match="was changed while it was read: it had"):
        scan_tensor(info)
