"""What several tests of ``quantize`` run it on: tiny checkpoints, random words, options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from checkpoint_builders import read_tensors, write_checkpoint

from vacc_deploy.calibration.rows import CalibrationRows, build_rows
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.datasets.sources import CalibrationSource
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.text.tokenizer import Tokenizer

RTN = QuantizeOptions("rtn", formats=("int8",))
# 2 rows are held out, and 22 x 32 tokens fitted: enough for an input of 160.
SEQ_LEN, NUM_SAMPLES, NUM_HELD_OUT = 32, 24, 2
# Of the fitted rows, those with a float stream: 8 tokens for each of the 64 hidden inputs.
NUM_SHARED = 16
HEADS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "llama": {},
    "qwen3": {},
    "llama-biases": {"attention_bias": True, "mlp_bias": True},
}


def make_source(directory: Path, kind: str = "qwen2", **arguments: Any) -> Path:
    """Write a checkpoint of one of ``HEADS`` and return its directory."""
    overrides = {**HEADS[kind], **arguments.pop("config_overrides", {})}
    return write_checkpoint(
        directory, model_type=kind.split("-")[0], config_overrides=overrides, **arguments
    )


def outlier_tensors(source: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint with large weights where the inputs are small.

    There it pays to cut them: only then does a search of the scales find any but absmax / 127.
    """
    tensors = read_tensors(source)
    for name, tensor in tensors.items():
        if name.endswith("layernorm.weight"):
            tensor[7] = 0.01
        elif name.endswith(("v_proj.weight", "v_proj.bias", "up_proj.weight")):
            tensor[9] *= 0.01
    for name, tensor in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            tensor[:, 7] *= 5
        elif name.endswith(("gate_proj.weight", "up_proj.weight")):
            tensor[::2, 7] *= 5
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[:, 9] *= 5
    return tensors


def write_words(path: Path) -> Path:
    """Write calibration text of 12,000 random words."""
    generator = torch.Generator().manual_seed(9)
    letters = torch.randint(97, 123, (12000, 5), generator=generator).tolist()
    path.write_text("\n".join("".join(map(chr, word)) for word in letters), "utf-8")
    return path


def gptq_options(text: Path, **changes: Any) -> QuantizeOptions:
    """Return options to calibrate on ``text``."""
    values = {
        "num_samples": NUM_SAMPLES,
        "sequence_length": SEQ_LEN,
        "formats": ("int8",),
        **changes,
    }
    return QuantizeOptions("gptq", sources=(CalibrationSource("text", text),), **values)


def calibration_rows(source: Path, options: QuantizeOptions) -> CalibrationRows:
    """Return the rows that a run with these options sees, held-out ones first."""
    return build_rows(
        options.sources,
        Tokenizer.from_dir(source),
        num_samples=options.num_samples,
        sequence_length=options.sequence_length,
        seed=options.seed,
        vocab_size=Checkpoint.open(source).config.vocab_size,
    )


def calibration_tokens(source: Path, options: QuantizeOptions) -> torch.Tensor:
    """Return the tokens [rows, seq] of ``calibration_rows``."""
    return torch.from_numpy(calibration_rows(source, options).tokens)
