"""What a model's ``config.json`` says, read once and checked, for the Qwen2 and Llama families.

Owns names, shapes and the rotary rule. Reads no weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vacc_deploy.config_reader import ConfigReader
from vacc_deploy.errors import CheckpointError, UnsupportedModelError, list_problems
from vacc_deploy.layouts import INT8, recognize

CONFIG_NAME = "config.json"
SUPPORTED_MODEL_TYPES = ("qwen2", "llama")
SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3")
MAX_CONFIG_BYTES = 1 << 20
_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# The seven linears of a decoder layer, by the part of the layer they belong to.
ATTENTION_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_LINEARS = ("gate_proj", "up_proj", "down_proj")
LAYER_LINEARS = ATTENTION_LINEARS + MLP_LINEARS
EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"


def layer_prefix(layer: int) -> str:
    """Return the tensor-name prefix of decoder layer ``layer``."""
    return f"model.layers.{layer}."


def linear_name(layer: int, linear: str) -> str:
    """Return the module name of one linear, for example ``model.layers.3.mlp.up_proj``."""
    part = "self_attn" if linear in ATTENTION_LINEARS else "mlp"
    return f"{layer_prefix(layer)}{part}.{linear}"


@dataclass(frozen=True)
class RopeScaling:
    """How the rotary frequencies are stretched beyond the trained length.

    ``linear`` uses ``factor`` only; ``llama3`` uses all fields (Llama 3.1 report, section 3.4).
    """

    rope_type: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of one checkpoint, with the field names of ``config.json``.

    ``raw`` is the parsed file as it was. ``quantization_format`` is the layout of the codes in a
    directory that ``quantize`` wrote (``int8``, ``gptq``, ``compressed-tensors``), empty for float
    weights; ``quantization_bit`` is 8 for ``int8`` only, else 0.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_word_embeddings: bool
    attention_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    sliding_window: int | None
    dtype: str
    quantization_bit: int = 0
    quantization_format: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def differences(self, other: ModelConfig) -> dict[str, tuple[Any, Any]]:
        """Return every field of the architecture that differs, name to both values.

        The dtype and the quantization are none: the same model has them in several forms.
        """
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        for name in ("raw", "quantization_bit", "quantization_format", "dtype"):
            del pairs[name]
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one float parameter."""
        return _DTYPE_BYTES[self.dtype]

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of the float16 key-value cache for one token, all layers."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * 2

    def linear_shape(self, linear: str) -> tuple[int, int]:
        """Return [out_features, in_features] of one of ``LAYER_LINEARS``."""
        query = self.num_attention_heads * self.head_dim
        key_value = self.num_key_value_heads * self.head_dim
        return {
            "q_proj": (query, self.hidden_size),
            "k_proj": (key_value, self.hidden_size),
            "v_proj": (key_value, self.hidden_size),
            "o_proj": (self.hidden_size, query),
            "gate_proj": (self.intermediate_size, self.hidden_size),
            "up_proj": (self.intermediate_size, self.hidden_size),
            "down_proj": (self.hidden_size, self.intermediate_size),
        }[linear]

    def has_bias(self, linear: str) -> bool:
        """Return whether one of ``LAYER_LINEARS`` has a bias."""
        if linear == "o_proj":
            return self.attention_output_bias
        return self.attention_bias if linear in ATTENTION_LINEARS else self.mlp_bias

    def linear_names(self) -> dict[str, tuple[int, int]]:
        """Return every linear of the decoder layers: full name to [out_features, in_features]."""
        return {
            linear_name(layer, linear): self.linear_shape(linear)
            for layer in range(self.num_hidden_layers)
            for linear in LAYER_LINEARS
        }

    def layer_tensors(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Return the float tensors of one decoder layer, name to shape, in the order of use."""
        prefix = layer_prefix(layer)
        shapes: dict[str, tuple[int, ...]] = {
            f"{prefix}input_layernorm.weight": (self.hidden_size,)
        }
        for linear in LAYER_LINEARS:
            if linear == "gate_proj":
                shapes[f"{prefix}post_attention_layernorm.weight"] = (self.hidden_size,)
            name, shape = linear_name(layer, linear), self.linear_shape(linear)
            shapes[f"{name}.weight"] = shape
            if self.has_bias(linear):
                shapes[f"{name}.bias"] = (shape[0],)
        return shapes

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        """Return every float tensor the checkpoint must hold, name to shape, in model order."""
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, self.hidden_size)}
        for layer in range(self.num_hidden_layers):
            shapes.update(self.layer_tensors(layer))
        shapes[FINAL_NORM] = (self.hidden_size,)
        if not self.tie_word_embeddings:
            shapes[LM_HEAD] = (self.vocab_size, self.hidden_size)
        return shapes

    def num_parameters(self) -> int:
        """Return the number of parameters, a tied head counted once."""
        total = 0
        for shape in self.expected_tensors().values():
            count = 1
            for size in shape:
                count *= size
            total += count
        return total


def parse_config(raw: Mapping[str, Any], *, where: str) -> ModelConfig:
    """Return the checked configuration.

    Accepts the published form (``rope_theta``, ``rope_scaling``, ``torch_dtype``) and that of
    transformers 5 (``rope_parameters``, ``dtype``).

    Args:
        raw: the parsed ``config.json``.
        where: the file's name for messages.

    Raises:
        UnsupportedModelError: another architecture, or a feature that is not handled.
        CheckpointError: values are missing or contradict each other; lists all of them.
    """
    model_type = raw.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise UnsupportedModelError(
            f"{where} has model_type {model_type!r}, expected one of "
            f"{', '.join(SUPPORTED_MODEL_TYPES)}. vacc-deploy handles DeepSeek-R1-Distill models "
            "and other checkpoints of these two architectures."
        )
    reader = ConfigReader(raw, where)
    is_qwen2 = model_type == "qwen2"
    rope_theta, rope_scaling = _read_rope(reader, is_qwen2=is_qwen2)
    heads = reader.integer("num_attention_heads")
    hidden_size = reader.integer("hidden_size")
    attention_bias = is_qwen2 or reader.boolean("attention_bias", False)
    quantization_format = _read_quantization(reader)
    config = ModelConfig(
        model_type=model_type,
        hidden_size=hidden_size,
        intermediate_size=reader.integer("intermediate_size"),
        num_hidden_layers=reader.integer("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=reader.integer("num_key_value_heads", heads),
        head_dim=reader.integer("head_dim", max(1, hidden_size // heads)),
        vocab_size=reader.integer("vocab_size"),
        max_position_embeddings=reader.integer("max_position_embeddings", 2048),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6, raw),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tie_word_embeddings=reader.boolean("tie_word_embeddings", False),
        attention_bias=attention_bias,
        attention_output_bias=attention_bias and not is_qwen2,
        mlp_bias=not is_qwen2 and reader.boolean("mlp_bias", False),
        sliding_window=_read_sliding_window(reader, is_qwen2),
        dtype=_read_dtype(reader),
        quantization_bit=8 if quantization_format == INT8 else 0,
        quantization_format=quantization_format,
        raw=dict(raw),
    )
    _check_values(reader, config)
    if reader.problems:
        raise CheckpointError(
            f"{where} cannot be used:\n{list_problems(reader.problems)}\n"
            "Restore the file from the model's original repository."
        )
    return config


def _read_rope(reader: ConfigReader, *, is_qwen2: bool) -> tuple[float, RopeScaling | None]:
    parameters, older = reader.mapping("rope_parameters"), reader.mapping("rope_scaling")
    scaling = {**parameters, **older}
    if any(isinstance(value, dict) for value in scaling.values()):
        raise UnsupportedModelError(
            f"{reader.where} has one rotary rule for each kind of layer, expected one for all."
        )
    inner, outer = scaling.get("rope_theta"), reader.raw.get("rope_theta")
    if None not in (inner, outer) and inner != outer:
        reader.problems.append(f"rope_theta: got {outer!r} and, in the rotary rule, {inner!r}")
    rope_theta = reader.number("rope_theta", 10000.0, scaling if outer is None else reader.raw)
    types = [s.get("rope_type", s.get("type", "default")) for s in (older, parameters) if s]
    rope_type = types[0] if types else "default"
    if types[1:] and types[1] != rope_type:
        reader.problems.append(
            f"rope_scaling has type {rope_type!r}, rope_parameters has {types[1]!r}"
        )
    supported = SUPPORTED_ROPE_TYPES[: 2 if is_qwen2 else 3]
    if rope_type not in supported:
        raise UnsupportedModelError(
            f"{reader.where} asks for rotary scaling of type {rope_type!r}, expected one of "
            f"{', '.join(supported)}. The compiled graph would not compute what the "
            "model computes: remove rope_scaling to use the trained context length only."
        )
    if rope_type == "default":
        return rope_theta, None
    factor = reader.number("factor", None, scaling)
    if rope_type == "linear":
        return rope_theta, RopeScaling("linear", factor)
    original = reader.number("original_max_position_embeddings", None, scaling)
    low = reader.number("low_freq_factor", None, scaling)
    high = reader.number("high_freq_factor", None, scaling)
    if high <= low:
        reader.problems.append(f"rope_scaling: high_freq_factor {high} is not above {low}")
    return rope_theta, RopeScaling("llama3", factor, low, high, int(original))


def _read_sliding_window(reader: ConfigReader, is_qwen2: bool) -> int | None:
    if not (is_qwen2 and reader.boolean("use_sliding_window", False)):
        return None
    # A null is no window, an absent key the class's own 4096.
    if reader.raw.get("sliding_window", 4096) is None:
        return None
    return reader.integer("sliding_window", 4096)


def _read_dtype(reader: ConfigReader) -> str:
    value = reader.raw.get("torch_dtype") or reader.raw.get("dtype") or "float32"
    if not isinstance(value, str) or value not in _DTYPE_BYTES:
        reader.problems.append(f"torch_dtype: got {value!r}, expected {', '.join(_DTYPE_BYTES)}")
        return "float32"
    return value


def _read_quantization(reader: ConfigReader) -> str:
    """Return the layout of the codes, empty for float weights."""
    bits = reader.raw.get("quantization_bit") or 0
    if bits not in (0, 8):
        reader.problems.append(f"quantization_bit: got {bits!r}, expected 8 or none")
        return ""
    if bits:
        return INT8
    stated = reader.raw.get("quantization_config")
    if not stated:
        return ""
    layout = recognize(stated)
    if layout is None:
        method = stated.get("quant_method") if isinstance(stated, dict) else stated
        raise UnsupportedModelError(
            f"{reader.where} has a quantization_config (quant_method {method!r}): the weights are "
            "quantized already. Start from the float checkpoint."
        )
    return layout


def _check_values(reader: ConfigReader, config: ModelConfig) -> None:
    if reader.problems:
        return
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % kv_heads:
        reader.problems.append(
            f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    own_head_dim = config.model_type == "llama" and reader.raw.get("head_dim") is not None
    if not own_head_dim and config.hidden_size % heads:
        reader.problems.append(
            f"hidden_size {config.hidden_size} is no multiple of num_attention_heads {heads}"
        )
    if not own_head_dim and config.head_dim != config.hidden_size // heads:
        reader.problems.append(
            f"head_dim: got {config.head_dim}, expected hidden_size / num_attention_heads = "
            f"{config.hidden_size // heads}, the only one of qwen2"
        )
    elif config.head_dim % 2:
        reader.problems.append(f"head_dim {config.head_dim} is odd; rotary needs pairs")
    if config.raw.get("hidden_act", "silu") != "silu":
        reader.problems.append(f"hidden_act: got {config.raw['hidden_act']!r}, expected 'silu'")
    if config.raw.get("pretraining_tp", 1) not in (None, 1):
        reader.problems.append(
            f"pretraining_tp: got {config.raw['pretraining_tp']!r}, expected 1 (a rule of vamc)"
        )
    if config.model_type == "qwen2":
        _check_layer_types(reader, config)


def _check_layer_types(reader: ConfigReader, config: ModelConfig) -> None:
    """Refuse ``layer_types`` that contradict the window's own fields."""
    stated, first = reader.raw.get("layer_types"), reader.raw.get("max_window_layers", 28)
    count = config.num_hidden_layers
    if isinstance(first, bool) or not isinstance(first, int):
        reader.problems.append(f"max_window_layers: got {first!r}, expected a whole number")
        return
    num_full = count if config.sliding_window is None else min(max(first, 0), count)
    expected = ["full_attention"] * num_full + ["sliding_attention"] * (count - num_full)
    if stated is not None and stated != expected:
        reader.problems.append(
            "layer_types: not what use_sliding_window, sliding_window and max_window_layers say"
        )


def read_json(path: Path, *, limit_bytes: int) -> Any:
    """Parse a small JSON file of at most ``limit_bytes``.

    Raises:
        CheckpointError: the file is missing, too large, not UTF-8 or not JSON.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as err:
        raise CheckpointError(f"{path} cannot be read: {err.strerror}.") from err
    if len(data) > limit_bytes:
        raise CheckpointError(
            f"{path} holds more than {limit_bytes:,} bytes: this is no file of that kind."
        )
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as err:
        raise CheckpointError(f"{path} is not valid JSON: {err}. Download it again.") from err


def read_config(checkpoint_dir: Path, name: str = CONFIG_NAME) -> ModelConfig:
    """Read and check the configuration file ``name`` of a checkpoint directory.

    Raises:
        CheckpointError: the file is missing, no JSON object, or its values are wrong.
        UnsupportedModelError: another architecture, or a feature that is not handled.
    """
    path = checkpoint_dir / name
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing. Give a directory in the Hugging Face layout: config.json beside "
            "model.safetensors or model.safetensors.index.json."
        )
    raw = read_json(path, limit_bytes=MAX_CONFIG_BYTES)
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds {type(raw).__name__}, expected a JSON object.")
    return parse_config(raw, where=str(path))
