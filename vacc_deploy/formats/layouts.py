"""How each output format stores one linear, and the ``quantization_config`` that announces it.

The one place for names, shapes and dtypes: the writer, the reader and the size forecast all use it.

Source: compressed-tensors 0.20 (pack-quantized); GPTQModel 7.7 (checkpoint_format gptq, bits 8).
"""

from __future__ import annotations

import copy
from typing import Any

from vacc_deploy import __version__

INT8, FP16, GPTQ, COMPRESSED_TENSORS = "int8", "fp16", "gptq", "compressed-tensors"
FORMATS = (INT8, FP16, GPTQ, COMPRESSED_TENSORS)
# Four codes share one int32 word, along in_features.
CODES_PER_WORD = 4
_TOOL = "vacc-deploy"
_GPTQ_CONFIG: dict[str, Any] = {
    "bits": 8,
    "group_size": -1,
    "desc_act": False,
    "static_groups": False,
    "sym": True,
    "lm_head": False,
    "true_sequential": True,
    "damp_percent": 0.01,
    "quant_method": "gptq",
    "checkpoint_format": "gptq",
    "pack_dtype": "int32",
    "meta": {"quantizer": [f"{_TOOL}:{__version__}"]},
}
# Written out: the preset name W8A16 stands for groups of 128, not for one scale per channel.
_COMPRESSED_TENSORS_CONFIG: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "kv_cache_scheme": None,
    "global_compression_ratio": None,
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "input_activations": None,
            "output_activations": None,
            "weights": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "channel",
                "group_size": None,
                "dynamic": False,
                "block_structure": None,
                "actorder": None,
                "observer": "minmax",
                "observer_kwargs": {},
            },
        }
    },
}
_CONFIGS = {GPTQ: _GPTQ_CONFIG, COMPRESSED_TENSORS: _COMPRESSED_TENSORS_CONFIG}


def stored_linear(
    layout: str, out_features: int, in_features: int
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the tensors of one linear but its bias: suffix to shape and safetensors dtype.

    Args:
        layout: one of ``FORMATS``.
        out_features: rows of the weight.
        in_features: its columns.

    Raises:
        ValueError: an unknown layout.
    """
    words = -(-in_features // CODES_PER_WORD)
    if layout == INT8:
        return {
            "weight": ((out_features, in_features), "I8"),
            "weight_scale": ((out_features,), "F16"),
        }
    if layout == FP16:
        return {"weight": ((out_features, in_features), "F16")}
    if layout == COMPRESSED_TENSORS:
        return {
            "weight_packed": ((out_features, words), "I32"),
            "weight_scale": ((out_features, 1), "F16"),
            "weight_shape": ((2,), "I64"),
        }
    if layout == GPTQ:
        return {
            "qweight": ((words, out_features), "I32"),
            "qzeros": ((1, -(-out_features // CODES_PER_WORD)), "I32"),
            "scales": ((1, out_features), "F16"),
            "g_idx": ((in_features,), "I32"),
        }
    raise ValueError(f"unknown format {layout!r}, expected one of {', '.join(FORMATS)}")


def quantization_config(layout: str) -> dict[str, Any]:
    """Return a new ``quantization_config`` of ``gptq`` or ``compressed-tensors``."""
    return copy.deepcopy(_CONFIGS[layout])


def recognize(stated: Any) -> str | None:
    """Return the layout that this tool announces with ``stated``, or None for anybody else's.

    Every key must be as written, but for the version of the tool: another group size or another
    rule for zero points would be read as other weights.
    """
    for layout, expected in _CONFIGS.items():
        if isinstance(stated, dict) and _without_version(stated) == _without_version(expected):
            return layout
    return None


def _without_version(stated: dict[str, Any]) -> dict[str, Any]:
    """Return a copy that names the tool without its version."""
    meta = stated.get("meta")
    if not isinstance(meta, dict):
        return stated
    quantizer = meta.get("quantizer")
    if not isinstance(quantizer, list) or len(quantizer) != 1:
        return stated
    return {**stated, "meta": {**meta, "quantizer": [str(quantizer[0]).partition(":")[0]]}}
