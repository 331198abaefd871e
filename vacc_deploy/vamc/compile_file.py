"""Build, write and read one vamc compile file.

The rules are in ``compile_rules``. Everything here is a function of its arguments: no dates, no
versions, so the same options give the same bytes.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vacc_deploy.checkpoint import replace_text
from vacc_deploy.errors import CompileFileError, UsageError
from vacc_deploy.models.catalog import PLAIN, TENSOR_PARALLEL_SIZES, tensor_parallel_rule
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.results import format_pairs
from vacc_deploy.vamc.cards import Card, MemoryPlan, plan_memory
from vacc_deploy.vamc.records import (
    Backend,
    CompileFile,
    CompileOptions,
    Dataset,
    Frontend,
    ModelKwargs,
    Quantize,
    SequenceLengths,
    Shape,
    Workspace,
)
from vacc_deploy.vamc.rules import (
    CALIBRATION_LENGTHS,
    LENGTH_MULTIPLE,
    QUANTIZE_TYPE,
    compile_name,
    parse_compile_file,
)
from vacc_deploy.vamc.target import Target
from vacc_deploy.vamc.yaml_text import (
    _Dumper,
    _FlowList,
    load_yaml,
)

WORKSPACE = "./vacc_deploy"
_TITLE = "Compile file for vamc, written by vacc-deploy yaml"
# How every file of ours begins; --overwrite replaces no other.
FILE_HEAD = f"# {_TITLE}"
# The vendor: "models of 32B and above". The 32B model has 32.8e9 parameters; others round less.
LARGE_MODEL_PARAMETERS = 30_000_000_000
STACK_SIZE = {"VACC_STACK_SIZE": "256"}


def build_compile_file(
    config: ModelConfig,
    *,
    model_name: str,
    checkpoint: str,
    dtype: str,
    tensor_parallel_size: int = 4,
    prefill: int = 1024,
    total: int = 2048,
    optimize: str = "throughput",
    calibration: tuple[str, str] | None = None,
    num_calibration_samples: int = 128,
    calibration_sequence_length: int | None = None,
    workspace: str = WORKSPACE,
) -> CompileFile:
    """Return the compile file of one model.

    Args:
        config: the model's configuration.
        model_name: first part of the file's ``name``.
        checkpoint: the prepared directory, written as it is.
        dtype: ``fp16`` or ``int8``.
        tensor_parallel_size: dies that share the model.
        prefill: longest prompt in tokens.
        total: longest prompt with its answer in tokens.
        optimize: ``throughput`` or ``latency``.
        calibration: set name and path for vamc's own quantizer, int8 only.
        num_calibration_samples: rows to take from it.
        calibration_sequence_length: tokens per row; None takes the vendor's for that set.
        workspace: where vamc writes.

    Raises:
        UsageError: a calibration set with fp16.
        CompileFileError: the options break rules (lists all of them), or the directory holds int8
            weights of a Llama model.
    """
    if optimize not in ("throughput", "latency"):
        raise ValueError(f"optimize must be throughput or latency, got {optimize!r}.")
    if calibration is not None and dtype != "int8":
        raise UsageError("A calibration set is for int8 only. Add --dtype int8 or leave it out.")
    _check_int8_directory(config, checkpoint)
    file = CompileFile(
        name=compile_name(model_name, dtype, tensor_parallel_size, prefill, total),
        frontend=Frontend(
            checkpoint=checkpoint,
            type="huggingface",
            shape=Shape(SequenceLengths(prefill, total)),
            model_kwargs=ModelKwargs(
                b2s=optimize == "throughput",
                tp=tensor_parallel_size,
                model_arch="vacc",
                align_qkv=_align_qkv(config, tensor_parallel_size),
            ),
            quantize=Quantize(QUANTIZE_TYPE) if dtype == "int8" else None,
        ),
        backend=Backend("tvm_vacc", dtype, True, CompileOptions(0, True)),
        workspace=Workspace(workspace, 4),
        dataset=_dataset(calibration, num_calibration_samples, calibration_sequence_length),
    )
    where = f"The compile file for {model_name}"
    return parse_compile_file(file.to_mapping(), where=where, config=config)


def _check_int8_directory(config: ModelConfig, checkpoint: str) -> None:
    """Refuse int8 weights that no code on the compiler's side can read."""
    if config.quantization_bit and config.model_type == "llama":
        raise CompileFileError(
            f"{checkpoint} holds int8 weights of a Llama model, which vamc loads through its own "
            "Llama code: that code knows no int8 weights (our inference). Give the prepared float "
            "directory with --dtype int8; vamc quantizes it itself."
        )


