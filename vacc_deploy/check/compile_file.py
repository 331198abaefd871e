"""Every problem of a compile file: alone, against the directory that it names, and of the card."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vacc_deploy.check.named_checkpoint import find_place_problems, find_workspace_problems
from vacc_deploy.checkpoint.manifest import model_name, read_manifest
from vacc_deploy.errors import CheckpointError, CompileFileError, UnsupportedModelError, shorten
from vacc_deploy.formats.layouts import INT8, LAYOUTS
from vacc_deploy.models.catalog import OFFICIAL, TENSOR_PARALLEL_SIZES, known_model
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.permissions import explain_unreadable
from vacc_deploy.problems.card import CARD_NOT_CHECKED, TOO_TIGHT, WEIGHTS_DO_NOT_FIT
from vacc_deploy.problems.compile_directory import (
    CODES_OF_LLAMA,
    NO_MODEL,
    OTHER_MODEL,
    OTHER_PROGRAMS,
)
from vacc_deploy.problems.compile_file import (
    INT8_WITHOUT_QUANTIZE,
    NO_DEVICE,
    OTHER_KIND,
    SHORT_ANSWERS,
    STACK_SIZE,
    STACK_SIZE_VALUE,
    UNREADABLE_YAML,
)
from vacc_deploy.problems.problem import Problem, Rule
from vacc_deploy.results import format_bytes
from vacc_deploy.stamps import describe_odd
from vacc_deploy.vamc.cards import Card, MemoryPlan, plan_memory
from vacc_deploy.vamc.compile_file import compile_environment
from vacc_deploy.vamc.keys import CHECKPOINT, DTYPE, LENGTHS, QUANTIZE, TP, read_keys
from vacc_deploy.vamc.named import (
    Named,
    find_named,
    is_named_as_codes,
    model_of_path,
    read_model,
)
from vacc_deploy.vamc.notes import compile_notes
from vacc_deploy.vamc.options import DTYPES
from vacc_deploy.vamc.rules import find_problems, known_config, stated_model
from vacc_deploy.vamc.yaml_text import key_lines, parse_yaml, read_text

# What the vendor's evaluation of reasoning models asks for (tools/evalscope/precision_llm.py).
_ANSWER_TOKENS = 16384
# These are told by the checks of the directory too.
_OF_DIRECTORIES = "VD2"


@dataclass(frozen=True)
class CheckedCompileFile:
    """A compile file that was checked.

    Attributes:
        problems: each with the line of its key, as far as there is one.
        directory: what the file names; None where it is not here.
        memory: of a die of the card; None without a card, or where it cannot be calculated.
    """

    problems: list[Problem]
    directory: Path | None = None
    memory: MemoryPlan | None = None


def check_compile_file(path: Path, card: Card | None = None) -> CheckedCompileFile:
    """Return every problem of a compile file of anybody.

    The directory that the file names is looked at as far as the file speaks of it: whether it is
    there, its ``config.json`` and its layout. Its other files are for ``check_directory``.

    Args:
        path: the compile file; where it cannot be read, that is the one problem.
        card: the card that the model is for; None leaves memory out.
    """
    if odd := describe_odd(path):  # a pipe, for which a user of other commands may have a use
        text = f"{path} is {odd}, not a file, and is not read"
        return CheckedCompileFile([UNREADABLE_YAML.broken(text)])
    try:
        text = read_text(path)
        content = parse_yaml(text, where=str(path))
    except CompileFileError as err:
        return CheckedCompileFile([UNREADABLE_YAML.broken(str(err))])
    checked = _check(content, path, card)
    lines = key_lines(text)
    for problem in checked.problems:
        near = problem.where
        while near and near not in lines:  # of a missing key: the block that lacks it
            near = near.rpartition(".")[0]
        problem.line = lines.get(near, 0)
    return checked


def _check(content: Any, path: Path, card: Card | None) -> CheckedCompileFile:
    values, problems = read_keys(content)
    if any(problem.rule is OTHER_KIND for problem in problems):
        return CheckedCompileFile(problems)
    text = values.get(CHECKPOINT, "")
    named = find_named(text, path.parent) if text.strip() else None
    config, layout, around = _look_around(named, values) if named else (None, None, [])
    is_here = config is not None
    if config is None:
        model = model_of_path(text) if named else None
        config = known_config(values.get("name")) or (model.config if model else None)
    problems = [*find_problems(content, config), *around]
    if not is_here and is_named_as_codes(text) and QUANTIZE not in values:
        # As yaml --experimental writes it: codes are not quantized again.
        layout = INT8
        problems = [problem for problem in problems if problem.rule is not INT8_WITHOUT_QUANTIZE]
    if config is not None:
        notes = compile_notes(content, config, layout)
        problems += [n for n in notes if not (is_here and n.rule.code.startswith(_OF_DIRECTORIES))]
        problems += _check_environment(config)
    problems += _find_notes(values, problems)
    of_card, plan = _check_card(values, config, card) if card else ([], None)
    directory = named.directory if named else None
    return CheckedCompileFile(problems + of_card, directory, plan)


def _look_around(
    named: Named, values: Mapping[str, Any]
) -> tuple[ModelConfig | None, str | None, list[Problem]]:
    """Return the configuration of the directory and its layout, as far as it is here and usable."""
    config, layout, problems = None, None, list(find_place_problems(named))
    if named.directory is not None:
        problems += find_workspace_problems(values)
        try:
            config, layout = read_model(named.directory)
        except (CheckpointError, UnsupportedModelError) as err:
            problems.append(NO_MODEL.broken(str(err), where=CHECKPOINT, got=named.text[:300]))
        except OSError as err:  # closed to us
            text = explain_unreadable(named.directory, err).removesuffix(".")
            problems.append(NO_MODEL.broken(text, where=CHECKPOINT, got=named.text[:300]))
    if config is not None and layout and (reason := _why_refused(config, layout)):
        rule, text = reason
        text = f"{CHECKPOINT}: {named.directory} holds {text}"
        problems.append(rule.broken(text, where=CHECKPOINT, got=layout))
        layout = None  # what is said of layouts that vamc takes does not hold
    return config, layout, [*problems, *_compare_names(values, named, config)]


def _why_refused(config: ModelConfig, layout: str) -> tuple[Rule, str] | None:
    """Return why vamc cannot take weights of a layout: the rule, and what they are."""
    if not LAYOUTS[layout].for_compiler:
        reads = "vamc reads prepared directories and those of the format vamc"
        return OTHER_PROGRAMS, f"{LAYOUTS[layout].purpose}; {reads}"
    if layout == INT8 and config.model_type == "llama":
        own = "vamc loads Llama through its own code, which cannot read them (our inference)"
        return CODES_OF_LLAMA, f"int8 codes of a Llama model; {own}"
    return None


def _compare_names(
    values: Mapping[str, Any], named: Named, config: ModelConfig | None
) -> Iterator[Problem]:
    """Compare the model of ``name`` with that of the checkpoint, as far as both are known."""
    stated = stated_model(values.get("name"))
    if not stated:
        return
    model, directory = known_model(stated), named.directory
    if model and config and (fields := model.differences(config)):
        reasons = "; ".join(model.difference(config, field) for field in fields[:3])
        text = f"name: says {stated}, but config.json of {directory} is another model's: {reasons}"
    elif directory is None or config is None:
        other = model_of_path(named.text)
        if other is None or other is model:
            return
        text = f"name: says {stated}, but {CHECKPOINT} is {named.text}"
    else:
        actual = _manifest_name(directory)
        is_same = actual.lower() == stated.lower() or (model and known_model(actual) is model)
        if not actual or is_same:
            return
        text = f"name: says {stated}, but the manifest of {directory} says {actual}"
    yield OTHER_MODEL.broken(text, where="name", got=stated)


def _manifest_name(directory: Path) -> str:
    """Return the model's name as the manifest has it; empty where no manifest says it."""
    try:
        return model_name(directory) if read_manifest(directory) else ""
    except CheckpointError:
        return ""


