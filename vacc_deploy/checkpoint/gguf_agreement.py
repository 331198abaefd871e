"""Compare what a GGUF file says of the computation with ``config.json``, by which others read it.

llama.cpp computes by the file alone: with another value there it runs another model than the one
that ``verify`` has measured.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

from vacc_deploy.checkpoint.gguf_header import GgufHeader
from vacc_deploy.checkpoint.stored import read_pieces
from vacc_deploy.errors import CheckpointError, list_problems
from vacc_deploy.formats.q8_0 import F32
from vacc_deploy.models.config import CONFIG_NAME, ModelConfig
from vacc_deploy.models.gguf_keys import (
    computing_values,
    has_plain_heads,
    head_values,
    rope_factors,
)
from vacc_deploy.models.gguf_names import ROPE_FACTORS

_ARCHITECTURE = "general.architecture"
# float32 keeps 24 binary digits.
_TOLERANCE = 1e-6


def compare_gguf(header: GgufHeader, config: ModelConfig) -> None:
    """Refuse a file whose key-values or factors of frequencies mean another computation.

    Every key that begins with the name of the architecture counts, an unexpected one too. The
    tokenizer's and others are not looked at.

    Raises:
        CheckpointError: lists every value that differs.
    """
    if problems := [*_compare_values(header, config), *_compare_factors(header, config)]:
        raise CheckpointError(
            f"{header.path} tells of another computation than {CONFIG_NAME}:\n"
            f"{list_problems(problems)}\nQuantize the model again."
        )


def _compare_values(header: GgufHeader, config: ModelConfig) -> Iterator[str]:
    """Yield a line for each key-value that differs, is missing, or is one too many."""
    arch = config.model_type
    expected: dict[str, Any] = {_ARCHITECTURE: arch}
    expected |= {key: value for key, (_, value) in computing_values(config).items()}
    # A size that llama.cpp takes by itself may be left out.
    may_lack = set[str]()
    if has_plain_heads(config) and arch != "qwen3":
        heads = {key: value for key, (_, value) in head_values(config).items()}
        expected, may_lack = expected | heads, heads.keys() - header.values.keys()
    given = {key for key in header.values if key.startswith(f"{arch}.")}
    for key in sorted((given | expected.keys()) - may_lack):
        got = header.values.get(key)
        if key not in expected:
            yield f"{key!r:.80}: got a value, expected no such key"
        elif not _is_same(got, expected[key]):
            shown = "nothing" if got is None else f"{got!r:.80}"
            yield f"{key}: got {shown}, expected {expected[key]!r}"


def _is_same(got: float | str | None, wanted: Any) -> bool:
    if isinstance(wanted, float) and isinstance(got, (int, float)):
        return math.isclose(got, wanted, rel_tol=_TOLERANCE)
    return got == wanted


def _compare_factors(header: GgufHeader, config: ModelConfig) -> Iterator[str]:
    """Yield a line where the tensor of factors is not that of the configuration."""
    factors = rope_factors(config)
    found = [tensor for tensor in header.tensors if tensor.name == ROPE_FACTORS]
    if not found or not factors:
        if len(found) != bool(factors):
            state = "is there, expected none" if found else "is missing"
            yield f"{ROPE_FACTORS} {state}"
        return
    (tensor,) = found
    if (tensor.kind, tensor.shape) != (F32, (len(factors),)):
        got = f"{tensor.kind} of shape {list(tensor.shape)}"
        yield f"{ROPE_FACTORS} is {got}, expected {F32} of shape {[len(factors)]}"
        return
    pieces = read_pieces(header.path, [(tensor.offset, tensor.num_bytes)], header.stamp)
    stored = struct.unpack(f"<{len(factors)}f", b"".join(bytes(piece) for piece in pieces))
    for number, wanted in enumerate(factors):
        if not _is_same(stored[number], wanted):
            yield f"{ROPE_FACTORS}: value {number} is {stored[number]:g}, expected {wanted:g}"
            return
