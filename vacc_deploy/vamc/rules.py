"""The rules for the values of a vamc compile file.

A message says who states its rule: the vendor's pages, the vendor's published files, or our own
inference. Nothing here was tried with vamc itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from vacc_deploy.errors import CompileFileError, list_problems
from vacc_deploy.models.catalog import (
    ALIGN_QKV,
    IMPOSSIBLE,
    TENSOR_PARALLEL_SIZES,
    known_model,
    plain_sizes,
    tensor_parallel_rule,
)
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.problems.compile_directory import CODES_AGAIN, CODES_AS_FLOAT16
from vacc_deploy.problems.compile_file import (
    ABOVE_POSITIONS,
    ALIGN_QKV_MISSING,
    DATASET_ALONE,
    INT8_CACHE,
    INT8_WITHOUT_QUANTIZE,
    NAME_DISAGREES,
    NAME_UNUSABLE,
    NO_ROOM,
    ODD_LENGTH,
    QUANTIZE_WITH_FP16,
    TP_IMPOSSIBLE,
    TP_SIZE,
    UNPUBLISHED_VALUE,
    UNUSABLE_VALUE,
)
from vacc_deploy.problems.problem import NOTE, Problem
from vacc_deploy.vamc.keys import (
    DTYPE,
    LENGTHS,
    MODEL_KWARGS,
    QUANTIZE,
    TP,
    read_keys,
    show_value,
)
from vacc_deploy.vamc.options import CALIBRATION_LENGTHS, DTYPES, LENGTH_MULTIPLE

QUANTIZE_TYPE = "w8a16_gptq"
# The name becomes a directory, so the model's part holds no separator and no control character.
_MODEL = r"[^\s/\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{0,199}"
_NAME = re.compile(rf"(?P<model>{_MODEL})-(?:fp16|int8)-tp.*")
_FOLDER = re.compile(rf"(?!\.\.?$){_MODEL}")


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
            Notes are passed over.
    """
    problems = [p for p in find_problems(content, config) if p.rule.severity != NOTE]
    if problems:
        raise CompileFileError(
            f"{where} cannot be given to vamc:\n"
            f"{list_problems(problems, limit=30)}\nCorrect these values."
        )
    result: dict[str, Any] = content
    return result


def find_problems(content: Any, config: ModelConfig | None = None) -> list[Problem]:
    """Return everything that is wrong with a compile file: its keys first, then the rules.

    Args:
        content: the parsed YAML.
        config: the model's configuration; without it, that of the catalogue model which the
            file's ``name`` names. When neither is known, the rules that need it are not applied.
    """
    values, problems = read_keys(content)
    config = config or known_config(values.get("name"))
    problems += [*_check_choices(values), *_check_numbers(values), *_check_lengths(values, config)]
    problems += [*_check_name(values), *_check_quantization(values, config)]
    return problems + list(_check_tensor_parallel(values, config))


def stated_model(name: str | None) -> str:
    """Return the model's part of a file's ``name``; empty where the name has another form."""
    match = _NAME.fullmatch(name or "")
    return match["model"] if match else ""


def known_config(name: str | None) -> ModelConfig | None:
    """Return the configuration of the catalogue model that a file's ``name`` names, or None."""
    model = known_model(stated_model(name))
    return model.config if model else None


# Each rule reads the values by dotted path, and is skipped where one that it needs is absent.


def _check_choices(values: Mapping[str, Any]) -> Iterator[Problem]:
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
            expected, got = " or ".join(str(choice) for choice in choices), show_value(values[path])
            text = f"{path}: got {got}, expected {expected}, {reason}"
            yield UNPUBLISHED_VALUE.broken(text, where=path, got=got, expected=expected)


def _check_numbers(values: Mapping[str, Any]) -> Iterator[Problem]:
    for path in ("dataset.nsamples", "dataset.seqlen", "workspace.workers"):
        # An absent value passes: read_keys has reported it where it is required.
        if (value := values.get(path, 1)) < 1:
            text = f"{path}: got {value}, expected 1 or more"
            yield UNUSABLE_VALUE.broken(text, where=path, got=value, expected="1 or more")
    for path in ("frontend.checkpoint", "dataset.path", "workspace.path"):
        if not values.get(path, "x").strip():
            text = f"{path}: is empty, expected a path"
            yield UNUSABLE_VALUE.broken(text, where=path, expected="a path")


