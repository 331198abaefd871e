"""What an int8 directory holds: tensor names and the two configuration files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vacc_deploy.errors import CheckpointError
from vacc_deploy.model_config import MAX_CONFIG_BYTES, ModelConfig, read_json
from vacc_deploy.vacc_config import dump_config, vacc_config

QUANTIZATION_BIT = 8
# A quantization_config without quant_method: every stock loader refuses it with an error, where
# without it stock transformers would read the int8 codes as if they were weights. Our own
# configuration class takes it off (source_code/configuration_qwen2_vacc.py holds the same value).
INT8_GUARD = {
    "format": "vacc-int8",
    "bits": 8,
    "strategy": "channel",
    "symmetric": True,
    "note": (
        "int8 codes with per-channel weight_scale: load with trust_remote_code=True or with "
        "vacc-deploy"
    ),
}


def int8_tensors(name: str, codes: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the stored tensors of one linear.

    Args:
        name: the linear's full name.
        codes: int8 [out_features, in_features].
        scale: float16 [out_features].
    """
    return {f"{name}.weight": codes, f"{name}.weight_scale": scale}


def int8_config(config: ModelConfig) -> str:
    """Return the ``config.json`` of an int8 directory, which transformers reads.

    It differs from ``config_vacc.json`` in two points: the guard against stock loaders, and
    ``insert_slice`` false, so that a forward pass returns the logits of every position.
    """
    if config.model_type == "qwen2":
        values = vacc_config(config, quantization_bit=QUANTIZATION_BIT)
        values["insert_slice"] = False
    else:
        # A stranger's auto_map would point loaders at code that does not travel along.
        values = {key: value for key, value in config.raw.items() if key != "auto_map"}
        values["quantization_bit"] = QUANTIZATION_BIT
    values["quantization_config"] = dict(INT8_GUARD)
    return dump_config(values)


def int8_vacc_config(config: ModelConfig, prepared: Path) -> str:
    """Return the ``config_vacc.json`` of an int8 directory, which the compiler reads.

    Args:
        config: the source's configuration.
        prepared: the ``config_vacc.json`` of the source, kept as it is but for the added key; made
            from ``config`` where the source has none.

    Raises:
        CheckpointError: the source's file is damaged.
    """
    if not prepared.is_file():
        return dump_config(vacc_config(config, quantization_bit=QUANTIZATION_BIT))
    values: Any = read_json(prepared, limit_bytes=MAX_CONFIG_BYTES)
    if not isinstance(values, dict):
        raise CheckpointError(f"{prepared} holds no JSON object. Run prepare again.")
    return dump_config({**values, "quantization_bit": QUANTIZATION_BIT})


def dump_report(values: Mapping[str, Any]) -> str:
    """Return a report as stable, readable JSON."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
