"""Build, write and read one vamc compile file.

The keys are in ``keys``, the rules in ``rules``. Everything here is a function of its arguments: no
dates, no versions, so the same options give the same bytes.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vacc_deploy.errors import CompileFileError, UsageError, list_problems
from vacc_deploy.formats.layouts import INT8
from vacc_deploy.models.catalog import PLAIN, tensor_parallel_rule
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.outputs.seal import seal_text
from vacc_deploy.outputs.text_file import replace_text
from vacc_deploy.results import format_pairs
from vacc_deploy.vamc.cards import Card, MemoryPlan, plan_memory
from vacc_deploy.vamc.keys import nest
from vacc_deploy.vamc.named import describe_start
from vacc_deploy.vamc.notes import compile_notes
from vacc_deploy.vamc.options import CALIBRATION_LENGTHS, CompileOptions, by_option
from vacc_deploy.vamc.rules import (
    QUANTIZE_TYPE,
    check_compile_file,
    compile_name,
    find_problems,
)
from vacc_deploy.vamc.target import Target
from vacc_deploy.vamc.yaml_text import dump_yaml, load_yaml

_TITLE = "Compile file for vamc, written by vacc-deploy yaml"
# How every file of ours begins, also one that check --fix wrote; it ends with a seal.
FILE_HEAD = "# Compile file for vamc, written by vacc-deploy"
_UNTRIED = "UNTRIED: nobody has compiled int8 codes."
# The vendor: "models of 32B and above". The 32B model has 32.8e9 parameters; others round less.
LARGE_MODEL_PARAMETERS = 30_000_000_000


def build_compile_file(target: Target, options: CompileOptions) -> dict[str, Any]:
    """Return the content of one compile file, the vendor's nested mapping.

    Raises:
        UsageError: options that break rules (lists all of them), a calibration set with fp16 or
            for int8 codes, or int8 codes without ``experimental``.
        CompileFileError: something else breaks a rule, or the directory holds int8 codes of a
            Llama model.
    """
    config = target.config
    dtype = options.dtype or ("int8" if target.layout else "fp16")
    if options.calibration is not None and dtype != "int8":
        raise UsageError("A calibration set is for int8 only. Add --dtype int8 or leave it out.")
    holds_codes = target.layout == INT8
    if holds_codes:
        _check_codes(target, options)
    size, prefill, total = options.tensor_parallel_size, options.prefill, options.total
    # A size below one divides nothing. The rules refuse it, together with what else is wrong.
    is_plain = size < 1 or tensor_parallel_rule(config, size) == PLAIN
    # In the order of the vendor's files, which the written text follows. None leaves a key out.
    content = nest(
        {
            "name": compile_name(target.model_name, dtype, size, prefill, total),
            "frontend.checkpoint": target.checkpoint,
            "frontend.type": "huggingface",
            "frontend.shape.input_ids": [[prefill], [total]],
            "frontend.model_kwargs.b2s": options.optimize == "throughput",
            "frontend.model_kwargs.tp": size,
            "frontend.model_kwargs.model_arch": "vacc",
            "frontend.model_kwargs.align_qkv": None if is_plain else True,
            "frontend.quantize.type": QUANTIZE_TYPE
            if dtype == "int8" and not holds_codes
            else None,
            "backend.type": "tvm_vacc",
            "backend.dtype": dtype,
            "backend.merge_params": True,
            "backend.compile.data_type": 0,  # as in the files of language models
            "backend.compile.gather_data_vccl_dsp_enable": True,
            **(_dataset(*options.calibration) if options.calibration else {}),
            "workspace.path": "./vacc_deploy",
            "workspace.workers": 4,
        }
    )
    return _checked(content, f"The compile file for {target.model_name}", config)


def _check_codes(target: Target, options: CompileOptions) -> None:
    """Refuse int8 codes where vamc cannot take them, or where nobody has asked to try it."""
    advice = (
        "Give the directory that vacc-deploy quantize --format vamc writes (the default format): "
        "vamc quantizes it to the same integers in the published way."
    )
    if target.config.model_type == "llama":
        raise CompileFileError(
            f"{target.checkpoint} holds int8 codes of a Llama model. vamc loads Llama through its "
            f"own code, which cannot read int8 codes (our inference). {advice}"
        )
    if not options.experimental:
        raise UsageError(
            f"{target.checkpoint} holds int8 codes. It is untried whether vamc takes them as they "
            f"are. {advice} To try the codes, add --experimental."
        )
    if options.calibration is not None:
        raise UsageError(
            f"{target.checkpoint} holds int8 codes, which must not be quantized again. Leave "
            "--calibration out."
        )


def _checked(content: dict[str, Any], where: str, config: ModelConfig) -> dict[str, Any]:
    """Return ``content``; refuse broken rules, under the names of the options if they did it."""
    problems = find_problems(content, config)
    by_options = [named for problem in problems if (named := by_option(problem))]
    if problems and len(by_options) == len(problems):
        raise UsageError(
            f"{where} would break rules of vamc:\n{list_problems(by_options, limit=30)}\n"
            "Give other values."
        )
    return check_compile_file(content, where=where, config=config)


def _dataset(name: str, path: str) -> dict[str, Any]:
    return {
        "dataset.type": "huggingface",
        "dataset.name": name,
        "dataset.path": path,
        "dataset.nsamples": 128,
        # The rules refuse other names, together with what else is wrong.
        "dataset.seqlen": CALIBRATION_LENGTHS.get(name, 512),
    }


def dump_compile_file(content: dict[str, Any], *, comments: Sequence[str] = ()) -> str:
    """Return the YAML text: ``comments`` as a head of paragraphs, then the vendor's keys."""
    return "".join(_comment(text) for text in comments) + dump_yaml(content)


