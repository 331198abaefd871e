"""Q8_0: literal bytes, gguf's own decoder, and the order of rows in heads."""

import pytest
import torch

from vacc_deploy.errors import QuantizationError
from vacc_deploy.formats.int8 import dequantize, quantize_rounding
from vacc_deploy.formats.linears import codes_from
from vacc_deploy.formats.q8_0 import (
    dequantize_blocks,
    interleave_rows,
    pack_q8_0,
    part_rows,
    parted_row,
    round_to_blocks,
    unpack_q8_0,
)

NAME = "model.layers.0.mlp.up_proj"


def random_weight(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_pack_literal_bytes():
    codes = torch.arange(-64, 64, dtype=torch.int8).view(2, 64)
    blocks = pack_q8_0(codes, torch.tensor([1.0, -0.5], dtype=torch.float16).abs())["q8_0"]
    assert blocks.shape == (2, 68) and blocks.dtype == torch.uint8
    assert bytes(blocks[0].numpy()) == (
        b"\x00\x3c" + bytes(range(192, 224)) + b"\x00\x3c" + bytes(range(224, 256))
    )
    assert bytes(blocks[1].numpy()) == (
        b"\x00\x38" + bytes(range(32)) + b"\x00\x38" + bytes(range(32, 64))
    )


def test_the_library_of_llama_cpp_reads_code_times_scale_bit_for_bit():
    gguf = pytest.importorskip("gguf")
    codes, scale = quantize_rounding(random_weight(24, 96))
    blocks = pack_q8_0(codes, scale)["q8_0"].numpy()
    theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
    assert torch.equal(torch.from_numpy(theirs), dequantize(codes, scale))


def test_unpack_refuses_blocks_of_different_scales():
    codes, scale = quantize_rounding(random_weight(4, 96))
    blocks = pack_q8_0(codes, scale)["q8_0"]
    got = unpack_q8_0({"q8_0": blocks}.__getitem__)
    assert torch.equal(got[0], codes) and torch.equal(got[1], scale)
    blocks[2, 34] ^= 1
    with pytest.raises(QuantizationError) as caught:
        codes_from("gguf", {f"{NAME}.q8_0": blocks}.__getitem__, NAME)
    assert str(caught.value) == (
        f"{NAME}: row 2 has blocks of different scales, expected one for the row. Quantize the "
        "model again."
    )


def test_unpack_passes_on_a_scale_that_is_nan():
    codes, scale = quantize_rounding(random_weight(4, 96))
    scale[2] = float("nan")
    got = unpack_q8_0(pack_q8_0(codes, scale).__getitem__)
    assert torch.equal(got[0], codes) and got[1].isnan().tolist() == [False, False, True, False]


def test_round_to_blocks_is_the_int8_rule_on_32_columns():
    weight = random_weight(5, 96)
    weight[1, 32:64] = 0
    blocks = round_to_blocks(weight)
    expected = dequantize(*quantize_rounding(weight.view(15, 32))).view(5, 96)
    assert torch.equal(dequantize_blocks(blocks), expected)
    assert (dequantize_blocks(blocks)[1, 32:64] == 0).all()
    weight[3, 40] = float("nan")
    with pytest.raises(QuantizationError) as caught:
        round_to_blocks(weight)
    assert caught.value.row == 3


def test_rows_of_heads_literal_order():
    """llama.cpp rotates neighbours; the published order has partners half a head apart."""
    rows = torch.arange(12)[:, None]
    assert interleave_rows(rows, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert torch.equal(part_rows(interleave_rows(rows, 2), 2), rows)
    assert torch.equal(part_rows(interleave_rows(rows[:, 0], 3), 3), rows[:, 0])
    assert [parted_row(row, 2, 12) for row in range(12)] == interleave_rows(rows, 2)[:, 0].tolist()
    assert interleave_rows(rows, 0) is rows and part_rows(rows, 0) is rows
