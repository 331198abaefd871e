# vacc-deploy: configuration of the Qwen2 model that is compiled for Vastai VACC.
# This file travels beside the weights and is named by `auto_map` in config.json.
# It needs only the standard library and transformers >= 4.37.
"""Qwen2 configuration: the Hugging Face fields, the compiler's two switches and the int8 flag."""

from __future__ import annotations

from transformers import PretrainedConfig

# Written into the config.json of an int8 directory. It has no "quant_method" on purpose: stock
# transformers refuses such a dict, and would otherwise read the int8 codes as if they were weights.
INT8_GUARD = {
    "format": "vacc-int8",
    "bits": 8,
    "strategy": "channel",
    "symmetric": True,
    "note": "int8 codes with per-channel weight_scale: "
    "load with trust_remote_code=True or with vacc-deploy",
}

QUANTIZATION_BITS = (0, 8)  # 0 = float weights
ROPE_TYPES = ("default", "linear")
DEFAULT_ROPE_THETA = 10000.0


class Qwen2Config(PretrainedConfig):
    """Describe a Qwen2 decoder.

    Besides the Hugging Face fields:
        insert_slice: prefill keeps the last position only before `lm_head`.
        iter_num: 0 is the prefill graph, anything else a decode graph (never sliced).
        quantization_bit: 0 for float weights, 8 for int8 codes with `weight_scale`.
    Raises:
        ValueError: a field has a value this model cannot honour.
    """

    model_type = "qwen2"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=22016,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=None,
        hidden_act="silu",
        max_position_embeddings=32768,
        initializer_range=0.02,
        rms_norm_eps=1e-6,
        use_cache=True,
        rope_theta=None,
        rope_scaling=None,
        rope_parameters=None,
        use_sliding_window=False,
        sliding_window=4096,
        max_window_layers=28,
        attention_dropout=0.0,
        insert_slice=False,
        iter_num=0,
        quantization_bit=0,
        quantization_config=None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = (
            num_attention_heads if num_key_value_heads is None else num_key_value_heads
        )
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.use_sliding_window = use_sliding_window
        self.sliding_window = sliding_window if use_sliding_window else None
        self.max_window_layers = max_window_layers
        self.attention_dropout = attention_dropout
        self.insert_slice, self.iter_num = insert_slice, iter_num
        self.quantization_bit = quantization_bit
        self.rope_parameters = read_rope(rope_theta, rope_scaling, rope_parameters)
        self.rope_theta = self.rope_parameters["rope_theta"]
        self._check_sizes()
        self._check_choices(kwargs.pop("head_dim", None), kwargs.pop("layer_types", None))
        foreign = absorb_guard(quantization_bit, quantization_config)
        if foreign is not None:
            kwargs["quantization_config"] = foreign
        # transformers 5 no longer gives these fields to every config
        shared = {"tie_word_embeddings": False, "pad_token_id": None}
        shared.update({"bos_token_id": None, "eos_token_id": None}, **kwargs)
        super().__init__(**shared)

    @property
    def window_layers(self):
        """Indices of the layers that see only the last `sliding_window` keys."""
        if self.sliding_window is None:
            return range(0)
        return range(self.max_window_layers, self.num_hidden_layers)

    def to_dict(self):
        """Return the fields as a dict; an int8 config carries the guard."""
        output = super().to_dict()
        if isinstance(output.get("rope_parameters"), dict):
            output["rope_parameters"]["rope_theta"] = self.rope_theta
        if self.quantization_bit == 8:
            output["quantization_config"] = dict(INT8_GUARD)
        return output

    def _check_sizes(self):
        names = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"]
        names += ["num_attention_heads", "num_key_value_heads", "max_position_embeddings"]
        if self.sliding_window is not None:
            names.append("sliding_window")
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected a positive integer")
        for name, divisor in (
            ("hidden_size", "num_attention_heads"),
            ("num_attention_heads", "num_key_value_heads"),
        ):
            value, parts = getattr(self, name), getattr(self, divisor)
            if value % parts:
                raise ValueError(f"{name}: got {value}, expected a multiple of {divisor} = {parts}")
        if (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"hidden_size / num_attention_heads: got "
                f"{self.hidden_size // self.num_attention_heads}, expected an even head size"
            )

    def _check_choices(self, head_dim, layer_types):
        own_head_dim = self.hidden_size // self.num_attention_heads
        if head_dim not in (None, own_head_dim):
            raise ValueError(
                f"head_dim: got {head_dim!r}, expected hidden_size / num_attention_heads "
                f"= {own_head_dim}"
            )
        if self.hidden_act != "silu":
            raise ValueError(f"hidden_act: got {self.hidden_act!r}, expected 'silu'")
        if self.quantization_bit not in QUANTIZATION_BITS:
            raise ValueError(
                f"quantization_bit: got {self.quantization_bit!r}, expected 0 (float) or 8 (int8)"
            )
        # The library's caches read layer_types: without it they would window every layer.
        self.layer_types = [
            "sliding_attention" if idx in self.window_layers else "full_attention"
            for idx in range(self.num_hidden_layers)
        ]
        if layer_types is not None and list(layer_types) != self.layer_types:
            raise ValueError(
                f"layer_types: got {list(layer_types)}, expected {self.layer_types} (from "
                f"use_sliding_window, sliding_window and max_window_layers)"
            )


