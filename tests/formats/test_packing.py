"""The packed layouts: literal bytes, the libraries' own packing, and independent unpackers."""

import pytest
import torch

from vacc_deploy.errors import QuantizationError
from vacc_deploy.formats.packing import pack_columns, pack_gptq, unpack_columns, unpack_gptq


def random_codes(out_features, in_features, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = (out_features, in_features)
    return torch.randint(-127, 128, size, generator=generator, dtype=torch.int8)


def stored_bytes(tensor):
    return list(tensor.contiguous().view(torch.uint8).flatten().numpy())


def test_pack_columns_literal_bytes():
    packed = pack_columns(torch.tensor([[-127, -1, 0, 1, 127], [5, 6, 7, 8, 9]], dtype=torch.int8))
    assert packed.shape == (2, 2) and packed.dtype == torch.int32
    assert stored_bytes(packed) == [
        *(1, 127, 128, 129, 255, 0, 0, 0),
        *(133, 134, 135, 136, 137, 0, 0, 0),
    ]
    assert packed[1, 0].item() == (133 | 134 << 8 | 135 << 16 | 136 << 24) - (1 << 32)


def test_pack_gptq_literal_bytes():
    scale = torch.tensor([0.5, 0.25, 2.0, 1.0], dtype=torch.float16)
    rows = [[-127, -1, 0, 1], [127, 2, 3, 4], [5, 6, 7, 8], [-2, -3, -4, -5]]
    tensors = pack_gptq(torch.tensor(rows, dtype=torch.int8), scale)
    assert tensors["qweight"].shape == (1, 4)
    # One word holds four columns of one row: down the rows, then along the columns.
    assert stored_bytes(tensors["qweight"]) == [
        *(1, 127, 128, 129),
        *(255, 130, 131, 132),
        *(133, 134, 135, 136),
        *(126, 125, 124, 123),
    ]
    assert tensors["qzeros"].tolist() == [[0x7F7F7F7F]]
    assert stored_bytes(tensors["qzeros"]) == [127] * 4
    assert tensors["scales"].tolist() == [[0.5, 0.25, 2.0, 1.0]]
    assert tensors["g_idx"].tolist() == [0, 0, 0, 0]


def test_pack_gptq_read_by_an_independent_unpacker():
    """The layout's rule: w[i, o] = scales[g[i], o] · (byte of i − (zero byte of o + 1))."""
    codes, scale = random_codes(12, 20), torch.rand(12).half()
    tensors = pack_gptq(codes, scale)
    for row in range(12):
        for column in range(20):
            word = tensors["qweight"][column // 4, row].item() & 0xFFFFFFFF
            zeros = tensors["qzeros"][0, row // 4].item() & 0xFFFFFFFF
            value = (word >> 8 * (column % 4)) & 0xFF
            zero = ((zeros >> 8 * (row % 4)) & 0xFF) + 1
            group = tensors["g_idx"][column]
            got = tensors["scales"][group, row].float() * (value - zero)
            assert got == codes[row, column].float() * scale[row].float()


@pytest.mark.parametrize("in_features", [1, 3, 4, 5, 32])
def test_pack_columns_equals_compressed_tensors_own(in_features):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = random_codes(in_features, 6).T
    assert torch.equal(pack_columns(codes), helpers.pack_to_int32(codes.contiguous(), 8))
    assert torch.equal(unpack_columns(pack_columns(codes), in_features), codes)
    restored = helpers.unpack_from_int32(pack_columns(codes), 8, codes.shape)
    assert torch.equal(restored, codes)


@pytest.mark.parametrize("shape", [(4, 4), (8, 12), (12, 8), (64, 128)])
def test_unpack_gptq_gives_codes_and_scale_back(shape):
    scale = torch.rand(shape[0]).half()
    for codes in (random_codes(*shape), random_codes(*shape[::-1]).T):
        got, got_scale = unpack_gptq(pack_gptq(codes, scale).__getitem__)
        assert torch.equal(got, codes) and torch.equal(got_scale, scale)
        assert got.is_contiguous()


def test_every_byte_survives():
    codes = torch.arange(-128, 128, dtype=torch.int16).to(torch.int8).view(4, 64)
    assert torch.equal(unpack_columns(pack_columns(codes), 64), codes)
    got, _ = unpack_gptq(pack_gptq(codes, torch.ones(4).half()).__getitem__)
    assert torch.equal(got, codes)


def test_unpack_columns_refuses_another_width():
    packed = pack_columns(random_codes(2, 8))
    with pytest.raises(QuantizationError, match="expected torch.int32 with 3 words for 9 columns"):
        unpack_columns(packed, 9)
    with pytest.raises(QuantizationError, match="packed weights are torch.int64"):
        unpack_columns(packed.long(), 8)


def test_unpack_gptq_refuses_groups_and_other_zero_points():
    tensors = pack_gptq(random_codes(4, 8), torch.ones(4).half())

    def unpack(**changed):
        return unpack_gptq({**tensors, **changed}.__getitem__)

    with pytest.raises(QuantizationError, match="zero points differ from 128"):
        unpack(qzeros=tensors["qzeros"] - 1)
    with pytest.raises(QuantizationError, match=r"expected one group: \[1, 4\], and for each of 8"):
        unpack(scales=tensors["scales"].repeat(2, 1))
    with pytest.raises(QuantizationError, match="expected one group"):
        unpack(g_idx=torch.arange(8, dtype=torch.int32) // 4)


def test_pack_gptq_in_groups_repeats_scale_and_zero_points():
    scale = torch.tensor([0.5, 0.25, 2.0, 1.0], dtype=torch.float16)
    codes = random_codes(4, 12)
    tensors = pack_gptq(codes, scale, group_size=4)
    assert tensors["scales"].tolist() == [[0.5, 0.25, 2.0, 1.0]] * 3
    assert tensors["qzeros"].tolist() == [[0x7F7F7F7F]] * 3
    assert tensors["g_idx"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert torch.equal(tensors["qweight"], pack_gptq(codes, scale)["qweight"])
    got, got_scale = unpack_gptq(tensors.__getitem__, group_size=4)
    assert torch.equal(got, codes) and torch.equal(got_scale, scale)


def test_unpack_gptq_in_groups_takes_one_scale_for_a_row_only():
    tensors = pack_gptq(random_codes(4, 12), torch.ones(4).half(), group_size=4)

    def unpack(**changed):
        return unpack_gptq({**tensors, **changed}.__getitem__, group_size=4)

    scales = tensors["scales"].clone()
    scales[2, 3] = 2
    with pytest.raises(QuantizationError, match="row 3 has several scales, expected the same in"):
        unpack(scales=scales)
    scales[:, 3] = float("nan")  # told by those who judge values
    assert unpack(scales=scales)[1][3].isnan()
    with pytest.raises(QuantizationError, match=r"expected groups of 4 columns: \[3, 4\], and for"):
        unpack(scales=scales[:1])
    with pytest.raises(QuantizationError, match="expected groups of 4 columns"):
        unpack(g_idx=tensors["g_idx"].flip(0))  # solved in another order
    with pytest.raises(QuantizationError, match="zero points differ from 128"):
        unpack(qzeros=tensors["qzeros"] + torch.eye(3, 1, dtype=torch.int32))
