"""How each layout puts the codes and scales of one linear into tensors, and gets them back.

``gptq`` and ``compressed-tensors`` store code + 128 as an unsigned byte, four to an int32 word, the
first of the four in the lowest byte.

``formats/layouts.py`` names the functions of each layout. Those that pack take codes int8
[out, in] and scale float16 [out]; those that unpack return both, and take a function that reads a
tensor by suffix.

The command line lists the layouts before torch is loaded, so functions import it.

Source: compressed-tensors 0.20, pack-quantized; GPTQModel 7.7, checkpoint_format gptq (version 1,
which stores the zero point less one: 127 for 128).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from vacc_deploy.errors import QuantizationError

if TYPE_CHECKING:
    import torch

    # Returns a stored tensor by its suffix (``weight_scale``) or, elsewhere, by its full name.
    ReadTensor: TypeAlias = Callable[[str], torch.Tensor]
    Packed: TypeAlias = dict[str, torch.Tensor]
    CodesAndScale: TypeAlias = tuple[torch.Tensor, torch.Tensor]

CODES_PER_WORD = 4
# Flips the top bit: as unsigned bytes, code + 128.
_SIGN_BIT = -128
# Four bytes of 127: the stored zero point is one less than the 128 that is meant.
GPTQ_ZEROS = 0x7F7F7F7F


# ---- vamc: the products -----------------------------------------------------------------------


def unpack_vamc(read: ReadTensor, scale: torch.Tensor | None = None) -> CodesAndScale:
    """Round the weights to codes again; see ``codes_from`` for the scale."""
    from vacc_deploy.formats.int8 import choose_scale, round_to_nearest

    weight = read("weight")
    scale = choose_scale(weight) if scale is None else scale
    return round_to_nearest(weight, scale), scale


def float16_weight(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return code · scale rounded to float16, [out_features, in_features].

    Rounding the result again by absmax / 127, in float16 or in float32, gives back exactly
    ``codes`` in every row that is zero or has a code of ±127.

    Raises:
        QuantizationError: a product is above the largest float16 (a row with weights above 65504).
    """
    import torch

    # One product a row: looking at every weight would take longer than making them.
    largest = torch.maximum(codes.amax(1).half(), -codes.amin(1).half()) * scale
    if not torch.isfinite(largest).all():
        row = int((~torch.isfinite(largest)).nonzero()[0])
        reason = f"has the scale {float(scale[row]):g}, its weights do not fit float16"
        raise QuantizationError(reason, row=row)
    # Codes are exact in float16, so that a weight is rounded once, as a product.
    return codes.half() * scale[:, None]


# ---- compressed-tensors: four columns to a word -----------------------------------------------


def pack_compressed_tensors(codes: torch.Tensor, scale: torch.Tensor) -> Packed:
    """Return the three tensors of a pack-quantized linear with one scale per row."""
    import torch

    return {
        "weight_packed": pack_columns(codes),  # int32 [out, ceil(in / 4)]
        "weight_scale": scale[:, None].clone(),  # [out, 1]
        "weight_shape": torch.tensor(codes.shape),
    }


def unpack_compressed_tensors(read: ReadTensor, scale: torch.Tensor | None = None) -> CodesAndScale:
    """Return codes and scale of a pack-quantized linear.

    Raises:
        QuantizationError: the tensors disagree on the size.
    """
    packed, stored_scale = read("weight_packed"), read("weight_scale")
    out_features, in_features = read("weight_shape").tolist()
    if out_features != packed.shape[0]:
        raise QuantizationError(
            f"weight_shape has {out_features} rows, weight_packed {packed.shape[0]}"
        )
    return unpack_columns(packed, in_features), stored_scale[:, 0].clone()


def pack_columns(codes: torch.Tensor) -> torch.Tensor:
    """Return the ``weight_packed`` of ``codes`` [out, in]; bytes behind the last column are 0."""
    import torch

    stored = codes ^ _SIGN_BIT
    spare = -codes.shape[1] % CODES_PER_WORD
    padded = torch.nn.functional.pad(stored, (0, spare))  # [out, a multiple of 4]
    # On a little-endian machine the first of four columns becomes the lowest byte.
    return padded.contiguous().view(torch.int32)  # [out, ceil(in / 4)]