def read_rope(rope_theta, rope_scaling, rope_parameters):
    """Return one dict with rope_theta, rope_type and, for "linear", factor.

    Args:
        rope_theta: the top-level base, or None.
        rope_scaling: the older dict ({"type": ..., "factor": ...}), or None.
        rope_parameters: the transformers 5 dict, or None.
    Raises:
        ValueError: unknown kind of scaling, bad number, or two bases that disagree.
    """
    for name, value in (("rope_scaling", rope_scaling), ("rope_parameters", rope_parameters)):
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"{name}: got {value!r}, expected a dict or null")
        if any(isinstance(item, dict) for item in (value or {}).values()):
            raise ValueError(f"{name}: got one dict per layer type, which is not supported")
    entries = dict(rope_parameters or {})
    entries.update(rope_scaling or {})

    inner_theta = entries.get("rope_theta")
    if None not in (rope_theta, inner_theta) and rope_theta != inner_theta:
        raise ValueError(
            f"rope_theta: got {rope_theta!r} and, inside rope_parameters, {inner_theta!r}; "
            f"expected the same number"
        )
    theta = inner_theta if rope_theta is None else rope_theta
    theta = DEFAULT_ROPE_THETA if theta is None else theta
    result = {"rope_theta": _positive("rope_theta", theta)}

    rope_type = entries.get("rope_type") or entries.get("type") or "default"
    if rope_type not in ROPE_TYPES:
        raise ValueError(
            f"rope type: got {rope_type!r}, which is not supported; "
            f"expected one of {', '.join(ROPE_TYPES)}"
        )
    result["rope_type"] = rope_type
    if rope_type == "linear":
        result["factor"] = _positive("rope factor", entries.get("factor"))
    return result


def absorb_guard(quantization_bit, quantization_config):
    """Return the quantization config that stays on the object: never the int8 guard.

    Raises:
        ValueError: the guard and quantization_bit contradict each other.
    """
    entries = quantization_config
    if entries is not None and not isinstance(entries, dict):
        entries = entries.to_dict()
    is_guard = entries is not None and entries.get("format") == INT8_GUARD["format"]
    if is_guard and quantization_bit != 8:
        raise ValueError(
            f"quantization_bit: got {quantization_bit!r}, expected 8 because quantization_config "
            f"says the weights are {INT8_GUARD['format']}"
        )
    if quantization_bit == 8 and entries is not None and not is_guard:
        raise ValueError(
            f"quantization_config: got {entries!r}, expected format {INT8_GUARD['format']!r} "
            f"beside quantization_bit 8"
        )
    return None if is_guard else quantization_config


def _positive(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{name}: got {value!r}, expected a positive number")
    return value
