"""Compile files for the tests of ``check``, and small directories that they name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from checkpoint_builders import write_checkpoint

from vacc_deploy.check.compile_file import check_compile_file
from vacc_deploy.prepare import prepare
from vacc_deploy.problems.problem import Problem
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize

# The two files that the vendor publishes for R1-Distill, as they stand there.
VENDOR_FP16 = """\
name: DeepSeek-R1-Distill-Qwen-7B-fp16-tp4-1024-2048

frontend:
  checkpoint: /path/to/DeepSeek-R1-Distill-Qwen-7B

  type: huggingface
  shape:
    input_ids: [[1024], [2048]]
  model_kwargs:
    b2s: true
    tp: 4
    model_arch: vacc

backend:
  type: tvm_vacc
  dtype: fp16
  merge_params: true

  compile:
    data_type: 0
    gather_data_vccl_dsp_enable: true

workspace:
  path: ./vacc_deploy
  workers: 4
"""
VENDOR_INT8 = VENDOR_FP16.replace("fp16", "int8").replace(
    "    model_arch: vacc\n", "    model_arch: vacc\n  quantize:\n    type: w8a16_gptq\n"
)
REMOVED = object()


def change(text: str, **changes: Any) -> str:
    """Return the text with values changed; ``__`` separates the keys, ``REMOVED`` takes one out."""
    content = copy.deepcopy(yaml.safe_load(text))
    for path, value in changes.items():
        *parents, last = path.split("__")
        block = content
        for parent in parents:
            block = block.setdefault(parent, {})
        if value is REMOVED:
            del block[last]
        else:
            block[last] = value
    return yaml.safe_dump(content, sort_keys=False)


def check(path: Path, text: str, card: Any = None) -> dict[str, Problem]:
    """Write a compile file, check it, and return its problems by code."""
    path.write_text(text, "utf-8")
    problems = check_compile_file(path, card).problems
    return {problem.rule.code: problem for problem in problems}


def above_notes(problems: dict[str, Problem]) -> list[str]:
    """Return the problems that are more than notes, as code and text."""
    found = (p for p in problems.values() if p.rule.severity != "note")
    return [f"{problem.rule.code} {problem}" for problem in found]


def make_prepared(folder: Path, model_type: str = "qwen2", **options: Any) -> Path:
    """Return a prepared directory below ``folder``."""
    source = write_checkpoint(folder / "source" / "Tiny", model_type=model_type, **options)
    output = folder / "Tiny-vacc"
    return prepare(weights=source, output=output, link_mode="copy").output_dir


def make_quantized(prepared: Path, layout: str) -> Path:
    """Return a rounded directory beside ``prepared``."""
    options = QuantizeOptions("rtn", formats=(layout,))
    output = prepared.with_name(f"Tiny-{layout}")
    return quantize(prepared, options=options, output=output).output_dir