def _align_qkv(config: ModelConfig, tensor_parallel_size: int) -> bool | None:
    """Return true where the heads do not divide evenly; elsewhere the key is left out."""
    if tensor_parallel_size < 1:  # refused later, together with the other broken rules
        return None
    return None if tensor_parallel_rule(config, tensor_parallel_size) == PLAIN else True


def _dataset(
    calibration: tuple[str, str] | None, num_samples: int, sequence_length: int | None
) -> Dataset | None:
    if calibration is None:
        return None
    name, path = calibration
    if sequence_length is None:
        sequence_length = CALIBRATION_LENGTHS.get(name, 512)
    return Dataset("huggingface", name, path, num_samples, sequence_length)


def dump_compile_file(file: CompileFile, *, comments: tuple[str, ...] = ()) -> str:
    """Return the YAML text: ``comments`` as a head of paragraphs, then the vendor's keys."""
    values = file.to_mapping()
    shape = values["frontend"]["shape"]
    shape["input_ids"] = _FlowList(shape["input_ids"])
    body = yaml.dump(
        values,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=False,
        allow_unicode=True,
        width=1 << 16,
    )
    return "".join(_comment(text) for text in comments) + body


def _comment(text: str) -> str:
    # Names come from strangers: a line break of any alphabet would end the comment.
    plain = "".join(char if char.isprintable() else " " for char in " ".join(text.split()))
    hanging = "#   " if plain.startswith("- ") else "# "
    lines = textwrap.wrap(
        plain,
        98,
        initial_indent="# ",
        subsequent_indent=hanging,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return "\n".join(lines) + "\n" if lines else "#\n"


def load_compile_file(path: Path, *, config: ModelConfig | None = None) -> CompileFile:
    """Read and check a compile file that anyone may have written.

    Raises:
        CompileFileError: no plain YAML, or it breaks rules; see ``parse_compile_file``.
    """
    return parse_compile_file(load_yaml(path), where=str(path), config=config)


def compile_environment(config: ModelConfig) -> dict[str, str]:
    """Return the environment variables that ``vamc compile`` needs for a model of this size."""
    return dict(STACK_SIZE) if config.num_parameters() >= LARGE_MODEL_PARAMETERS else {}


def compile_notes(file: CompileFile, config: ModelConfig) -> list[str]:
    """Return what a user has to know about ``file``, published and inferred told apart."""
    notes = []
    if file.frontend.model_kwargs.align_qkv:
        notes.append(
            f"align_qkv is set because tp {file.frontend.model_kwargs.tp} does not divide "
            f"{config.num_attention_heads} attention heads and {config.num_key_value_heads} "
            "key-value heads evenly. The vendor's llm/README names this switch; no published file "
            "uses it. A tp that needs none: " + ", ".join(map(str, plain_sizes(config))) + "."
        )
    if config.vocab_size % LENGTH_MULTIPLE:
        notes.append(
            f"The vocabulary of {config.vocab_size} is no multiple of {LENGTH_MULTIPLE}: it needs "
            "vocabulary padding, which the vendor has from vamc 2.3.4 on (llm/tigerbot/README)."
        )
    if file.backend.dtype == "int8" and config.quantization_bit:
        notes.append(
            "The checkpoint holds int8 weights already (quantization_bit 8). That vamc takes them "
            "as they are is our inference, not a statement of the vendor; if its quantize step "
            "runs over the codes, they are quantized twice and silently wrong. Compare the "
            "compiled model's answers with those of vacc-deploy generate. The published way is to "
            "give it the prepared float directory, which it quantizes itself."
        )
    elif file.backend.dtype == "int8":
        notes.append(f"vamc quantizes the float weights itself ({QUANTIZE_TYPE}).")
    if file.dataset is not None:
        notes.append(
            "quantize.device and quantize.calib_args are left to vamc's defaults; the vendor's "
            "one example sets device cuda:5 and calib_args true_sequential: false."
        )
    elif file.backend.dtype == "int8" and not config.quantization_bit:
        notes.append(
            "There is no dataset block, as in the vendor's int8 files; which calibration text vamc "
            "then takes is not published. --calibration NAME=PATH names one."
        )
    return notes


def plain_sizes(config: ModelConfig) -> list[int]:
    """Return the tensor-parallel sizes that divide the heads evenly."""
    return [size for size in TENSOR_PARALLEL_SIZES if tensor_parallel_rule(config, size) == PLAIN]


@dataclass(frozen=True)
class CompileFileResult:
    """One compile file, its text, and what to know about it."""

    file: CompileFile
    text: str
    notes: tuple[str, ...]
    environment: Mapping[str, str]
    memory: MemoryPlan | None = None
    output: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the parsed content, not the text."""
        result: dict[str, Any] = {
            "file": None if self.output is None else str(self.output),
            "content": self.file.to_mapping(),
            "notes": list(self.notes),
            "environment": dict(self.environment),
        }
        if self.memory is not None:
            result["memory"] = self.memory.to_dict()
        return result

    def to_text(self) -> str:
        """Return the YAML itself, or a summary when it was written to a file."""
        if self.output is None:
            return self.text.rstrip("\n")
        pairs = [
            ("written", str(self.output)),
            ("name", self.file.name),
            ("checkpoint", self.file.frontend.checkpoint),
            *(self.memory.to_pairs() if self.memory else ()),
            *(("first", f"export {key}={value}") for key, value in self.environment.items()),
            ("compile", f"vamc compile {self.output}"),
            *(("note", note) for note in self.notes),
        ]
        return format_pairs(pairs)

    def to_messages(self) -> list[str]:
        """Return what belongs on stderr when the YAML goes to stdout."""
        memory = self.memory.to_pairs() if self.memory else []
        return [
            *(f"{name}: {value}" for name, value in memory),
            *(f"before compiling: export {k}={v}" for k, v in self.environment.items()),
            *(f"note: {note}" for note in self.notes),
        ]


def make_compile_file(
    target: Target, *, dtype: str | None = None, card: Card | None = None, **options: Any
) -> CompileFileResult:
    """Build the compile file of ``target`` and its text; write nothing.

    Args:
        target: from ``compile_target``.
        dtype: None takes int8 for a directory of int8 codes, else fp16.
        card: with it, the memory of a die is reckoned and weights that cannot fit are refused.
        options: those of ``build_compile_file``.

    Raises:
        UsageError, CompileFileError: see ``build_compile_file``.
    """
    config = target.config
    dtype = dtype or ("int8" if config.quantization_bit else "fp16")
    file = build_compile_file(
        config, model_name=target.model_name, checkpoint=target.checkpoint, dtype=dtype, **options
    )
    memory = _plan(file, config, card) if card else None
    notes = (*target.notes, *compile_notes(file, config))
    environment = compile_environment(config)
    text = dump_compile_file(file, comments=_head(file, notes, environment))
    return CompileFileResult(file, text, notes, environment, memory)


def _plan(file: CompileFile, config: ModelConfig, card: Card) -> MemoryPlan:
    size = file.frontend.model_kwargs.tp
    plan = plan_memory(
        card,
        config,
        dtype=file.backend.dtype,
        tensor_parallel_size=size,
        num_tokens=file.frontend.shape.input_ids.total,
    )
    if not plan.weights_fit:
        figures = format_pairs(plan.to_pairs())
        raise CompileFileError(
            f"The {file.backend.dtype} weights of {file.name} do not fit a die of {card.name} at "
            f"tp {size}:\n{figures}\nUse a larger --tp"
            + (" or --dtype int8." if file.backend.dtype == "fp16" else ".")
        )
    return plan


def _head(
    file: CompileFile, notes: tuple[str, ...], environment: Mapping[str, str]
) -> tuple[str, ...]:
    lengths, size = file.frontend.shape.input_ids, file.frontend.model_kwargs.tp
    exports = [
        f"Before compiling:  export {key}={value}   (the vendor asks for it from 32B upwards)"
        for key, value in environment.items()
    ]
    return (
        f"{_TITLE}.",
        f"Prompts of up to {lengths.prefill} tokens, {lengths.total} tokens with the answer, on "
        f"{size} die{'s' if size > 1 else ''}.",
        "",
        *exports,
        "Compile:  vamc compile <this file>",
        *(("", *(f"- {note}" for note in notes)) if notes else ()),
    )


def write_compile_file(
    result: CompileFileResult, output: Path, *, overwrite: bool = False
) -> CompileFileResult:
    """Write the text of ``result`` to ``output``, whole or not at all.

    Raises:
        OutputError: the file exists and ``overwrite`` is off or it is not one of ours, or its
            directory is missing.
    """
    replace_text(output, result.text, overwrite=overwrite, head=FILE_HEAD)
    return dataclasses.replace(result, output=output)
