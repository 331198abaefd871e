"""Q8_0, the 8-bit blocks of GGUF files, and the order in which such files hold rows of heads.

A block is the float16 scale of 32 columns and their 32 int8 codes, 34 bytes. The row scale of our
codes is repeated in every block of the row, so nothing is rounded. Pure.

The command line lists the layouts before torch is loaded, so functions import it.

Source: ``block_q8_0`` of ggml; ``LlamaModel.permute`` of llama.cpp's converter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vacc_deploy.errors import QuantizationError

if TYPE_CHECKING:
    import torch

    from vacc_deploy.formats.packing import CodesAndScale, Packed, ReadTensor

F32, F16, Q8_0 = "F32", "F16", "Q8_0"
BLOCK = 32
SCALE_BYTES = 2
BLOCK_BYTES = SCALE_BYTES + BLOCK
# The suffix of a linear's one tensor.
BLOCKS = "q8_0"


def row_bytes(columns: int) -> int:
    """Return the bytes of a row of so many columns, a multiple of ``BLOCK``."""
    return columns // BLOCK * BLOCK_BYTES


def pack_q8_0(codes: torch.Tensor, scale: torch.Tensor) -> Packed:
    """Return the blocks of a linear, uint8 [out, in / 32 · 34], its scale in each of them.

    Args:
        codes: int8 [out_features, in_features], in_features a multiple of 32.
        scale: float16 [out_features].
    """
    # [out] -> [out, in / 32]
    return {BLOCKS: to_blocks(codes, scale[:, None].expand(-1, codes.shape[1] // BLOCK))}


def unpack_q8_0(read: ReadTensor, scale: torch.Tensor | None = None) -> CodesAndScale:
    """Return codes int8 [out, in] and scale float16 [out] of a linear.

    Raises:
        QuantizationError: the blocks of a row differ in their scales.
    """
    import torch

    codes, scales = from_blocks(read(BLOCKS))
    # As bits: a scale that is NaN equals itself, and is found where the weights' values are judged.
    bits = scales.view(torch.int16)
    differs = (bits != bits[:, :1]).any(1)  # [out]
    if differs.any():
        row = int(differs.nonzero()[0])
        raise QuantizationError("has blocks of different scales, expected one for the row", row=row)
    return codes, scales[:, 0].clone()


def to_blocks(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return blocks, uint8 [rows, in / 32 · 34].

    Args:
        codes: int8 [rows, in].
        scales: float16 [rows, in / 32].
    """
    import torch

    rows, columns = codes.shape
    blocks = torch.empty(rows, columns // BLOCK, BLOCK_BYTES, dtype=torch.uint8)
    # On a little-endian machine the bytes of a scale are in the order of the format.
    # [rows, in / 32] -> [rows, in / 32, 1] -> bytes [rows, in / 32, 2]
    blocks[:, :, :SCALE_BYTES] = scales.contiguous()[:, :, None].view(torch.uint8)
    blocks[:, :, SCALE_BYTES:] = codes.reshape(rows, -1, BLOCK).view(torch.uint8)
    return blocks.view(rows, -1)


def from_blocks(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes int8 [rows, in] and scales float16 [rows, in / 32] of ``to_blocks``."""
    import torch

    rows = len(blocks)
    parted = blocks.reshape(rows, -1, BLOCK_BYTES)  # [rows, in / 32, 34]
    scales = parted[:, :, :SCALE_BYTES].contiguous().view(torch.float16)  # [rows, in / 32, 1]
    codes = parted[:, :, SCALE_BYTES:].contiguous().view(torch.int8)  # [rows, in / 32, 32]
    return codes.view(rows, -1), scales.view(rows, -1)


def round_to_blocks(weight: torch.Tensor) -> torch.Tensor:
    """Return the blocks of a float weight [rows, in], each rounded with a scale of its own.

    The int8 rule of this package, on 32 columns at a time: absmax / 127 as float16, and the codes
    of that scale.

    Raises:
        QuantizationError: a weight is NaN or infinite, or too large for a float16 scale; the error
            has the row.
    """
    from vacc_deploy.formats.int8 import quantize_rounding

    rows, columns = weight.shape
    try:
        codes, scale = quantize_rounding(weight.reshape(-1, BLOCK))
    except QuantizationError as err:
        assert err.row is not None
        raise QuantizationError(err.reason, row=err.row * BLOCK // columns) from err
    return to_blocks(codes.view(rows, columns), scale.view(rows, -1))


def dequantize_blocks(blocks: torch.Tensor) -> torch.Tensor:
    """Return the float32 weight [rows, in] that ``blocks`` stand for."""
    codes, scales = from_blocks(blocks)
    rows = len(codes)
    return codes.float().view(rows, -1, BLOCK).mul_(scales.float()[:, :, None]).view(rows, -1)


def interleave_rows(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the rows of ``heads`` heads in the order in which llama.cpp rotates neighbours.

    The published order has the two partners of a rotation half a head apart.

    Args:
        tensor: [heads · head_dim, ...].
        heads: number of heads; 0 leaves the order as it is.
    """
    if not heads:
        return tensor
    # [heads, 2, half, ...] -> [heads, half, 2, ...]
    parted = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
    return parted.transpose(1, 2).reshape(tensor.shape)


def part_rows(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the published order of what ``interleave_rows`` has ordered."""
    if not heads:
        return tensor
    # [heads, half, 2, ...] -> [heads, 2, half, ...]
    parted = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
    return parted.transpose(1, 2).reshape(tensor.shape)


def parted_row(row: int, heads: int, num_rows: int) -> int:
    """Return where a row of what ``interleave_rows`` has ordered is in the published order."""
    size = num_rows // heads
    head, inside = divmod(row, size)
    pair, side = divmod(inside, 2)
    return head * size + side * (size // 2) + pair
