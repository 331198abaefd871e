"""``config_vacc.json``: the configuration that vamc reads beside a Qwen2 or Qwen3 checkpoint.

It is the source's own ``config.json`` plus the few keys the compiler wants, never a template's
values. Llama checkpoints need none (the vendor's llm/README).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vacc_deploy.errors import CheckpointError, list_problems, shorten
from vacc_deploy.formats.layouts import INT8, LAYOUTS, VAMC
from vacc_deploy.models.config import CONFIG_NAME, ModelConfig
from vacc_deploy.models.parse import parse_config, read_object
from vacc_deploy.models.rope import YARN, RopeScaling, rope_values
from vacc_deploy.problems.configuration import (
    ATTENTION_KEY,
    QUANTIZATION_BIT,
    SLIDING_WINDOW,
    VACC_CONFIG_KEY,
    VACC_CONFIG_OTHER,
    VACC_CONFIG_VALUE,
)
from vacc_deploy.problems.problem import Problem, Rule

VACC_CONFIG_NAME = "config_vacc.json"
AUTO_MAP = {
    "AutoConfig": "configuration_qwen2_vacc.Qwen2Config",
    "AutoModel": "modeling_qwen2_vacc.Qwen2Model",
    "AutoModelForCausalLM": "modeling_qwen2_vacc.Qwen2ForCausalLM",
}


def needs_vacc_config(config: ModelConfig) -> bool:
    """Return whether vamc wants a ``config_vacc.json`` for this architecture."""
    return config.model_type != "llama"


def vacc_config(config: ModelConfig, *, quantization_bit: int = 0) -> dict[str, Any]:
    """Return the content of ``config_vacc.json`` for the checkpoint that ``config`` was read from.

    Args:
        config: configuration of the checkpoint; its ``raw`` values are copied, never changed.
        quantization_bit: 8 for a directory of int8 codes, else 0.

    Raises:
        ValueError: a Llama configuration.
    """
    if not needs_vacc_config(config):
        raise ValueError(f"A {config.model_type} checkpoint needs no {VACC_CONFIG_NAME}.")
    values: dict[str, Any] = copy.deepcopy(dict(config.raw))
    # The guard of an int8 directory's config.json; the caller says the bits.
    for key in ("quantization_config", "quantization_bit"):
        values.pop(key, None)
    if values.get("use_sliding_window") is not True:
        # The eager path of transformers 4.37 masks by sliding_window without looking at
        # use_sliding_window, and an absent key means 4096 there.
        values["sliding_window"] = None
    if config.model_type == "qwen3":
        # Its class's default, which a file may leave out, is not that of ours.
        values["head_dim"] = config.head_dim
    _write_old_names(values, config)
    if config.rope_scaling is not None and config.rope_scaling.rope_type == YARN:
        # Every number is written out: runtimes do not agree on what an absent one means.
        if values.get("rope_theta") is None:  # the rule may have held it
            values["rope_theta"] = config.rope_theta
        values["rope_scaling"] = rope_values(config.rope_scaling)
    values["auto_map"] = dict(AUTO_MAP)
    values["_attn_implementation"] = "eager"
    # The prefill graph then ends in the logits of the last position alone.
    values["insert_slice"] = True
    if quantization_bit:
        values["quantization_bit"] = quantization_bit
    return values


def find_vacc_problems(directory: Path, config: ModelConfig) -> list[Problem]:
    """Return where ``config_vacc.json`` describes another model than ``config.json``.

    It is the one configuration that vamc reads. Keys that neither the architecture nor the compiler
    depends on may differ. A directory without the file, and a Llama directory, have no problem.

    Args:
        directory: a checkpoint directory.
        config: its ``config.json``.

    Raises:
        CheckpointError: the file is damaged.
        UnsupportedModelError: the file asks for something that is not handled.
    """
    path = directory / VACC_CONFIG_NAME
    if not needs_vacc_config(config) or not path.is_file():
        return []
    values = read_object(path)
    differences = parse_config(values, where=str(path)).differences(config)
    problems = {name: _other_value(name, mine, its) for name, (mine, its) in differences.items()}
    # Of these the configuration class takes a null for the value, where config.json's is settled.
    for key in ("rms_norm_eps", "max_position_embeddings", "max_window_layers"):
        if values.get(key, key) is None:
            problems[key] = VACC_CONFIG_VALUE.broken(
                f"{key}: got null, expected a number",
                where=f"{VACC_CONFIG_NAME}: {key}",
                got="null",
                expected="a number",
            )
    # A server that stops at another token never ends an answer.
    for key in ("bos_token_id", "eos_token_id"):
        if key in config.raw and values.get(key) != config.raw[key]:
            problems[key] = _other_value(key, values.get(key), config.raw[key])
    for key, problem in _find_wrong_settings(values, config):
        problems.setdefault(key, problem)
    return list(problems.values())


def _other_value(key: str, got: Any, expected: Any, rule: Rule = VACC_CONFIG_VALUE) -> Problem:
    shown, wanted = _show(got), _show(expected)
    name = shorten(key)  # an unknown one is a stranger's text
    text = f"{name}: got {shown}, {CONFIG_NAME} has {wanted}"
    return rule.broken(text, where=f"{VACC_CONFIG_NAME}: {name}", got=shown, expected=wanted)


def _show(value: Any) -> str:
    if isinstance(value, RopeScaling):
        value = rope_values(value)
    return "nothing" if value is None else f"{value!r:.200}"


def find_other_keys(directory: Path, config: ModelConfig) -> list[Problem]:
    """Return the keys of ``config_vacc.json`` on which nothing depends and that differ.

    See ``find_vacc_problems`` for the arguments and errors.
    """
    path = directory / VACC_CONFIG_NAME
    if not needs_vacc_config(config) or not path.is_file():
        return []
    values = read_object(path)
    expected = vacc_config(config, quantization_bit=config.quantization_bit)
    known = {problem.where.rpartition(" ")[2] for problem in find_vacc_problems(directory, config)}
    return [
        _other_value(key, values.get(key), expected.get(key), VACC_CONFIG_OTHER)
        for key in sorted({*values, *expected} - known)
        if values.get(key) != expected.get(key)
    ]


def _find_wrong_settings(
    values: Mapping[str, Any], config: ModelConfig
) -> Iterator[tuple[str, Problem]]:
    """Yield the keys that the compiler depends on and that say something else than ours do."""
    expected = vacc_config(config, quantization_bit=config.quantization_bit)
    rules = {
        "auto_map": VACC_CONFIG_KEY,
        "_attn_implementation": ATTENTION_KEY,
        "insert_slice": VACC_CONFIG_KEY,
        "sliding_window": SLIDING_WINDOW,
        "quantization_bit": QUANTIZATION_BIT,
    }
    if config.sliding_window is not None:
        rules["max_window_layers"] = SLIDING_WINDOW
    for key, rule in rules.items():
        # An absent key is its class's default, not None: 4096 for sliding_window.
        is_stated = key in values or key not in expected
        if is_stated and values.get(key) == expected.get(key):
            continue
        got = f"{values[key]!r:.200}" if key in values else "nothing"
        wanted = f"{expected.get(key)!r:.200}"
        text = f"{key}: got {got}, expected {wanted}"
        if key == "_attn_implementation" and "attn_implementation" in values:
            text += ". The file has attn_implementation, without the leading underscore"
        where = f"{VACC_CONFIG_NAME}: {key}"
        yield key, rule.broken(text, where=where, got=got, expected=wanted)


# Sizes of the vendor's template, which are those of Qwen1.5-14B.
_TEMPLATE = {
    "hidden_size": 5120,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_key_value_heads": 40,
}


def is_template(values: Mapping[str, Any], config: ModelConfig) -> bool:
    """Return whether a ``config_vacc.json`` is the vendor's template, and not of this model."""
    is_same = all(values.get(key) == value for key, value in _TEMPLATE.items())
    return is_same and any(getattr(config, key) != value for key, value in _TEMPLATE.items())