def _check_environment(config: ModelConfig) -> Iterator[Problem]:
    for name, expected in compile_environment(config).items():
        got = os.environ.get(name)
        size = f"this model has {config.num_parameters() / 1e9:.1f} billion parameters"
        asks = f"the vendor asks for {expected} from 32B upwards, and {size}"
        if got is None:
            text = f"{name} is not set here; {asks}"
            yield STACK_SIZE.broken(text, where=CHECKPOINT, expected=f"{name}={expected}")
        elif got != expected:
            shown = shorten(got)
            text = f"{name} is {shown} here; {asks}"
            yield STACK_SIZE_VALUE.broken(text, where=CHECKPOINT, got=shown, expected=expected)


def _find_notes(values: Mapping[str, Any], told: list[Problem]) -> Iterator[Problem]:
    """Return what is worth knowing of the lengths and of vamc's quantizer."""
    stated = stated_model(values.get("name"))
    model = known_model(stated)
    if LENGTHS in values and ("R1" in stated or (model and model.group == OFFICIAL)):
        (prefill,), (total,) = values[LENGTHS]
        if 0 < total - prefill < _ANSWER_TOKENS:
            text = (
                f"{LENGTHS}: a total of {total} tokens leaves {total - prefill} for the answer to "
                f"the longest prompt. The vendor's evaluation asks R1 for {_ANSWER_TOKENS} "
                "(tools/evalscope), and longer answers need another compilation"
            )
            yield SHORT_ANSWERS.broken(text, where=LENGTHS, got=total)
    is_told = any(problem.rule is NO_DEVICE for problem in told)
    if QUANTIZE in values and f"{QUANTIZE}.device" not in values and not is_told:
        text = (
            f"{QUANTIZE}: names no device. The vendor's one example with a calibration set "
            "quantizes on cuda:5 (tools/vamc/vamc_quant.yaml)"
        )
        yield NO_DEVICE.broken(text, where=QUANTIZE)


