# vacc-deploy: configuration of the Qwen2 or Qwen3 model that is compiled for Vastai VACC.
# This file travels beside the weights and is named by `auto_map` in config.json.
# It needs only the standard library and transformers >= 4.37.
"""Qwen2 and dense Qwen3: the Hugging Face fields, the compiler's two switches and the int8 flag.

One class with the name that the compiler knows; its `model_type` says which of the two it is.
"""

from __future__ import annotations

import math

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

MODEL_TYPES = ("qwen2", "qwen3")
QUANTIZATION_BITS = (0, 8)  # 0 = float weights
ROPE_TYPES = ("default", "linear", "yarn")
DEFAULT_ROPE_THETA = 10000.0
QWEN3_HEAD_DIM = 128  # of a Qwen3 that does not say it, as in transformers
FILE_MODEL_TYPE = "_file_model_type"  # see get_config_dict


class Qwen2Config(PretrainedConfig):
    """Describe a Qwen2 or a dense Qwen3 decoder.

    Besides the Hugging Face fields:
        model_type: "qwen2" (bias on q, k and v) or "qwen3" (norms of q and k, free `head_dim`,
            `attention_bias` for all four projections).
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
        model_type="qwen2",
        head_dim=None,
        attention_bias=False,
        **kwargs,
    ):
        self.model_type = kwargs.pop(FILE_MODEL_TYPE, model_type)
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = self.num_key_value_heads = num_attention_heads
        if num_key_value_heads is not None:
            self.num_key_value_heads = num_key_value_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.use_sliding_window, self.max_window_layers = use_sliding_window, max_window_layers
        self.sliding_window = sliding_window if use_sliding_window else None
        self.attention_dropout = attention_dropout
        self.insert_slice, self.iter_num = insert_slice, iter_num
        self.quantization_bit = quantization_bit
        self.rope_parameters = read_rope(rope_theta, rope_scaling, rope_parameters)
        self.rope_theta = self.rope_parameters["rope_theta"]
        self.head_dim = QWEN3_HEAD_DIM if head_dim is None and self.is_qwen3 else head_dim
        if self.is_qwen3:  # a Qwen2 has no such field
            self.attention_bias = False if attention_bias is None else attention_bias
        self._check_choices()
        self._check_sizes()
        self._set_layer_types(kwargs.pop("layer_types", None))
        foreign = absorb_guard(quantization_bit, quantization_config)
        if foreign is not None:
            kwargs["quantization_config"] = foreign
        # transformers 5 no longer gives these fields to every config
        shared = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
        super().__init__(**{"tie_word_embeddings": False, **shared, **kwargs})

    @classmethod
    def get_config_dict(cls, *args, **kwargs):
        """Return the fields of a file, its model_type under another name.

        `from_pretrained` would warn that "qwen3" is not the class's own model_type.
        """
        fields, unused = super().get_config_dict(*args, **kwargs)
        if fields.get("model_type") in MODEL_TYPES:
            fields[FILE_MODEL_TYPE] = fields.pop("model_type")
        return fields, unused

    @property
    def is_qwen3(self):
        """Whether q and k have norms; else q, k and v have a bias."""
        return self.model_type == "qwen3"

    @property
    def window_layers(self):
        """Indices of the layers that see only the last `sliding_window` keys."""
        if self.sliding_window is None:
            return range(0)
        return range(self.max_window_layers, self.num_hidden_layers)

    def to_dict(self):
        """Return the fields as a dict; an int8 config carries the guard."""
        output = super().to_dict()
        output["model_type"] = self.model_type  # not that of the class
        if isinstance(output.get("rope_parameters"), dict):
            output["rope_parameters"]["rope_theta"] = self.rope_theta
        if self.quantization_bit == 8:
            output["quantization_config"] = dict(INT8_GUARD)
        return output

    def _check_choices(self):
        for name, expected in (
            ("model_type", MODEL_TYPES),
            ("hidden_act", ("silu",)),
            ("attention_bias", (False, True)),
            ("quantization_bit", QUANTIZATION_BITS),  # 0 = float, 8 = int8
        ):
            value = getattr(self, name, expected[0])
            if value not in expected:
                listed = " or ".join(repr(item) for item in expected)
                raise ValueError(f"{name}: got {value!r}, expected {listed}")

    def _check_sizes(self):
        names = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"]
        names += ["num_attention_heads", "num_key_value_heads", "max_position_embeddings"]
        names += ["head_dim"] if self.is_qwen3 else []
        names += [] if self.sliding_window is None else ["sliding_window"]
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected a positive integer")
        pairs = [("num_attention_heads", "num_key_value_heads")]
        pairs += [] if self.is_qwen3 else [("hidden_size", "num_attention_heads")]
        for name, divisor in pairs:
            value, parts = getattr(self, name), getattr(self, divisor)
            if value % parts:
                raise ValueError(f"{name}: got {value}, expected a multiple of {divisor} = {parts}")
        if not self.is_qwen3:
            own_head_dim = self.hidden_size // self.num_attention_heads
            if self.head_dim not in (None, own_head_dim):
                raise ValueError(
                    f"head_dim: got {self.head_dim!r}, expected hidden_size / num_attention_heads "
                    f"= {own_head_dim}"
                )
            self.head_dim = own_head_dim
        if self.head_dim % 2:
            raise ValueError(f"head_dim: got {self.head_dim}, expected an even head size")

    def _set_layer_types(self, layer_types):
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
    """Return one dict with rope_theta, rope_type and what that type needs.

    That is `factor` for "linear", and for "yarn" see `read_yarn`.

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
    if rope_type == "yarn":
        if not theta > 1:
            raise ValueError(f"rope_theta: got {theta!r}, expected more than 1 for yarn")
        result.update(read_yarn(entries))
    return result


def read_yarn(entries):
    """Return the numbers of "yarn" rotary scaling, every default written out.

    They are factor, original_max_position_embeddings, beta_fast, beta_slow and attention_factor,
    which multiplies the tables. Without it, `attn_factor` counts, as in SGLang and
    older vLLM; transformers does not read that key. Source: arXiv 2309.00071, sections 3.2 to 3.4.

    Raises:
        ValueError: a number is missing or bad, or a variant is asked for that is not computed here.
    """
    given = {name: value for name, value in entries.items() if value is not None}
    for name, only in (("mscale", None), ("mscale_all_dim", None), ("truncate", True)):
        if given.get(name, only) is not only:
            raise ValueError(f"yarn {name}: got {given[name]!r}, which is not supported")

    def read(name, default=None):
        return _positive(f"yarn {name}", given.get(name, default))

    factor = read("factor")
    natural = (0.1 * math.log(max(factor, 1)) + 1) * read("attn_factor", 1)
    return {
        "factor": float(factor),  # transformers warns of whole numbers
        "original_max_position_embeddings": read("original_max_position_embeddings"),
        "beta_fast": float(read("beta_fast", 32)),
        "beta_slow": float(read("beta_slow", 1)),
        "attention_factor": float(read("attention_factor", natural)),
    }


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
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{name}: got {value!r}, expected a positive number")
    return value
