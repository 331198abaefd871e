"""Mend a compile file where only one value can be meant.

``frontend.checkpoint``, ``tp`` and ``dtype`` are never changed: they are what the user chose.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vacc_deploy.checkpoint.manifest import model_name
from vacc_deploy.errors import CheckpointError, CompileFileError, UnsupportedModelError
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.outputs.seal import seal_text
from vacc_deploy.problems.compile_file import ALIGN_QKV_MISSING, OTHER_KIND, UNKNOWN_KEY
from vacc_deploy.vamc.compile_file import compile_environment, dump_compile_file
from vacc_deploy.vamc.keys import (
    CHECKPOINT,
    DTYPE,
    KEYS,
    LENGTHS,
    MODEL_KWARGS,
    QUANTIZE,
    TP,
    read_keys,
    show_value,
)
from vacc_deploy.vamc.named import Named, find_named, is_named_as_codes, model_of_path, read_model
from vacc_deploy.vamc.options import DTYPES
from vacc_deploy.vamc.rules import (
    QUANTIZE_TYPE,
    compile_name,
    find_problems,
    known_config,
    next_length,
    stated_model,
)
from vacc_deploy.vamc.yaml_text import load_yaml

_TITLE = "Compile file for vamc, written by vacc-deploy check --fix"
_LOST = "The comments of the file before are not in this one."


def fix_compile_file(path: Path) -> tuple[str, list[str]]:
    """Return the text of a compile file with its safe changes, and what was changed.

    The text holds the keys in the order of the published files, and a seal as the command ``yaml``
    writes it. Comments of the file are lost, and the head of the text says so. What is wrong beyond
    the safe changes stays as it is.

    Args:
        path: the compile file; only read.

    Raises:
        CompileFileError: it cannot be read (see ``load_yaml``), is that of no language model, or
            holds a number that cannot be written.
    """
    content = load_yaml(path)
    values, problems = read_keys(content)
    if other := [p for p in problems if not isinstance(content, dict) or p.rule is OTHER_KIND]:
        raise CompileFileError(f"{path} cannot be mended: {other[0]}. {other[0].rule.fix}")
    text = values.get(CHECKPOINT, "").strip()
    named = find_named(values[CHECKPOINT], path.parent) if text else None
    config = _config(named, values.get("name"))
    content, applied = copy.deepcopy(content), list[str]()
    for mend in (_add_missing, _settle_quantization, _round_lengths, _align, _rename):
        mend(content, named, config, applied.append)
    try:
        return _to_text(_in_order(content), applied, config), applied
    except ValueError as err:  # Python writes out no number of thousands of digits
        text = f"{path} cannot be mended: it holds a number of thousands of digits. Correct it."
        raise CompileFileError(text) from err


def _config(named: Named | None, name: str | None) -> ModelConfig | None:
    if named and named.directory:
        try:
            return read_model(named.directory)[0]
        except (CheckpointError, UnsupportedModelError):
            return None
    model = model_of_path(named.text) if named else None
    return known_config(name) or (model.config if model else None)


def _to_text(content: Any, applied: list[str], config: ModelConfig | None) -> str:
    environment = compile_environment(config) if config else {}
    comments = [
        f"{_TITLE}. {_LOST}",
        *(f"- {change}" for change in applied),
        "",
        *(f"Before compiling:  export {key}={value}" for key, value in environment.items()),
        "Compile:  vamc compile <this file>",
    ]
    return seal_text(dump_compile_file(content, comments=comments))


# Each function changes the content in place, and says what it has changed.
_Say = Callable[[str], object]
_Content = dict[str, Any]


def _add_missing(content: _Content, named: Any, config: Any, say: _Say) -> None:
    """Add the keys that every published file has with the same value.

    Not one that stands there misspelt: its value is the user's.
    """
    _, problems = read_keys(content)
    misspelt = tuple(
        f"{problem.where.rpartition('.')[0]}.{problem.expected}.".lstrip(".")
        for problem in problems
        if problem.rule is UNKNOWN_KEY and problem.expected
    )
    for path, key in KEYS.items():
        if key.published is None or f"{path}.".startswith(misspelt):
            continue
        *parents, name = path.split(".")
        block: Any = content
        for parent in parents:
            block = block.setdefault(parent, {}) if isinstance(block, dict) else None
        if isinstance(block, dict) and name not in block:
            block[name] = key.published
            say(f"{path}: was missing, is {show_value(key.published, quote=False)} as published")


def _settle_quantization(
    content: _Content, named: Named | None, config: ModelConfig | None, say: _Say
) -> None:
    """Make ``frontend.quantize`` come with int8, and with int8 only."""
    values, _ = read_keys(content)
    if "frontend" not in values:
        return
    dtype, quantize = values.get(DTYPE), content["frontend"].get("quantize")
    if dtype == "fp16" and quantize is not None:
        del content["frontend"]["quantize"]
        say(f"{QUANTIZE}: removed, since dtype is fp16")
        if content.pop("dataset", None) is not None:
            say("dataset: removed, since only the quantizer reads it")
    elif dtype == "int8" and not _may_hold_codes(named, config):
        if quantize is None:
            quantize = content["frontend"]["quantize"] = {}
        if isinstance(quantize, dict) and "type" not in quantize:
            quantize["type"] = QUANTIZE_TYPE
            say(f"{QUANTIZE}.type: was missing, is {QUANTIZE_TYPE} as in the published int8 files")


def _may_hold_codes(named: Named | None, config: ModelConfig | None) -> bool:
    """Return whether the checkpoint may hold int8 codes, which nothing may quantize again."""
    if named is None or (named.directory and config is None):
        return True
    if named.directory:
        return bool(config and config.quantization_format)
    return is_named_as_codes(named.text)


def _round_lengths(content: _Content, named: Any, config: ModelConfig | None, say: _Say) -> None:
    """Raise lengths to the next multiple of 16, as far as the model's own length allows."""
    values, _ = read_keys(content)
    before = [row[0] for row in values.get(LENGTHS, [])]
    after = [next_length(length) for length in before]
    is_too_long = config is not None and max(after, default=0) > config.max_position_embeddings
    if after != before and min(before) > 0 and not is_too_long:
        content["frontend"]["shape"]["input_ids"] = [[length] for length in after]
        say(f"{LENGTHS}: was {before}, is {after}, the next multiples of 16")


