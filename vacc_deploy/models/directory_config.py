"""The texts beside the weights of each layout: ``config.json``, ``config_vacc.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vacc_deploy.assets import SOURCE_FILES
from vacc_deploy.errors import UnsupportedModelError, list_problems
from vacc_deploy.formats.layouts import (
    CODES_PER_WORD,
    FP16,
    GPTQ,
    INT8,
    quantization_config,
)
from vacc_deploy.json_files import dump_json
from vacc_deploy.models.config import CONFIG_NAME, LAYER_LINEARS, ModelConfig
from vacc_deploy.models.vacc_config import (
    VACC_CONFIG_NAME,
    check_vacc_config,
    needs_vacc_config,
    read_vacc_config,
    vacc_config,
)

QUANTIZATION_BIT = 8
GPTQ_CONFIG_NAME = "quantize_config.json"
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
# What a source's config.json may say about loading that does not hold for the new directory. A
# stranger's auto_map would point loaders at code that does not travel along.
_LOADING_KEYS = (
    *("auto_map", "quantization_config", "quantization_bit"),
    *("attn_implementation", "_attn_implementation"),
)
# The scales are float16. A loader that follows a bfloat16 config would round them (or, in an fp16
# directory, the weights) to 8 bits: up to a quarter of a step at the largest codes.
_DTYPE = "float16"


def check_format(layout: str, config: ModelConfig) -> None:
    """Refuse a model that a layout cannot hold, before any work.

    Raises:
        UnsupportedModelError: lists the linears.
    """
    if layout != GPTQ:
        return
    shapes = {linear: config.linear_shape(linear) for linear in LAYER_LINEARS}
    odd = [f"{n}: {list(s)}" for n, s in shapes.items() if any(x % CODES_PER_WORD for x in s)]
    if odd:
        raise UnsupportedModelError(
            f"The gptq layout holds weights whose sizes are multiples of {CODES_PER_WORD}:\n"
            f"{list_problems(odd)}\nUse another --format."
        )


# ---- texts beside the weights -----------------------------------------------------------------


def format_files(layout: str, config: ModelConfig, source_dir: Path) -> dict[str, str]:
    """Return the texts that belong to a layout, file name to content.

    Args:
        layout: one of ``FORMATS``.
        config: the source's configuration.
        source_dir: the source's directory, for its ``config_vacc.json``.

    Raises:
        CheckpointError: the source's ``config_vacc.json`` is damaged, or describes another model.
        UnsupportedModelError: it asks for something that is not handled.
    """
    if layout == INT8:
        files = {CONFIG_NAME: int8_config(config)}
        if needs_vacc_config(config):
            files[VACC_CONFIG_NAME] = int8_vacc_config(config, source_dir)
        return files
    if layout == FP16:
        files = {CONFIG_NAME: dump_json(_with_float16(_plain_config(config)))}
        if needs_vacc_config(config):
            files[VACC_CONFIG_NAME] = dump_json(
                _with_float16(_source_vacc_config(config, source_dir))
            )
        return files
    stated = quantization_config(layout)
    values = {**_with_float16(_plain_config(config)), "quantization_config": stated}
    files = {CONFIG_NAME: dump_json(values)}
    if layout == GPTQ:
        files[GPTQ_CONFIG_NAME] = dump_json(stated)
    return files


def format_source_files(layout: str, config: ModelConfig) -> tuple[str, ...]:
    """Return which of the package's source files travel with the weights."""
    for_compiler = layout in (INT8, FP16) and needs_vacc_config(config)
    return SOURCE_FILES if for_compiler else ()


def _plain_config(config: ModelConfig) -> dict[str, Any]:
    """Return the source's ``config.json`` for transformers' own classes."""
    return {key: value for key, value in config.raw.items() if key not in _LOADING_KEYS}


def _with_float16(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with the dtype stated under the old name, and the new one if it is there.

    transformers 5 reads both, older versions the old one only.
    """
    names = ("torch_dtype", "dtype") if "dtype" in values else ("torch_dtype",)
    return {**values, **dict.fromkeys(names, _DTYPE)}


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
    return dump_json(values)


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
    values = _source_vacc_config(config, source)
    return dump_json({**values, "quantization_bit": QUANTIZATION_BIT})


def _source_vacc_config(config: ModelConfig, source: Path) -> dict[str, Any]:
    """Return the source's checked ``config_vacc.json``, or a new one where it has none."""
    path = source / VACC_CONFIG_NAME
    if not path.is_file():
        return vacc_config(config)
    check_vacc_config(source, config)
    return read_vacc_config(path)
