"""The rules for the values of a vamc compile file.

A message says who states its rule: the vendor's pages, the vendor's published files, or our own
inference. Nothing here was tried with vamc itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from vacc_deploy.errors import CompileFileError, UnsupportedModelError, list_problems
from vacc_deploy.models.catalog import (
    ALIGN_QKV,
    IMPOSSIBLE,
    TENSOR_PARALLEL_SIZES,
    find_model,
    plain_sizes,
    tensor_parallel_rule,
)
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.vamc.keys import read_keys, show_value
from vacc_deploy.vamc.options import CALIBRATION_LENGTHS, DTYPES

QUANTIZE_TYPE = "w8a16_gptq"
LENGTH_MULTIPLE = 16
# The name becomes a directory, so the model's part holds no separator and no control character.
_MODEL = r"[^\s/\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{0,199}"
_NAME = re.compile(rf"(?P<model>{_MODEL})-(?:fp16|int8)-tp.*")


def compile_name(model_name: str, dtype: str, tensor_parallel_size: int, *lengths: int) -> str:
    """Return the vendor's name, for example ``DeepSeek-R1-Distill-Qwen-7B-fp16-tp4-1024-2048``."""
    return "-".join([model_name, dtype, f"tp{tensor_parallel_size}", *map(str, lengths)])


def check_compile_file(
    content: Any, *, where: str, config: ModelConfig | None = None
) -> dict[str, Any]:
    """Return ``content``, the nested mapping of a compile file, once nothing is wrong with it.

    Args:
        content: the parsed YAML.
        where: the file's name for messages.
        config: see ``find_problems``.

    Raises:
        CompileFileError: unknown or missing keys, wrong types, broken rules; lists all of them.
    """
    problems = find_problems(content, config)
    if problems:
        raise CompileFileError(
            f"{where} cannot be given to vamc:\n"
            f"{list_problems(problems, limit=30)}\nCorrect these values."
        )
    result: dict[str, Any] = content
    return result


def find_problems(content: Any, config: ModelConfig | None = None) -> list[str]:
    """Return everything that is wrong with a compile file: its keys first, then the rules.

    Args:
        content: the parsed YAML.
        config: the model's configuration; without it, that of the catalogue model which the
            file's ``name`` names. When neither is known, the rules that need it are not applied.
    """
    values, problems = read_keys(content)
    config = config or _known_config(values.get("name"))
    problems += [*_check_choices(values), *_check_numbers(values), *_check_lengths(values, config)]
    problems += [*_check_name(values), *_check_quantization(values, config)]
    return problems + list(_check_tensor_parallel(values, config))


# Each rule reads the values by dotted path, and is skipped where one that it needs is absent.


def _known_config(name: str | None) -> ModelConfig | None:
    match = _NAME.fullmatch(name or "")
    try:
        return find_model(match["model"]).config if match else None
    except UnsupportedModelError:
        return None


def _check_choices(values: Mapping[str, Any]) -> Iterator[str]:
    published = "as in every file that the vendor publishes for language models"
    example = "as in the vendor's example and its comments (tools/vamc/vamc_quant.yaml)"
    for path, choices, reason in (
        ("frontend.type", ("huggingface",), published),
        ("frontend.model_kwargs.model_arch", ("vacc",), published),
        ("backend.type", ("tvm_vacc",), published),
        ("backend.dtype", DTYPES, published),
        ("backend.compile.data_type", (0,), published),
        ("dataset.type", ("huggingface",), example),
        ("dataset.name", tuple(CALIBRATION_LENGTHS), example),
    ):
        if path in values and values[path] not in choices:
            expected = " or ".join(str(choice) for choice in choices)
            yield f"{path}: got {show_value(values[path])}, expected {expected}, {reason}"


def _check_numbers(values: Mapping[str, Any]) -> Iterator[str]:
    for path in ("dataset.nsamples", "dataset.seqlen", "workspace.workers"):
        # An absent value passes: read_keys has reported it where it is required.
        if values.get(path, 1) < 1:
            yield f"{path}: got {values[path]}, expected 1 or more"
    for path in ("frontend.checkpoint", "dataset.path", "workspace.path"):
        if not values.get(path, "x").strip():
            yield f"{path}: is empty, expected a path"


