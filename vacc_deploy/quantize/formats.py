"""What an int8 directory holds: tensor names and the two configuration files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from vacc_deploy.assets import SOURCE_FILES
from vacc_deploy.errors import UnsupportedModelError
from vacc_deploy.model_config import CONFIG_NAME, ModelConfig
from vacc_deploy.vacc_config import (
    VACC_CONFIG_NAME,
    check_vacc_config,
    dump_config,
    needs_vacc_config,
    read_vacc_config,
    vacc_config,
)

INT8 = "int8"
FORMATS = (INT8, "fp16", "gptq", "compressed-tensors")
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


def codes_from(
    layout: str,
    read: Callable[[str], torch.Tensor],
    name: str,
    scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes int8 [out, in] and the scale float16 [out] of a stored linear.

    Args:
        layout: one of ``FORMATS``.
        read: returns the stored tensor of a name.
        name: the linear's full name.
        scale: its scale, where it is known.
    """
    if layout != INT8:
        raise ValueError(f"unknown format {layout!r}")
    return read(f"{name}.weight"), read(f"{name}.weight_scale") if scale is None else scale


def check_format(layout: str, config: ModelConfig) -> None:
    """Refuse a model that a layout cannot hold, before any work."""
    if layout != INT8:
        raise UnsupportedModelError(f"The {layout} layout cannot hold {config.model_type} yet.")


def stored_linear_bytes(layout: str, out_features: int, in_features: int) -> int:
    """Return the bytes of the stored tensors of one linear."""
    if layout != INT8:
        raise ValueError(f"unknown format {layout!r}")
    return out_features * in_features + 2 * out_features


def format_files(layout: str, config: ModelConfig, source: Path) -> dict[str, str]:
    """Return the text files that lie beside the weights, by name."""
    if layout != INT8:
        raise ValueError(f"unknown format {layout!r}")
    files = {CONFIG_NAME: int8_config(config)}
    if needs_vacc_config(config):
        files[VACC_CONFIG_NAME] = int8_vacc_config(config, source)
    return files


def format_source_files(layout: str, config: ModelConfig) -> tuple[str, ...]:
    """Return the names of the source files that travel with the weights."""
    return SOURCE_FILES if layout == INT8 and needs_vacc_config(config) else ()


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
