"""The key-values of a GGUF file, as llama.cpp's own converter writes them for these models.

docs/formats.md compares them key by key with the converter's, and says why some differ.

Those that shape the computation are in ``models.gguf_keys``.

Source: ``conversion/base.py``, ``llama.py`` and ``qwen.py`` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vacc_deploy.errors import UnsupportedModelError, list_problems
from vacc_deploy.gguf_file.sampling import SAMPLERS, stated_sampling
from vacc_deploy.gguf_file.tokens import GgufTokens
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.models.gguf_keys import KeyValues, computing_values
from vacc_deploy.models.rope import YARN

_MOSTLY_Q8_0 = 7  # llama.cpp's number of the file type
_QUANT_VERSION = 2
_MODEL_KIND = "gpt2"  # llama.cpp's name of byte-level BPE
_ROLE_KEYS = {"unk": "unknown", "sep": "seperator", "pad": "padding"}  # the format's own spelling
# llama.cpp reads other ones for some architectures only.
_BETAS = (32.0, 1.0)


def check_architecture(config: ModelConfig) -> None:
    """Refuse what llama.cpp does not compute for these architectures.

    Raises:
        UnsupportedModelError: lists all of it.
    """
    problems = list[str]()
    if config.sliding_window is not None:
        problems.append(
            f"a sliding window of {config.sliding_window} tokens, which it does not read for "
            f"{config.model_type}"
        )
    if config.model_type == "qwen3" and config.attention_bias:
        problems.append("biases of the attention, which it does not read for qwen3")
    scaling = config.rope_scaling
    if scaling and scaling.rope_type == YARN and (scaling.beta_fast, scaling.beta_slow) != _BETAS:
        problems.append(
            f"yarn with beta_fast {scaling.beta_fast:g} and beta_slow {scaling.beta_slow:g}; it "
            f"computes with {_BETAS[0]:g} and {_BETAS[1]:g}"
        )
    if problems:
        raise UnsupportedModelError(
            "llama.cpp would not compute what this model computes. It has:\n"
            f"{list_problems(problems)}\nUse another --format."
        )


def model_values(config: ModelConfig, name: str, generation: Mapping[str, Any] | None) -> KeyValues:
    """Return the key-values of the model.

    Args:
        config: of the model, which ``check_architecture`` has seen.
        name: the model's.
        generation: the values of ``generation_config.json``.
    """
    return {
        "general.architecture": ("STRING", config.model_type),
        "general.type": ("STRING", "model"),
        **_sampling_values(generation or {}),
        "general.name": ("STRING", name),
        "general.size_label": ("STRING", size_label(config.num_parameters())),
        **computing_values(config),
        "general.file_type": ("UINT32", _MOSTLY_Q8_0),
        "general.quantization_version": ("UINT32", _QUANT_VERSION),
    }


def token_values(tokens: GgufTokens) -> KeyValues:
    """Return the key-values of the tokenizer."""
    values: KeyValues = {}
    if tokens.adds_space is not None:
        values["tokenizer.ggml.add_space_prefix"] = ("BOOL", tokens.adds_space)
    values |= {
        "tokenizer.ggml.model": ("STRING", _MODEL_KIND),
        "tokenizer.ggml.pre": ("STRING", tokens.pre),
        "tokenizer.ggml.tokens": ("ARRAY", list(tokens.tokens)),
        "tokenizer.ggml.token_type": ("ARRAY", list(tokens.types)),
        "tokenizer.ggml.merges": ("ARRAY", list(tokens.merges)),
    }
    for role, token_id in tokens.special.items():
        values[f"tokenizer.ggml.{_ROLE_KEYS.get(role, role)}_token_id"] = ("UINT32", token_id)
    values["tokenizer.ggml.add_bos_token"] = ("BOOL", tokens.adds_bos)
    if tokens.template:
        values["tokenizer.chat_template"] = ("STRING", tokens.template)
    return values


def size_label(num_parameters: int) -> str:
    """Return a count of parameters as the converter does, two digits at least: ``1.8B``, ``135M``.

    Source: ``model_weight_count_rounded_notation`` of gguf-py.
    """
    units = {12: "T", 9: "B", 6: "M"}
    power = next((power for power in units if num_parameters > 10**power), 3)
    scaled = num_parameters / 10**power
    digits = len(str(round(scaled)).lstrip("0"))
    return f"{scaled:.{max(2 - digits, 0)}f}{units.get(power, 'K')}"


def _sampling_values(generation: Mapping[str, Any]) -> KeyValues:
    """Return what the checkpoint's authors sample with."""
    return {
        f"general.sampling.{SAMPLERS[name].key}": (SAMPLERS[name].kind, value)
        for name, value in stated_sampling(generation).items()
        if SAMPLERS[name].key
    }
