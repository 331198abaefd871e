"""Which stored tensors no loader reads: known by their names, or biases that change nothing."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from vacc_deploy.checkpoint.foreign import SCORES, names_scorer
from vacc_deploy.checkpoint.header import TensorInfo
from vacc_deploy.checkpoint.stored import is_zero
from vacc_deploy.formats.dtypes import STORED_FLOATS
from vacc_deploy.models.config import LM_HEAD

# Buffers that loaders compute anew, scales of an 8 bit key-value cache, and heads that are for
# training, for drafting more tokens at once, or for scoring.
_SPARE = re.compile(
    r"(?:.*\.)?rotary_emb\.\w+"
    r"|.*\.self_attn\.(?:masked_bias|bias|attn_mask)|(?:.*\.)?(?:position_ids|causal_mask)"
    r"|.*\.self_attn\.(?:.*\.)?[qkv]_scale"
    r"|(?:.*\.)?(?:v_head|value_head|critic|critic_head|q_head|medusa_heads?|mtp)\..*"
)


def is_spare(name: str) -> bool:
    """Return whether a tensor of this name is one that no loader reads."""
    return bool(_SPARE.fullmatch(name) or SCORES.fullmatch(name))


def find_spare(names: Collection[str], architectures: object) -> list[str]:
    """Return the names of tensors that no loader reads.

    Args:
        names: of all tensors, in the published form.
        architectures: what ``config.json`` says under this key.
    """
    # Without a head of its own a model that scores texts has none for the next token either.
    is_scorer = LM_HEAD not in names and bool(names_scorer(architectures))
    return [n for n in names if is_spare(n) and not (is_scorer and SCORES.fullmatch(n))]


def find_zero_biases(tensors: Mapping[str, TensorInfo], expected: Collection[str]) -> list[str]:
    """Return the biases of zeros that an architecture does not have.

    Args:
        tensors: all tensors.
        expected: the names of those that the architecture has.
    """
    return [
        name
        for name, info in tensors.items()
        if name.endswith(".bias") and name not in expected
        # Of a part of this model: without its weight it is that of another one.
        if f"{name.removesuffix('bias')}weight" in tensors
        if info.dtype in STORED_FLOATS and is_zero(info)
    ]
