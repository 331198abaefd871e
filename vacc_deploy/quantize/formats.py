"""What an int8 directory holds: tensor names and the two configuration files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vacc_deploy.model_config import ModelConfig
from vacc_deploy.vacc_config import (
    VACC_CONFIG_NAME,
    check_vacc_config,
    dump_config,
    read_vacc_config,
    vacc_config,
)

INT8 = "int8"
FORMATS = (INT8,)
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


def linear_tensors(
    layout: str, name: str, codes: torch.Tensor, scale: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the stored tensors of one linear.

    Args:
        layout: one of ``FORMATS``.
        name: the linear's full name.
        codes: int8 [out_features, in_features].
        scale: float16 [out_features].
    """
    if layout != INT8:
        raise ValueError(f"unknown format {layout!r}")
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


def int8_vacc_config(config: ModelConfig, source: Path) -> str:
    """Return the ``config_vacc.json`` of an int8 directory, which the compiler reads.

    Args:
        config: the source's configuration.
        source: the source's directory. Its ``config_vacc.json`` is checked against ``config`` and
            kept as it is but for the added key; without one it is made from ``config``.

    Raises:
        CheckpointError: the source's file is damaged, or describes another model.
        UnsupportedModelError: the source's file asks for something that is not handled.
    """
    path = source / VACC_CONFIG_NAME
    if not path.is_file():
        return dump_config(vacc_config(config, quantization_bit=QUANTIZATION_BIT))
    check_vacc_config(source, config)
    return dump_config({**read_vacc_config(path), "quantization_bit": QUANTIZATION_BIT})


def dump_report(values: Mapping[str, Any]) -> str:
    """Return a report as stable, readable JSON."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
