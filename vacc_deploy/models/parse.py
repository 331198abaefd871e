"""Parse a model's ``config.json``: read once, checked, every problem in one error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import CONFIG_BYTES
from vacc_deploy.errors import CheckpointError, UnsupportedModelError, list_problems
from vacc_deploy.formats.dtypes import FLOAT_DTYPE_BYTES
from vacc_deploy.formats.layouts import INT8, recognize, rounds_when_run
from vacc_deploy.json_files import read_json
from vacc_deploy.models.config import (
    CONFIG_NAME,
    SUPPORTED_MODEL_TYPES,
    ModelConfig,
)
from vacc_deploy.models.config_reader import ConfigReader
from vacc_deploy.models.rope import read_rope
from vacc_deploy.permissions import explain_dangling
from vacc_deploy.problems.configuration import CONFIG_VALUE


def read_object(path: Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
        CheckpointError: the file is missing, too large, or not a JSON object.
    """
    values = read_json(path, limit_bytes=CONFIG_BYTES, in_utf8=True)
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{path} holds {type(values).__name__}, expected a JSON object. Download it or run "
            "prepare again."
        )
    return values


def read_config(checkpoint_dir: Path) -> ModelConfig:
    """Read and check the ``config.json`` of a checkpoint directory.

    Raises:
        CheckpointError: the file is missing, not a JSON object, or its values are wrong.
        UnsupportedModelError: another architecture, or a feature that is not handled.
    """
    return parse_config(read_config_values(checkpoint_dir), where=str(checkpoint_dir / CONFIG_NAME))


def read_config_values(checkpoint_dir: Path) -> dict[str, Any]:
    """Return the values of the ``config.json`` of a checkpoint directory as they stand.

    Raises:
        CheckpointError: the file is missing, too large, or not a JSON object.
    """
    path = checkpoint_dir / CONFIG_NAME
    if dangling := explain_dangling(path):
        raise CheckpointError(dangling)
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing. Give a directory in the Hugging Face layout: config.json beside "
            "model.safetensors or model.safetensors.index.json."
        )
    return read_object(path)


def parse_config(raw: Mapping[str, Any], *, where: str) -> ModelConfig:
    """Return the checked configuration.

    Accepts the published form (``rope_theta``, ``rope_scaling``, ``torch_dtype``) and that of
    transformers 5 (``rope_parameters``, ``dtype``).

    Args:
        raw: parsed ``config.json``.
        where: name of the file for messages.

    Raises:
        UnsupportedModelError: another architecture, or a feature that is not handled.
        CheckpointError: values are missing or contradict each other; lists all of them.
    """
    reader = ConfigReader(raw, where)
    config = _read_values(reader)
    # A missing value stands as 1: contradictions count only where every value is there.
    problems = reader.problems or _find_contradictions(config)
    if problems:
        file = Path(where).name
        raise CheckpointError(
            f"{where} cannot be used:\n{list_problems(problems)}\n"
            "Restore the file from the model's original repository.",
            # Each begins with the name of its key.
            [CONFIG_VALUE.broken(p, where=f"{file}: {p.split()[0].rstrip(':')}") for p in problems],
        )
    return config


