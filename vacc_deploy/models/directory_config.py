"""The files beside the weights of each layout: one record for each name in ``LAYOUTS``.

``config.json`` is what loaders read, ``config_vacc.json`` what the vendor's compiler reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from vacc_deploy.assets import SOURCE_FILES
from vacc_deploy.errors import UnsupportedModelError, list_problems
from vacc_deploy.formats.layouts import (
    COMPRESSED_TENSORS,
    GGUF,
    GPTQ,
    GPTQ_ONE_GROUP,
    GROUP_SIZE,
    INT8,
    INT_QUANTIZED,
    LAYOUTS,
    VAMC,
)
from vacc_deploy.formats.packing import CODES_PER_WORD
from vacc_deploy.json_files import dump_json
from vacc_deploy.models.catalog import TENSOR_PARALLEL_SIZES
from vacc_deploy.models.config import CONFIG_NAME, LAYER_LINEARS, ModelConfig
from vacc_deploy.models.parse import read_object
from vacc_deploy.models.vacc_config import (
    VACC_CONFIG_NAME,
    check_vacc_config,
    needs_vacc_config,
    vacc_config,
)

Values: TypeAlias = dict[str, Any]

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
_LOADING_KEYS = {
    "auto_map",
    "quantization_config",
    "quantization_bit",
    "attn_implementation",
    "_attn_implementation",
}
# The scales are float16. A loader that follows a bfloat16 config would round them (or, in a vamc
# directory, the weights) to 8 bits: up to a quarter of a step at the largest codes.
_DTYPE = "float16"
_GPTQ_COPY = "quantize_config.json"


def _plain_config(config: ModelConfig) -> Values:
    """Return the ``config.json`` for stock loaders, without keys about loading."""
    return {key: value for key, value in config.raw.items() if key not in _LOADING_KEYS}


def _with_float16(values: Mapping[str, Any]) -> Values:
    # transformers 5 reads both names, older versions the old one only.
    names = ("torch_dtype", "dtype") if "dtype" in values else ("torch_dtype",)
    return {**values, **dict.fromkeys(names, _DTYPE)}


def _float16_config(layout: str, config: ModelConfig) -> Values:
    """Return a ``config.json`` of float16 values that announces the layout where it has a form."""
    stated = LAYOUTS[layout].config
    values = _with_float16(_plain_config(config))
    return values if stated is None else {**values, "quantization_config": stated}


def _int8_config(config: ModelConfig) -> Values:
    """Return the ``config.json`` of an int8 directory, which transformers reads.

    It differs from ``config_vacc.json`` in two points: the guard against stock loaders, and
    ``insert_slice`` false, so that a forward pass returns the logits of every position.
    """
    if needs_vacc_config(config):
        values = vacc_config(config, quantization_bit=8)
        values["insert_slice"] = False
    else:
        values = {key: value for key, value in config.raw.items() if key != "auto_map"}
        values["quantization_bit"] = 8
    values["quantization_config"] = INT8_GUARD
    return values


@dataclass(frozen=True)
class DirectoryConfig:
    """What is written beside the weights of one layout.

    Attributes:
        config: makes the ``config.json`` from the source's configuration.
        vacc_config: makes the ``config_vacc.json`` from the source's; None for layouts that the
            compiler does not read.
        config_copy: another file that repeats the ``quantization_config``, empty without one.
    """

    config: Callable[[ModelConfig], Values]
    vacc_config: Callable[[Mapping[str, Any]], Values] | None = None
    config_copy: str = ""


_DIRECTORY_CONFIGS = {
    INT8: DirectoryConfig(_int8_config, lambda values: {**values, "quantization_bit": 8}),
    VAMC: DirectoryConfig(partial(_float16_config, VAMC), _with_float16),
    **{
        layout: DirectoryConfig(partial(_float16_config, layout), config_copy=_GPTQ_COPY)
        for layout in (GPTQ, GPTQ_ONE_GROUP)
    },
    **{
        layout: DirectoryConfig(partial(_float16_config, layout))
        for layout in (COMPRESSED_TENSORS, GGUF, INT_QUANTIZED)
    },
}


def format_files(layout: str, config: ModelConfig, source_dir: Path) -> dict[str, str]:
    """Return the texts that belong to a layout, file name to content.

    Args:
        layout: a name in ``LAYOUTS``.
        config: configuration of the source.
        source_dir: directory of the source. Its ``config_vacc.json`` is checked against ``config``
            and its values are passed on; without one it is made from ``config``.

    Raises:
        CheckpointError: the source's ``config_vacc.json`` is damaged, or describes another model.
        UnsupportedModelError: it asks for something that is not handled.
    """
    made = _DIRECTORY_CONFIGS[layout]
    files: dict[str, Any] = {CONFIG_NAME: made.config(config)}
    # Llama directories have none: vamc loads them by its own code.
    if made.vacc_config and needs_vacc_config(config):
        files[VACC_CONFIG_NAME] = made.vacc_config(_source_vacc_config(config, source_dir))
    if made.config_copy:
        files[made.config_copy] = LAYOUTS[layout].config
    return {name: dump_json(values) for name, values in files.items()}


def _source_vacc_config(config: ModelConfig, source_dir: Path) -> Values:
    """Return the source's checked ``config_vacc.json``, or a new one where it has none."""
    path = source_dir / VACC_CONFIG_NAME
    if not path.is_file():
        return vacc_config(config)
    check_vacc_config(source_dir, config)
    return read_object(path)