def check_vacc_config(directory: Path, config: ModelConfig) -> None:
    """Refuse a ``config_vacc.json`` that describes another model; see ``find_vacc_problems``.

    Raises:
        CheckpointError: lists every value that differs; or the file is damaged.
        UnsupportedModelError: the file asks for something that is not handled.
    """
    if problems := find_vacc_problems(directory, config):
        raise CheckpointError(
            f"{directory / VACC_CONFIG_NAME} is not what vacc-deploy writes for this model, and "
            f"vamc would compile what it says:\n{list_problems(problems)}\n"
            "Prepare the directory again.",
            problems,
        )


def ways_to_the_card(config: ModelConfig) -> str:
    """Return which ways a model can take to the card, where not all of them are open; else empty.

    That vamc cannot read int8 codes of a Llama model is our inference.
    """
    if needs_vacc_config(config):
        return ""
    return (
        "a Llama model reaches the card as float16 (vacc-deploy yaml on the prepared directory) or "
        f"as int8 (vacc-deploy quantize with --format {VAMC}, the default, then yaml on that "
        f"directory). vamc cannot read the int8 codes that --format {INT8} writes."
    )


def check_for_compiler(directory: Path, config: ModelConfig) -> None:
    """Refuse a directory in a layout that is for stock loaders.

    Raises:
        CheckpointError: says which directory to give instead.
    """
    layout = config.quantization_format
    if layout and not LAYOUTS[layout].for_compiler:
        raise CheckpointError(
            f"{directory} holds weights in the {layout} layout ({LAYOUTS[layout].purpose}); the "
            "compiler's side reads vamc and prepared directories. Give the vamc directory of the "
            "same run of quantize, or the prepared directory."
        )


def _write_old_names(values: dict[str, Any], config: ModelConfig) -> None:
    """Repeat what transformers 5 writes under new names under those that 4.x reads."""
    parameters = values.get("rope_parameters")
    if parameters:
        if values.get("rope_theta") is None:
            values["rope_theta"] = parameters.get("rope_theta", config.rope_theta)
        if config.rope_scaling is not None and values.get("rope_scaling") is None:
            scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
            values["rope_scaling"] = scaling
    if values.get("dtype") is not None and values.get("torch_dtype") is None:
        values["torch_dtype"] = values["dtype"]