def _check_lengths(values: Mapping[str, Any], config: ModelConfig | None) -> Iterator[str]:
    path = "frontend.shape.input_ids"
    if path not in values:
        return
    (prefill,), (total,) = values[path]
    for name, length in (("prefill", prefill), ("total", total)):
        if length < 1 or length % LENGTH_MULTIPLE:
            near = max(1, -(-length // LENGTH_MULTIPLE)) * LENGTH_MULTIPLE
            yield (
                f"{path}: {name} length is {length}, expected a positive multiple of "
                f"{LENGTH_MULTIPLE} (the vendor's llm/README); the next one is {near}"
            )
    if prefill >= total:
        yield (
            f"{path}: prefill length {prefill} is not below the total length {total}, which "
            "leaves no tokens for an answer (our inference; true of every published file of a "
            "language model)"
        )
    if config is not None and total > config.max_position_embeddings:
        largest = config.max_position_embeddings // LENGTH_MULTIPLE * LENGTH_MULTIPLE
        below = ", and less for the prefill length" if prefill >= largest else ""
        yield (
            f"{path}: total length {total} is above max_position_embeddings "
            f"{config.max_position_embeddings} of the model's config.json; the most is "
            f"{largest}{below}"
        )


def _check_name(values: Mapping[str, Any]) -> Iterator[str]:
    name, dtype = values.get("name"), values.get("backend.dtype")
    size, lengths = values.get("frontend.model_kwargs.tp"), values.get("frontend.shape.input_ids")
    if name is None or dtype is None or size is None or lengths is None:
        return
    match = _NAME.fullmatch(name)
    model = match["model"] if match else "<Model>"
    (prefill,), (total,) = lengths
    expected = compile_name(model, dtype, size, prefill, total)
    if name != expected:
        yield (
            f"name: got {show_value(name)}, expected {expected}: the published files are named "
            "<Model>-<dtype>-tp<N>-<prefill>-<total>, and vamc's output directory is called by it"
        )


def _check_quantization(values: Mapping[str, Any], config: ModelConfig | None) -> Iterator[str]:
    dtype, has_quantize = values.get("backend.dtype"), "frontend.quantize" in values
    holds_codes = config is not None and config.quantization_bit
    if holds_codes and has_quantize:
        yield (
            "frontend.quantize: given for a checkpoint that holds int8 codes already; they would "
            "be quantized twice (our inference). Remove quantize and dataset"
        )
    elif dtype == "int8" and not has_quantize and not holds_codes:
        yield (
            "backend.dtype: is int8 without frontend.quantize; add quantize.type "
            f"{QUANTIZE_TYPE}, as in the vendor's int8 files"
        )
    if dtype == "fp16" and has_quantize:
        yield (
            "frontend.quantize: given with backend.dtype fp16; the vendor's files have it only "
            "with int8. Set dtype int8 or remove quantize"
        )
    kind = values.get("frontend.quantize.type", QUANTIZE_TYPE)
    if kind == "w16kv8":
        yield (
            "frontend.quantize.type: w16kv8 needs a modeling file with an int8 cache; the vendor "
            f"has one for ChatGLM only, none for Qwen or Llama. Use {QUANTIZE_TYPE}"
        )
    elif kind != QUANTIZE_TYPE:
        yield (
            f"frontend.quantize.type: got {show_value(kind)}, expected {QUANTIZE_TYPE}, as in the "
            "vendor's int8 files"
        )
    if "dataset" in values and not has_quantize:
        yield "dataset: given without frontend.quantize, which alone reads it (our inference)"
    if dtype == "fp16" and holds_codes:
        yield (
            "backend.dtype: is fp16, but the checkpoint's configuration says quantization_bit "
            f"{holds_codes}: it holds int8 codes. Use int8, or a float checkpoint"
        )


def _check_tensor_parallel(values: Mapping[str, Any], config: ModelConfig | None) -> Iterator[str]:
    path = "frontend.model_kwargs.tp"
    size = values.get(path)
    if size is None:
        return
    if size not in TENSOR_PARALLEL_SIZES:
        yield (
            f"{path}: got {size}, expected one of {', '.join(map(str, TENSOR_PARALLEL_SIZES))} "
            "(our inference; the vendor's files use 4 and 8)"
        )
        return
    if config is None:
        return
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    rule = tensor_parallel_rule(config, size)
    aligned = [s for s in TENSOR_PARALLEL_SIZES if tensor_parallel_rule(config, s) == ALIGN_QKV]
    plain = ", ".join(map(str, plain_sizes(config)))
    shape = (
        f"{heads} attention heads, {kv_heads} key-value heads and intermediate_size "
        f"{config.intermediate_size}"
    )
    if rule == IMPOSSIBLE:
        others = f" (or, with align_qkv, {', '.join(map(str, aligned))})" if aligned else ""
        yield f"{path}: {size} dies cannot share {shape} (our inference); use {plain}{others}"
    elif rule == ALIGN_QKV and values.get("frontend.model_kwargs.align_qkv") is not True:
        yield (
            f"{path}: {size} does not divide {shape} evenly; add align_qkv: true (the vendor's "
            "llm/README allows leaving it off if num_key_value_heads % tp == 0; that both head "
            f"counts matter is our inference), or use {plain}"
        )