def unpack_columns(packed: torch.Tensor, in_features: int) -> torch.Tensor:
    """Return the codes int8 [out_features, in_features] of a ``weight_packed``.

    Raises:
        QuantizationError: ``packed`` is not int32 [out_features, ceil(in_features / 4)].
    """
    import torch

    words = -(-in_features // CODES_PER_WORD)
    if packed.dim() != 2 or packed.shape[1] != words or packed.dtype != torch.int32:
        raise QuantizationError(
            f"packed weights are {packed.dtype} {list(packed.shape)}, expected torch.int32 with "
            f"{words} words for {in_features} columns"
        )
    # The cut drops the padding of the last word.
    # [out, words] -> int8 [out, 4 · words] -> [out, in_features]
    return packed.contiguous().view(torch.int8)[:, :in_features] ^ _SIGN_BIT


# ---- gptq: transposed, four columns to a word -------------------------------------------------


def pack_gptq(codes: torch.Tensor, scale: torch.Tensor, *, group_size: int = 0) -> Packed:
    """Return the four tensors of a symmetric 8-bit GPTQ linear, the scale repeated in each group.

    out_features is a multiple of 4, in_features one of 4 and of ``group_size``, the columns of a
    group; 0 stands for one group of all columns.
    """
    import torch

    out_features, in_features = codes.shape
    # [out, in] -> [in, out] -> [in / 4, 4, out]
    fours = (codes ^ _SIGN_BIT).T.reshape(in_features // CODES_PER_WORD, CODES_PER_WORD, -1)
    # The four bytes of a word side by side: [in / 4, out, 4].
    words = fours.transpose(1, 2).contiguous().view(torch.int32)  # [in / 4, out, 1]
    num_groups = in_features // (group_size or in_features)
    num_zeros = out_features // CODES_PER_WORD
    return {
        "qweight": words.squeeze(2),  # [in / 4, out]
        "qzeros": torch.full((num_groups, num_zeros), GPTQ_ZEROS, dtype=torch.int32),
        "scales": scale.repeat(num_groups, 1),  # [groups, out]
        "g_idx": _group_numbers(in_features, group_size),
    }


def unpack_gptq(
    read: ReadTensor, scale: torch.Tensor | None = None, *, group_size: int = 0
) -> CodesAndScale:
    """Return codes and scale of a GPTQ linear whose groups have one scale for each row.

    Raises:
        QuantizationError: zero points other than 128, groups of another size or of other scales,
            or sizes that disagree.
    """
    import torch

    qweight, scales, g_idx = read("qweight"), read("scales"), read("g_idx")
    words, out_features = qweight.shape
    in_features = words * CODES_PER_WORD
    expected = in_features // (group_size or in_features), out_features
    if scales.shape != expected or not torch.equal(g_idx, _group_numbers(in_features, group_size)):
        groups = f"groups of {group_size} columns" if group_size else "one group"
        raise QuantizationError(
            f"gptq tensors with scales {list(scales.shape)} and g_idx {list(g_idx.shape)}, "
            f"expected {groups}: {list(expected)}, and for each of {in_features} columns the "
            "number of its group"
        )
    # As bits: a scale that is NaN equals itself, and is found where the weights' values are judged.
    bits = scales.view(torch.int16)
    if not torch.equal(bits, bits[:1].expand_as(bits)):
        row = int((bits != bits[:1]).any(0).nonzero()[0])
        raise QuantizationError("has several scales, expected the same in all groups", row=row)
    if not (read("qzeros") == GPTQ_ZEROS).all():
        raise QuantizationError("gptq zero points differ from 128, expected symmetric weights")
    stored = qweight.contiguous()[..., None].view(torch.int8)  # [in / 4, out, 4]
    # [in / 4, out, 4] -> [out, in / 4, 4] -> [out, in]
    codes = stored.permute(1, 0, 2).reshape(out_features, in_features) ^ _SIGN_BIT
    return codes, scales[0].clone()


def _group_numbers(in_features: int, group_size: int) -> torch.Tensor:
    """Return the number of each column's group, int32 [in_features]."""
    import torch

    return torch.arange(in_features, dtype=torch.int32) // (group_size or in_features)


# ---- int-quantized: as they are ---------------------------------------------------------------


def unpack_int_quantized(read: ReadTensor, _scale: torch.Tensor | None = None) -> CodesAndScale:
    """Return codes and scale of an int-quantized linear with one scale per row."""
    return read("weight"), read("weight_scale")[:, 0].clone()
