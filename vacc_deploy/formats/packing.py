"""Pack int8 codes four to an int32 word, and back: the layouts of compressed-tensors and GPTQ.

Both store code + 128 as an unsigned byte, the first of four columns in the lowest byte. Pure
functions on tensors.

Source: compressed-tensors 0.20, pack-quantized; GPTQModel 7.7, checkpoint_format gptq (version 1,
which stores the zero point less one: 127 for 128).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name

from vacc_deploy.errors import QuantizationError

CODES_PER_WORD = 4
# Flips the top bit: as unsigned bytes, code + 128.
_SIGN_BIT = -128
GPTQ_ZEROS = 0x7F7F7F7F


def pack_columns(codes: torch.Tensor) -> torch.Tensor:
    """Return the ``weight_packed`` of compressed-tensors.

    Args:
        codes: int8 [out_features, in_features].

    Returns:
        int32 [out_features, ceil(in_features / 4)]; bytes behind the last column are 0.
    """
    stored = codes ^ _SIGN_BIT
    spare = -codes.shape[1] % CODES_PER_WORD
    return F.pad(stored, (0, spare)).contiguous().view(torch.int32)


def unpack_columns(packed: torch.Tensor, in_features: int) -> torch.Tensor:
    """Return the codes int8 [out_features, in_features] of a ``weight_packed``.

    Args:
        packed: int32 [out_features, ceil(in_features / 4)].
        in_features: columns of the weight.

    Raises:
        QuantizationError: ``packed`` is of another width.
    """
    words = -(-in_features // CODES_PER_WORD)
    if packed.dim() != 2 or packed.shape[1] != words or packed.dtype != torch.int32:
        raise QuantizationError(
            f"packed weights are {packed.dtype} {list(packed.shape)}, expected torch.int32 with "
            f"{words} words for {in_features} columns"
        )
    return packed.contiguous().view(torch.int8)[:, :in_features] ^ _SIGN_BIT


def pack_gptq(codes: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the four tensors of a symmetric 8-bit GPTQ linear with one group.

    Args:
        codes: int8 [out_features, in_features], both multiples of 4.
        scale: float16 [out_features].

    Returns:
        ``qweight`` int32 [in / 4, out], ``qzeros`` int32 [1, out / 4], ``scales`` float16 [1, out],
        ``g_idx`` int32 [in], all 0.

    Raises:
        QuantizationError: a size is no multiple of 4, which the layout cannot hold.
    """
    out_features, in_features = codes.shape
    if out_features % CODES_PER_WORD or in_features % CODES_PER_WORD:
        raise QuantizationError(
            f"the gptq layout holds weights whose sizes are multiples of {CODES_PER_WORD}, got "
            f"[{out_features}, {in_features}]. Use another --format"
        )
    groups = (codes ^ _SIGN_BIT).T.reshape(in_features // CODES_PER_WORD, CODES_PER_WORD, -1)
    words = groups.transpose(1, 2).contiguous().view(torch.int32)  # [in / 4, out, 1]
    zeros = torch.full((1, out_features // CODES_PER_WORD), GPTQ_ZEROS, dtype=torch.int32)
    return {
        "qweight": words.squeeze(2),
        "qzeros": zeros,
        "scales": scale[None].clone(),
        "g_idx": torch.zeros(in_features, dtype=torch.int32),
    }


def unpack_gptq(
    qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, g_idx: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes int8 [out, in] and the scale [out] of a GPTQ linear; see ``pack_gptq``.

    Raises:
        QuantizationError: zero points other than 128, several groups, or sizes that disagree.
    """
    words, out_features = qweight.shape
    in_features = words * CODES_PER_WORD
    if scales.shape != (1, out_features) or g_idx.shape != (in_features,) or g_idx.any():
        raise QuantizationError(
            f"gptq tensors with scales {list(scales.shape)} and g_idx {list(g_idx.shape)}, "
            f"expected one group: [1, {out_features}] and zeros [{in_features}]"
        )
    if not (qzeros == GPTQ_ZEROS).all():
        raise QuantizationError("gptq zero points differ from 128, expected symmetric weights")
    stored = qweight.contiguous()[..., None].view(torch.int8)  # [in / 4, out, 4]
    codes = stored.permute(1, 0, 2).reshape(out_features, in_features) ^ _SIGN_BIT
    return codes, scales[0].clone()