def _read_values(reader: ConfigReader) -> ModelConfig:
    """Return the configuration; what is wrong with single values is in ``reader.problems``."""
    model_type = reader.raw.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise UnsupportedModelError(
            f"{reader.where} has model_type {model_type!r:.80}, expected one of "
            f"{', '.join(SUPPORTED_MODEL_TYPES)}.{_describe_kind(reader.raw)} vacc-deploy handles "
            "DeepSeek-R1 distills and other dense checkpoints of these architectures."
        )
    is_qwen2, is_llama = model_type == "qwen2", model_type == "llama"
    rope_theta, rope_scaling = read_rope(reader, model_type)
    heads = reader.integer("num_attention_heads")
    hidden_size = reader.integer("hidden_size")
    # Of Qwen3 its class's own default; at least 1, or a 0 would be reported instead of what is
    # wrong.
    default_head_dim = 128 if model_type == "qwen3" else max(1, hidden_size // heads)
    # Qwen2 always has biases at q, k and v and none at o; the others at all four or at none.
    attention_bias = is_qwen2 or reader.boolean("attention_bias", False)
    quantization_format = _read_quantization(reader)
    return ModelConfig(
        model_type=model_type,
        hidden_size=hidden_size,
        intermediate_size=reader.integer("intermediate_size"),
        num_hidden_layers=reader.integer("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=reader.integer("num_key_value_heads", heads),
        head_dim=reader.integer("head_dim", default_head_dim),
        vocab_size=reader.integer("vocab_size"),
        # The defaults of the configuration classes of transformers.
        max_position_embeddings=reader.integer(
            "max_position_embeddings", 2048 if is_llama else 32768
        ),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tie_word_embeddings=reader.boolean("tie_word_embeddings", False),
        attention_bias=attention_bias,
        attention_output_bias=attention_bias and not is_qwen2,
        mlp_bias=is_llama and reader.boolean("mlp_bias", False),
        sliding_window=_read_sliding_window(reader, is_llama),
        dtype=_read_dtype(reader),
        quantization_bit=8 if quantization_format == INT8 else 0,
        quantization_format=quantization_format,
        raw=dict(reader.raw),
    )


def _describe_kind(raw: Mapping[str, Any]) -> str:
    """Return sentences on what a configuration of another model says of it, or nothing."""
    stated = raw.get("architectures")
    names = ", ".join(map(str, stated)) if isinstance(stated, list) else ""
    sentence = f" Its class is {names:.100}." if names else ""
    if isinstance(raw.get("text_config"), dict) or isinstance(raw.get("vision_config"), dict):
        sentence += " It is a model for more than text; its language part is text_config."
    return sentence


def _read_sliding_window(reader: ConfigReader, is_llama: bool) -> int | None:
    if is_llama or not reader.boolean("use_sliding_window", False):
        return None
    # A null is no window, an absent key the class's own 4096.
    if reader.raw.get("sliding_window", 4096) is None:
        return None
    return reader.integer("sliding_window", 4096)


def _read_dtype(reader: ConfigReader) -> str:
    value = reader.raw.get("torch_dtype") or reader.raw.get("dtype") or "float32"
    if not isinstance(value, str) or value not in FLOAT_DTYPE_BYTES:
        reader.problems.append(
            f"torch_dtype: got {value!r:.80}, expected {', '.join(FLOAT_DTYPE_BYTES)}"
        )
        return "float32"
    return value


def _read_quantization(reader: ConfigReader) -> str:
    # Before the quantization_config: that of an int8 directory is only a guard.
    bits = reader.raw.get("quantization_bit") or 0
    if bits not in (0, 8):
        reader.problems.append(f"quantization_bit: got {bits!r:.80}, expected 8 or none")
        return ""
    if bits:
        return INT8
    stated = reader.raw.get("quantization_config")
    if not stated:
        return ""
    layout = recognize(stated)
    if layout is None:
        method = stated.get("quant_method") if isinstance(stated, dict) else stated
        why = "the weights are quantized already. Start from the float checkpoint."
        if rounds_when_run(stated):
            why = "its linears round weights and inputs whenever they run. Give another model."
        raise UnsupportedModelError(
            f"{reader.where} has a quantization_config (quant_method {method!r:.80}): {why}"
        )
    return layout


def _find_contradictions(config: ModelConfig) -> list[str]:
    """Return a line for every value that contradicts another or that the decoder cannot use."""
    raw, problems = config.raw, list[str]()
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % kv_heads:
        problems.append(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    has_own = config.model_type == "llama" and raw.get("head_dim") is not None
    own_head_dim = has_own or config.model_type == "qwen3"
    if not own_head_dim and config.hidden_size % heads:
        problems.append(
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {heads}"
        )
    if not own_head_dim and config.head_dim != config.hidden_size // heads:
        problems.append(
            f"head_dim: got {config.head_dim}, expected hidden_size / num_attention_heads = "
            f"{config.hidden_size // heads}, the only one of qwen2"
        )
    elif config.head_dim % 2:
        problems.append(f"head_dim {config.head_dim} is odd; rotary needs pairs")
    if raw.get("hidden_act", "silu") != "silu":
        problems.append(f"hidden_act: got {raw['hidden_act']!r:.80}, expected 'silu'")
    if raw.get("pretraining_tp", 1) not in (None, 1):
        problems.append(
            f"pretraining_tp: got {raw['pretraining_tp']!r:.80}, expected 1 (a rule of vamc)"
        )
    if config.model_type != "llama":
        problems += _check_layer_types(config)
    return problems


def _check_layer_types(config: ModelConfig) -> list[str]:
    raw = config.raw
    # 28 is the default of transformers.
    stated, first = raw.get("layer_types"), raw.get("max_window_layers", 28)
    count = config.num_hidden_layers
    if isinstance(first, bool) or not isinstance(first, int):
        return [f"max_window_layers: got {first!r:.80}, expected a whole number"]
    # The first max_window_layers layers see all tokens, those behind them a window.
    num_full = count if config.sliding_window is None else min(max(first, 0), count)
    expected = ["full_attention"] * num_full + ["sliding_attention"] * (count - num_full)
    if stated is not None and stated != expected:
        return [
            "layer_types: by use_sliding_window, sliding_window and max_window_layers it is "
            f"full_attention for the first {num_full} of the {count} layers and sliding_attention "
            "for the others; the list says something else"
        ]
    return []
