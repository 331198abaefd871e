"""The architecture of a checkpoint: records, names, shapes. Reads no files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from vacc_deploy.formats.dtypes import FLOAT_DTYPE_BYTES

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
# The class with a head for the next token, by model_type.
ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
}
SUPPORTED_MODEL_TYPES = tuple(ARCHITECTURES)
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

    ``linear`` uses ``factor`` only. ``llama3`` (Llama 3.1 report, section 3.4) uses the frequency
    factors and the original length. ``yarn`` (arXiv 2309.00071) uses the original length, the two
    numbers of turns between which it blends, ``beta_fast`` and ``beta_slow``, and
    ``attention_factor``, which multiplies the tables of cosines and sines.
    """

    rope_type: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of one checkpoint, with the field names of ``config.json``.

    Attributes:
        head_dim: size of one head; the heads together need not be as wide as the hidden states.
        attention_bias: whether q_proj, k_proj and v_proj have one.
        attention_output_bias: whether o_proj has one.
        sliding_window: length of the attention window in tokens; None where all are seen.
        dtype: name in torch of the dtype of the float weights.
        quantization_bit: 8 for the ``int8`` layout only, else 0.
        quantization_format: layout of the codes in a directory that ``quantize`` wrote (``int8``,
            ``gptq``, ``compressed-tensors``), empty for float weights.
        raw: ``config.json`` as parsed.
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

        The dtype and the quantization do not count: the same model has them in several forms.
        """
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        # Left is what shapes the function, and for how many tokens.
        for name in ("raw", "quantization_bit", "quantization_format", "dtype"):
            del pairs[name]
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    @property
    def has_head_norms(self) -> bool:
        """Whether each head of the queries and of the keys has a norm before it is turned."""
        return self.model_type == "qwen3"

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one float parameter."""
        return FLOAT_DTYPE_BYTES[self.dtype]

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of the float16 key-value cache for one token, all layers."""
        # Keys and values, [key-value heads, head_dim] each, two bytes an element.
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * 2

    def linear_shape(self, linear: str) -> tuple[int, int]:
        """Return [out_features, in_features] of one of ``LAYER_LINEARS``."""
        # The heads lie one after the other in the rows of q, k, v and in the columns of o.
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
            # The norms of the heads stand behind q, k and v, the second norm between o and gate.
            if linear == "o_proj" and self.has_head_norms:
                for head in ("q", "k"):
                    shapes[f"{prefix}self_attn.{head}_norm.weight"] = (self.head_dim,)
            if linear == "gate_proj":
                shapes[f"{prefix}post_attention_layernorm.weight"] = (self.hidden_size,)
            name, shape = linear_name(layer, linear), self.linear_shape(linear)
            shapes[f"{name}.weight"] = shape
            if self.has_bias(linear):
                shapes[f"{name}.bias"] = (shape[0],)
        return shapes

    def expected_tensors(self) -> dict[str, tuple[int, ...]]:
        """Return every float tensor the checkpoint must hold, name to shape, in model order."""
        # The embedding and the head are [vocab_size, hidden_size], norms [hidden_size].
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, self.hidden_size)}
        for layer in range(self.num_hidden_layers):
            shapes.update(self.layer_tensors(layer))
        shapes[FINAL_NORM] = (self.hidden_size,)
        if not self.tie_word_embeddings:
            shapes[LM_HEAD] = (self.vocab_size, self.hidden_size)
        return shapes

    def num_parameters(self) -> int:
        """Return the number of parameters, a tied head counted once."""
        return sum(math.prod(shape) for shape in self.expected_tensors().values())
