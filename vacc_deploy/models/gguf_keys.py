"""What a GGUF file says of a model's computation: key-values, and the factors of its frequencies.

``gguf_file`` writes them, and ``checkpoint`` compares those of a file with ``config.json``.

Source: ``conversion/base.py``, ``llama.py`` and ``qwen.py`` of llama.cpp; ``src/llama-context.cpp``
for the factor of yarn.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

from vacc_deploy.models.config import ModelConfig, RopeScaling
from vacc_deploy.models.rope import YARN, paper_factor

# A key to the name of its type in ``gguf.GGUFValueType``, and its value.
KeyValues: TypeAlias = dict[str, tuple[str, Any]]


def computing_values(config: ModelConfig) -> KeyValues:
    """Return every key-value whose name begins with that of the architecture."""
    arch = config.model_type
    values: KeyValues = {
        f"{arch}.block_count": ("UINT32", config.num_hidden_layers),
        f"{arch}.context_length": ("UINT32", config.max_position_embeddings),
        f"{arch}.embedding_length": ("UINT32", config.hidden_size),
        f"{arch}.feed_forward_length": ("UINT32", config.intermediate_size),
        f"{arch}.attention.head_count": ("UINT32", config.num_attention_heads),
        f"{arch}.attention.head_count_kv": ("UINT32", config.num_key_value_heads),
        **_scaling_values(arch, config.rope_scaling),
        f"{arch}.rope.freq_base": ("FLOAT32", config.rope_theta),
        f"{arch}.attention.layer_norm_rms_epsilon": ("FLOAT32", config.rms_norm_eps),
    }
    # Without them llama.cpp takes hidden_size / heads.
    if arch == "qwen3" or not has_plain_heads(config) or config.raw.get("head_dim") is not None:
        values |= head_values(config)
    if arch == "llama":
        values[f"{arch}.vocab_size"] = ("UINT32", config.vocab_size)
        values[f"{arch}.rope.dimension_count"] = ("UINT32", config.head_dim)
    return values


def head_values(config: ModelConfig) -> KeyValues:
    """Return the key-values of the size of a head."""
    sizes = ("key_length", "value_length")
    return {f"{config.model_type}.attention.{key}": ("UINT32", config.head_dim) for key in sizes}


def has_plain_heads(config: ModelConfig) -> bool:
    """Return whether the heads together are as wide as the hidden states."""
    return config.head_dim * config.num_attention_heads == config.hidden_size


def _scaling_values(arch: str, scaling: RopeScaling | None) -> KeyValues:
    """Return how the rotary frequencies are stretched; llama3 is a tensor, see ``rope_factors``."""
    if scaling is None or scaling.rope_type == "llama3":
        return {}
    prefix = f"{arch}.rope.scaling"
    values: KeyValues = {
        f"{prefix}.type": ("STRING", scaling.rope_type),
        f"{prefix}.factor": ("FLOAT32", scaling.factor),
    }
    if scaling.rope_type == YARN:
        original = scaling.original_max_position_embeddings
        values[f"{prefix}.original_context_length"] = ("UINT32", original)
        # llama.cpp multiplies the tables by the factor of the paper, and by this number. The
        # converter writes the whole factor as yarn_attn_factor, which llama.cpp overwrites.
        ratio = scaling.attention_factor / paper_factor(scaling.factor)
        if not math.isclose(ratio, 1.0, abs_tol=1e-6):
            values[f"{prefix}.attn_factor"] = ("FLOAT32", ratio)
    return values


def rope_factors(config: ModelConfig) -> list[float]:
    """Return by what llama3 scaling divides each rotary frequency; empty for any other.

    Source: the Llama 3.1 report (arXiv 2407.21783, section 3.4).
    """
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type != "llama3":
        return []
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    factors = []
    for pair in range(config.head_dim // 2):
        frequency = config.rope_theta ** (-2 * pair / config.head_dim)
        # Full turns over the trained length: few are a long wave, which is stretched.
        turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
        blend = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / (blend + (1 - blend) / scaling.factor))
    return factors