def _comment(text: str) -> str:
    # Names come from strangers: a line break of any alphabet would end the comment.
    plain = "".join(char if char.isprintable() else " " for char in " ".join(text.split()))
    hanging = "#   " if plain.startswith("- ") else "# "
    whole: dict[str, Any] = {"break_on_hyphens": False, "break_long_words": False}
    lines = textwrap.wrap(plain, 98, initial_indent="# ", subsequent_indent=hanging, **whole)
    return "\n".join(lines or ["#"]) + "\n"


def load_compile_file(path: Path, *, config: ModelConfig | None = None) -> dict[str, Any]:
    """Read and check a compile file that anyone may have written.

    Raises:
        CompileFileError: the YAML is not plain, or it breaks rules; see ``check_compile_file``.
    """
    return check_compile_file(load_yaml(path), where=str(path), config=config)


def compile_environment(config: ModelConfig) -> dict[str, str]:
    """Return the environment variables that ``vamc compile`` needs for a model of this size."""
    is_large = config.num_parameters() >= LARGE_MODEL_PARAMETERS
    return {"VACC_STACK_SIZE": "256"} if is_large else {}


@dataclass(frozen=True)
class CompileFileResult:
    """One compile file, its text, and what to know about it."""

    content: dict[str, Any]
    text: str
    notes: tuple[str, ...]
    environment: Mapping[str, str]
    memory: MemoryPlan | None = None
    output: Path | None = None
    untried: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the parsed content, not the text."""
        return {
            "file": None if self.output is None else str(self.output),
            "content": self.content,
            "notes": list(self.notes),
            "environment": dict(self.environment),
            "untried": bool(self.untried),
            **({"memory": self.memory.to_dict()} if self.memory else {}),
        }

    def to_text(self) -> str:
        """Return the YAML itself, or a summary when it was written to a file."""
        if self.output is None:
            return self.text.rstrip("\n")
        return format_pairs(
            [
                *([("warning", self.untried)] if self.untried else []),
                ("written", str(self.output)),
                ("name", self.content["name"]),
                ("checkpoint", self.content["frontend"]["checkpoint"]),
                *(self.memory.to_pairs() if self.memory else ()),
                *(("first", f"export {key}={value}") for key, value in self.environment.items()),
                ("compile", f"vamc compile {self.output}"),
                *(("note", note) for note in self.notes),
            ]
        )

    def to_messages(self) -> list[str]:
        """Return what belongs on stderr when the YAML goes to stdout."""
        memory = self.memory.to_pairs() if self.memory else []
        return [
            *([f"warning: {self.untried}"] if self.untried else []),
            *(f"{name}: {value}" for name, value in memory),
            *(f"before compiling: export {k}={v}" for k, v in self.environment.items()),
            *(f"note: {note}" for note in self.notes),
        ]


def make_compile_file(
    target: Target, options: CompileOptions | None = None, *, card: Card | None = None
) -> CompileFileResult:
    """Build the compile file of ``target`` and its text; write nothing.

    Args:
        target: model and directory, from ``find_target`` or ``catalog_target``.
        options: None takes the defaults.
        card: refuse weights that do not fit on this card, and report the memory of a die.

    Raises:
        UsageError, CompileFileError: see ``build_compile_file``.
    """
    config = target.config
    content = build_compile_file(target, options or CompileOptions())
    memory = _fit(content, config, card) if card else None
    notes = (*target.notes, *compile_notes(content, config, target.layout))
    environment = compile_environment(config)
    untried = _UNTRIED if target.layout == INT8 else ""
    text = dump_compile_file(content, comments=_head(content, notes, environment, untried))
    text = seal_text(text)  # --overwrite replaces no file that a user has edited
    return CompileFileResult(content, text, notes, environment, memory, untried=untried)


def _fit(content: dict[str, Any], config: ModelConfig, card: Card) -> MemoryPlan:
    """Return the memory of a die; refuse weights that fill it."""
    frontend, dtype = content["frontend"], content["backend"]["dtype"]
    size = frontend["model_kwargs"]["tp"]
    (prefill,), (total,) = frontend["shape"]["input_ids"]
    lengths = (prefill, total)
    plan = plan_memory(card, config, dtype=dtype, tensor_parallel_size=size, lengths=lengths)
    # A cache that does not fit beside the weights is only reported.
    if not plan.weights_fit:
        figures = format_pairs(plan.to_pairs())
        raise CompileFileError(
            f"The {dtype} weights of {content['name']} do not fit a die of {card.name} at "
            f"tp {size}:\n{figures}\nUse a larger --tp"
            + (" or --dtype int8." if dtype == "fp16" else ".")
        )
    return plan


def _head(
    content: dict[str, Any], notes: tuple[str, ...], environment: Mapping[str, str], untried: str
) -> tuple[str, ...]:
    """Return the comments at the top of the file, one paragraph each."""
    (prefill,), (total,) = content["frontend"]["shape"]["input_ids"]
    size = content["frontend"]["model_kwargs"]["tp"]
    return (
        f"{_TITLE}. {untried}".rstrip(),
        f"Prompts of up to {prefill} tokens, {total} tokens with the answer, on "
        f"{size} die{'s' if size > 1 else ''}.",
        "",
        *(
            f"Before compiling:  export {key}={value}   (the vendor asks for it from 32B upwards)"
            for key, value in environment.items()
        ),
        "Compile:  vamc compile <this file>",
        *(("", *(f"- {note}" for note in notes)) if notes else ()),
    )


def add_start(result: CompileFileResult) -> CompileFileResult:
    """Return ``result`` with a note on where vamc must be started, if that is not plain.

    The note is not part of the file, which says the same wherever it is written.
    """
    note = describe_start(result.content["frontend"]["checkpoint"], result.output)
    return dataclasses.replace(result, notes=(*result.notes, *([note] if note else [])))


def write_compile_file(
    result: CompileFileResult, output: Path, *, overwrite: bool = False
) -> CompileFileResult:
    """Write the text of ``result`` to ``output``, whole or not at all.

    Raises:
        OutputError: the file exists and ``overwrite`` is off, or it is not one of ours or was
            edited; or its directory is missing.
    """
    notes = list(result.notes)
    replace_text(output, result.text, overwrite=overwrite, head=FILE_HEAD, say=notes.append)
    return dataclasses.replace(result, output=output, notes=tuple(notes))