def next_length(length: int) -> int:
    """Return the smallest length that vamc compiles and that is not below ``length``."""
    return max(1, -(-length // LENGTH_MULTIPLE)) * LENGTH_MULTIPLE


def _check_lengths(values: Mapping[str, Any], config: ModelConfig | None) -> Iterator[Problem]:
    path = LENGTHS
    if path not in values:
        return
    (prefill,), (total,) = values[path]
    for name, length in (("prefill", prefill), ("total", total)):
        if length < 1 or length % LENGTH_MULTIPLE:
            near = next_length(length)
            text = (
                f"{path}: {name} length is {length}, expected a positive multiple of "
                f"{LENGTH_MULTIPLE} (the vendor's llm/README); the next one is {near}"
            )
            yield ODD_LENGTH.broken(text, where=path, got=length, expected=near)
    if prefill >= total:
        text = (
            f"{path}: prefill length {prefill} is not below the total length {total}, which "
            "leaves no tokens for an answer (our inference; true of every published file of a "
            "language model)"
        )
        yield NO_ROOM.broken(text, where=path, got=prefill, expected=f"below {total}")
    if config is not None and total > config.max_position_embeddings:
        largest = config.max_position_embeddings // LENGTH_MULTIPLE * LENGTH_MULTIPLE
        below = ", and less for the prefill length" if prefill >= largest else ""
        text = (
            f"{path}: total length {total} is above max_position_embeddings "
            f"{config.max_position_embeddings} of the model's config.json; the most is "
            f"{largest}{below}"
        )
        yield ABOVE_POSITIONS.broken(text, where=path, got=total, expected=f"at most {largest}")


def _check_name(values: Mapping[str, Any]) -> Iterator[Problem]:
    name, dtype = values.get("name"), values.get("backend.dtype")
    size, lengths = values.get(TP), values.get(LENGTHS)
    if name is None or dtype is None or size is None or lengths is None:
        return
    (prefill,), (total,) = lengths
    expected = compile_name(stated_model(name) or "<Model>", dtype, size, prefill, total)
    if name != expected:
        rule = NAME_DISAGREES if _FOLDER.fullmatch(name) else NAME_UNUSABLE
        text = (
            f"name: got {show_value(name)}, expected {expected}: the published files are named "
            "<Model>-<dtype>-tp<N>-<prefill>-<total>, and vamc's output directory is called by it"
        )
        yield rule.broken(text, where="name", got=show_value(name), expected=expected)


def _check_quantization(values: Mapping[str, Any], config: ModelConfig | None) -> Iterator[Problem]:
    dtype, has_quantize = values.get(DTYPE), QUANTIZE in values
    holds_codes = config is not None and config.quantization_bit
    if holds_codes and has_quantize:
        text = (
            f"{QUANTIZE}: given for a checkpoint that holds int8 codes already; they would "
            "be quantized twice (our inference). Remove quantize and dataset"
        )
        yield CODES_AGAIN.broken(text, where=QUANTIZE, expected="no quantize")
    elif dtype == "int8" and not has_quantize and not holds_codes:
        text = (
            f"{DTYPE}: is int8 without {QUANTIZE}; add quantize.type "
            f"{QUANTIZE_TYPE}, as in the vendor's int8 files"
        )
        yield INT8_WITHOUT_QUANTIZE.broken(text, where=DTYPE, got="int8", expected=QUANTIZE_TYPE)
    if dtype == "fp16" and has_quantize:
        text = (
            f"{QUANTIZE}: given with backend.dtype fp16; the vendor's files have it only "
            "with int8. Set dtype int8 or remove quantize"
        )
        yield QUANTIZE_WITH_FP16.broken(text, where=QUANTIZE, expected="no quantize")
    yield from _check_quantize_type(values.get(f"{QUANTIZE}.type", QUANTIZE_TYPE))
    if "dataset" in values and not has_quantize:
        text = f"dataset: given without {QUANTIZE}, which alone reads it (our inference)"
        yield DATASET_ALONE.broken(text, where="dataset")
    if dtype == "fp16" and holds_codes:
        text = (
            f"{DTYPE}: is fp16, but the checkpoint's configuration says quantization_bit "
            f"{holds_codes}: it holds int8 codes. Use int8, or a float checkpoint"
        )
        yield CODES_AS_FLOAT16.broken(text, where=DTYPE, got="fp16", expected="int8")


def _check_quantize_type(kind: str) -> Iterator[Problem]:
    path = f"{QUANTIZE}.type"
    if kind == "w16kv8":
        text = (
            f"{path}: w16kv8 needs a modeling file with an int8 cache; the vendor "
            f"has one for ChatGLM only, none for Qwen or Llama. Use {QUANTIZE_TYPE}"
        )
        yield INT8_CACHE.broken(text, where=path, got=kind, expected=QUANTIZE_TYPE)
    elif kind != QUANTIZE_TYPE:
        got = show_value(kind)
        text = f"{path}: got {got}, expected {QUANTIZE_TYPE}, as in the vendor's int8 files"
        yield UNPUBLISHED_VALUE.broken(text, where=path, got=got, expected=QUANTIZE_TYPE)


def _check_tensor_parallel(
    values: Mapping[str, Any], config: ModelConfig | None
) -> Iterator[Problem]:
    size = values.get(TP)
    if size is None:
        return
    sizes = ", ".join(map(str, TENSOR_PARALLEL_SIZES))
    if size not in TENSOR_PARALLEL_SIZES:
        text = (
            f"{TP}: got {size}, expected one of {sizes} (our inference; the vendor's files use 4 "
            "and 8)"
        )
        yield TP_SIZE.broken(text, where=TP, got=size, expected=f"one of {sizes}")
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
        text = f"{TP}: {size} dies cannot share {shape} (our inference); use {plain}{others}"
        yield TP_IMPOSSIBLE.broken(text, where=TP, got=size, expected=f"{plain}{others}")
    elif rule == ALIGN_QKV and values.get(f"{MODEL_KWARGS}.align_qkv") is not True:
        text = (
            f"{TP}: {size} does not divide {shape} evenly; add align_qkv: true (the vendor's "
            "llm/README allows leaving it off if num_key_value_heads % tp == 0; that both head "
            f"counts matter is our inference), or use {plain}"
        )
        yield ALIGN_QKV_MISSING.broken(text, where=TP, got=size, expected="align_qkv: true")
