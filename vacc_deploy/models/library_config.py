"""What a configuration class of transformers is given: known keys, with values that were checked.

Such a class keeps whatever key it is given, and acts on many of them: it builds a table of
``num_labels`` entries, looks for kernels, swaps what a forward pass returns. So no other key of a
stranger's file reaches one, and no file of a checkpoint is read by transformers itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vacc_deploy.models.config import ModelConfig
from vacc_deploy.models.rope import rope_values

ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
# The fields of our own configuration class (source_code/configuration_qwen2_vacc.py) that say what
# is computed. ``models.parse`` has checked each of them.
_OWN_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act"),
    *("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"),
    *("rope_theta", "rope_scaling", "rope_parameters"),
    *("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"),
    *("model_type", "attention_bias", "insert_slice", "quantization_bit"),
)
# The keys of a ``config.json`` that say what is computed.
ARCHITECTURE_KEYS = (*_OWN_KEYS, "mlp_bias", "pretraining_tp")


def library_config(config: ModelConfig) -> dict[str, Any]:
    """Return what transformers' own class of an architecture is given.

    The values are those of the checked record, in the form that every version of transformers
    reads.
    """
    values: dict[str, Any] = {
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "rope_theta": config.rope_theta,
    }
    if config.rope_scaling is not None:
        values["rope_scaling"] = rope_values(config.rope_scaling)
    if config.model_type == "llama":
        values |= {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
    elif config.model_type == "qwen3":
        values["attention_bias"] = config.attention_bias
    if config.model_type != "llama":
        # The layers before max_window_layers see all tokens; 28 is the default of transformers.
        first = config.raw.get("max_window_layers", 28)
        values |= {
            "use_sliding_window": config.sliding_window is not None,
            "sliding_window": config.sliding_window,
            "max_window_layers": min(max(first, 0), config.num_hidden_layers),
        }
    return values | checked_ids(config.raw, config.vocab_size)


def own_config(values: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """Return what our own configuration class is given, as ``config_vacc.json`` writes it.

    Args:
        values: the file as parsed, after ``check_vacc_config``.
        vocab_size: of the model, for the ids.
    """
    known = {key: values[key] for key in _OWN_KEYS if key in values}
    return known | checked_ids(values, vocab_size)


def checked_ids(values: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """Return the ids of the begin, the end and the padding that are ids of the model.

    A null stays: it says that there is none, where a class would take a default of its own.
    """
    found = dict[str, Any]()
    for key in ID_KEYS:
        stated = values.get(key)
        listed = stated if isinstance(stated, list) and key == "eos_token_id" else [stated]
        good = all(type(token) is int and 0 <= token < vocab_size for token in listed)
        if key in values and (stated is None or (good and listed)):
            found[key] = stated
    return found