def _align(content: _Content, named: Any, config: ModelConfig | None, say: _Say) -> None:
    """Set ``align_qkv`` where the heads need it."""
    if any(problem.rule is ALIGN_QKV_MISSING for problem in find_problems(content, config)):
        content["frontend"]["model_kwargs"]["align_qkv"] = True
        say(f"{MODEL_KWARGS}.align_qkv: is true, since tp does not divide the heads")


def _rename(content: _Content, named: Named | None, config: Any, say: _Say) -> None:
    """Make the name say what the rest of the file does."""
    values, _ = read_keys(content)
    model = stated_model(values.get("name")) or _name_of(named)
    if not model or values.get(DTYPE) not in DTYPES or not all(p in values for p in (TP, LENGTHS)):
        return
    lengths = [row[0] for row in values[LENGTHS]]
    name = compile_name(model, values[DTYPE], values[TP], *lengths)
    if content.get("name") != name:
        say(f"name: was {show_value(content.get('name'))}, is {name}")
        content["name"] = name


def _name_of(named: Named | None) -> str:
    """Return what the directory's model is called; empty where nothing says it."""
    if named is None:
        return ""
    if model := model_of_path(named.text):
        return model.name
    try:
        return model_name(named.directory) if named.directory else ""
    except CheckpointError:
        return ""


def _in_order(content: Mapping[Any, Any], prefix: str = "") -> dict[Any, Any]:
    """Return the keys in the published order, others behind them, block by block."""
    order = {path: number for number, path in enumerate(KEYS)}
    keys = sorted(content, key=lambda key: order.get(f"{prefix}{key}", len(order)))
    return {
        key: _in_order(content[key], f"{prefix}{key}.")
        if isinstance(content[key], dict) and f"{prefix}{key}" in KEYS
        else content[key]
        for key in keys
    }