def _check_card(
    values: Mapping[str, Any], config: ModelConfig | None, card: Card
) -> tuple[list[Problem], MemoryPlan | None]:
    (prefill,), (total,) = values.get(LENGTHS, [[0], [0]])
    dtype, size = values.get(DTYPE, ""), values.get(TP, 0)
    is_usable = dtype in DTYPES and size in TENSOR_PARALLEL_SIZES and min(prefill, total) > 0
    if config is None or not is_usable:
        reason = "the model is not known here" if is_usable else "dtype, tp or lengths are unusable"
        text = f"The memory of {card.name} was not checked: {reason}"
        return [CARD_NOT_CHECKED.broken(text, where=CHECKPOINT)], None
    lengths = (prefill, total)
    plan = plan_memory(card, config, dtype=dtype, tensor_parallel_size=size, lengths=lengths)
    weights, memory = (
        format_bytes(each) for each in (plan.weight_bytes_per_die, card.die_memory_bytes)
    )
    if not plan.weights_fit:
        text = (
            f"{TP}: the {dtype} weights take {weights} of each of {size} dies; a die of "
            f"{card.name} has {memory}"
        )
        return [WEIGHTS_DO_NOT_FIT.broken(text, where=TP, got=size)], plan
    if plan.fits:
        return [], plan
    longest = plan.longest_total
    most = f"the largest total length is {longest}" if longest else "no longer answer fits"
    text = (
        f"{LENGTHS}: weights of {weights}, {format_bytes(plan.kv_bytes_per_die)} of cache and "
        f"about {format_bytes(plan.activation_bytes_per_die)} of activations do not fit a die of "
        f"{card.name}, which has {memory}; {most}"
    )
    return [TOO_TIGHT.broken(text, where=LENGTHS, got=total, expected=longest or "")], plan
