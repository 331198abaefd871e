"""What a directory of each output format holds: the tensors of a linear, and the texts beside them.

``int8`` and ``fp16`` directories are for the vendor's compiler, ``gptq`` and
``compressed-tensors`` for stock loaders. All hold the same codes and the same scales.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from vacc_deploy.assets import SOURCE_FILES
from vacc_deploy.checkpoint.header import DTYPE_BYTES
from vacc_deploy.errors import QuantizationError, UnsupportedModelError, list_problems
from vacc_deploy.layouts import (
    CODES_PER_WORD,
    COMPRESSED_TENSORS,
    FORMATS,
    FP16,
    GPTQ,
    INT8,
    quantization_config,
    stored_linear,
)
from vacc_deploy.model_config import CONFIG_NAME, LAYER_LINEARS, ModelConfig
from vacc_deploy.quantize.int8 import choose_scale, round_to_nearest
from vacc_deploy.quantize.packing import pack_columns, pack_gptq, unpack_columns, unpack_gptq
from vacc_deploy.vacc_config import (
    VACC_CONFIG_NAME,
    check_vacc_config,
    dump_config,
    needs_vacc_config,
    read_vacc_config,
    vacc_config,
)

__all__ = ["COMPRESSED_TENSORS", "FORMATS", "FP16", "GPTQ", "INT8"]

ReadTensor = Callable[[str], torch.Tensor]

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


# ---- tensors ----------------------------------------------------------------------------------


def linear_tensors(
    layout: str, name: str, codes: torch.Tensor, scale: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the stored tensors of one linear, but its bias, which stays as it is.

    Args:
        layout: one of ``FORMATS``.
        name: the linear's full name.
        codes: int8 [out_features, in_features].
        scale: float16 [out_features].

    Raises:
        QuantizationError: the layout cannot hold this linear; names it.
    """
    try:
        tensors = _linear_tensors(layout, codes, scale)
    except QuantizationError as err:
        raise QuantizationError(f"{name}: {err}.") from err
    return {f"{name}.{suffix}": tensor for suffix, tensor in tensors.items()}


def _linear_tensors(
    layout: str, codes: torch.Tensor, scale: torch.Tensor
) -> dict[str, torch.Tensor]:
    if layout == INT8:
        return {"weight": codes, "weight_scale": scale}
    if layout == FP16:
        return {"weight": float16_weight(codes, scale)}
    if layout == COMPRESSED_TENSORS:
        return {
            "weight_packed": pack_columns(codes),
            "weight_scale": scale[:, None].clone(),
            "weight_shape": torch.tensor(codes.shape),
        }
    if layout == GPTQ:
        return pack_gptq(codes, scale)
    raise ValueError(f"unknown format {layout!r}")


def float16_weight(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return code · scale rounded to float16, [out_features, in_features].

    Rounding the result again by absmax / 127, in float16 or in float32, gives back exactly
    ``codes`` in every row that is zero or has a code of ±127.

    Raises:
        QuantizationError: a product is above the largest float16 (a row with weights above 65504).
    """
    # One product a row: looking at every weight would take longer than making them.
    largest = torch.maximum(codes.amax(1).half(), -codes.amin(1).half()) * scale
    if not torch.isfinite(largest).all():
        row = int((~torch.isfinite(largest)).nonzero()[0])
        raise QuantizationError(
            f"row {row} has the scale {float(scale[row]):g}, its weights do not fit float16. Use "
            "another --format"
        )
    return codes.half() * scale[:, None]


def codes_from(
    layout: str, read: ReadTensor, name: str, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes int8 [out, in] and scale float16 [out] of one stored linear.

    Args:
        layout: one of ``FORMATS``.
        read: returns a stored tensor by its full name.
        name: the linear's full name.
        scale: for ``fp16`` only, the scale that the weights were made with. Without it the scale
            is absmax / 127, which is the original one or its neighbour; the codes are the same.

    Raises:
        QuantizationError: the tensors are not of this layout; names the linear.
    """
    try:
        if layout == INT8:
            return read(f"{name}.weight"), read(f"{name}.weight_scale")
        if layout == FP16:
            weight = read(f"{name}.weight")
            scale = choose_scale(weight) if scale is None else scale
            return round_to_nearest(weight, scale), scale
        if layout == COMPRESSED_TENSORS:
            return _codes_from_packed(read, name)
        if layout == GPTQ:
            return unpack_gptq(
                *(read(f"{name}.{suffix}") for suffix in ("qweight", "qzeros", "scales", "g_idx"))
            )
    except QuantizationError as err:
        raise QuantizationError(f"{name}: {err}. Quantize the model again.") from err
    raise ValueError(f"unknown format {layout!r}")


def _codes_from_packed(read: ReadTensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    packed, scale = read(f"{name}.weight_packed"), read(f"{name}.weight_scale")
    out_features, in_features = read(f"{name}.weight_shape").tolist()
    if out_features != packed.shape[0]:
        raise QuantizationError(
            f"weight_shape has {out_features} rows, weight_packed {packed.shape[0]}"
        )
    return unpack_columns(packed, in_features), scale[:, 0].clone()


def stored_linear_bytes(layout: str, out_features: int, in_features: int) -> int:
    """Return the bytes of one linear's tensors in ``layout``, its bias left out."""
    stored = stored_linear(layout, out_features, in_features).values()
    return sum(math.prod(shape) * DTYPE_BYTES[dtype] for shape, dtype in stored)


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
        files = {CONFIG_NAME: dump_config(_with_float16(_plain_config(config)))}
        if needs_vacc_config(config):
            files[VACC_CONFIG_NAME] = dump_config(
                _with_float16(_source_vacc_config(config, source_dir))
            )
        return files
    stated = quantization_config(layout)
    values = {**_with_float16(_plain_config(config)), "quantization_config": stated}
    files = {CONFIG_NAME: dump_config(values)}
    if layout == GPTQ:
        files[GPTQ_CONFIG_NAME] = dump_config(stated)
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
    values = _source_vacc_config(config, source)
    return dump_config({**values, "quantization_bit": QUANTIZATION_BIT})


def _source_vacc_config(config: ModelConfig, source: Path) -> dict[str, Any]:
    """Return the source's checked ``config_vacc.json``, or a new one where it has none."""
    path = source / VACC_CONFIG_NAME
    if not path.is_file():
        return vacc_config(config)
    check_vacc_config(source, config)
    return read_vacc_config(path)


def dump_report(values: Mapping[str, Any]) -> str:
    """Return a report as stable, readable JSON."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