def format_source_files(layout: str, config: ModelConfig) -> tuple[str, ...]:
    """Return which of the package's source files travel with the weights."""
    # Stock loaders run their own classes, and Llama needs none of ours.
    for_compiler = LAYOUTS[layout].for_compiler and needs_vacc_config(config)
    return SOURCE_FILES if for_compiler else ()


def check_format(layout: str, config: ModelConfig) -> None:
    """Refuse a model that a layout cannot hold, before any work.

    Raises:
        UnsupportedModelError: lists the linears.
    """
    record = LAYOUTS[layout]
    shapes = {linear: config.linear_shape(linear) for linear in LAYER_LINEARS}
    odd = [
        f"{linear}: [{rows}, {columns}]"
        for linear, (rows, columns) in shapes.items()
        if rows % record.out_multiple or columns % record.in_multiple
    ]
    if not odd:
        return
    sizes = (("out_features", record.out_multiple), ("in_features", record.in_multiple))
    asked = " and ".join(f"{name} a multiple of {of}" for name, of in sizes if of > 1)
    advice = "Use another --format."
    if layout == GPTQ and all(size % CODES_PER_WORD == 0 for s in shapes.values() for size in s):
        advice = "Give --group-size -1 for one group of all columns, or use another --format."
    raise UnsupportedModelError(
        f"The {layout} layout holds linears [out_features, in_features] with {asked}. These are "
        f"others:\n{list_problems(odd)}\n{advice}"
    )


def tensor_parallel_sizes(config: ModelConfig, *, in_groups: bool = True) -> list[int]:
    """Return the tensor-parallel sizes with which vLLM can split a model.

    A die holds a share of the query heads. Key-value heads divide too, or several dies hold the
    same one. Of o_proj and down_proj a die holds a share of the columns, in groups whole groups.
    Source: vLLM, the sizes that its linears, its attention and its GPTQ method check.

    Args:
        config: the architecture.
        in_groups: for the ``gptq`` layout, in groups of ``GROUP_SIZE`` columns.
    """
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    columns = [config.linear_shape(linear)[1] for linear in ("o_proj", "down_proj")]
    unit = GROUP_SIZE if in_groups else 1
    return [
        size
        for size in TENSOR_PARALLEL_SIZES
        if heads % size == 0
        and (kv_heads % size == 0 or size % kv_heads == 0)
        and all(count // unit % size == 0 for count in columns)
    ]


def layout_notes(layout: str, config: ModelConfig) -> tuple[str, ...]:
    """Return what a user of a directory in ``layout`` should know, a sentence each."""
    if layout == GPTQ:
        o_groups, down_groups = (
            config.linear_shape(linear)[1] // GROUP_SIZE for linear in ("o_proj", "down_proj")
        )
        sizes = ", ".join(map(str, tensor_parallel_sizes(config)))
        return (
            f"vLLM can serve the {layout} directory with tensor parallel {sizes}: each die takes "
            f"whole heads and whole groups of {GROUP_SIZE} columns, of o_proj ({o_groups} groups) "
            f"and of down_proj ({down_groups}).",
        )
    if LAYOUTS[layout].rounds_inputs:
        return (
            f"what loads the {layout} directory rounds the inputs of the linears too, to int8 with "
            "a scale for each token; verify measures it (--activations int8).",
        )
    return ()
