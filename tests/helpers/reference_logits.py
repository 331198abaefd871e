"""Directories in every form, and their logits by the package's own decoder to compare with."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from checkpoint_builders import write_checkpoint
from texts import read_json

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.models.config import EMBEDDING, FINAL_NORM, LM_HEAD
from vacc_deploy.prepare import prepare
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference.decoder import (
    DecoderLayer,
    Positions,
    embed,
    float_reader,
    rms_norm,
    walk_layer,
)


def make_directory(tmp_path, model_type="qwen2", form="prepared", **arguments):
    """Return a directory as it is published (``float``), ``prepared``, and either of them as int8.

    Args:
        tmp_path: where it is made.
        model_type: qwen2 or llama.
        form: ``float``, ``prepared``, ``int8`` or ``prepared-int8``.
        arguments: of ``write_checkpoint``.
    """
    directory = write_checkpoint(tmp_path / "model", model_type=model_type, **arguments)
    if form.startswith("prepared"):
        output = tmp_path / "prepared"
        directory = prepare(weights=directory, output=output, link_mode="copy").output_dir
    if form.endswith("int8"):
        directory = quantize(
            directory, options=QuantizeOptions("rtn", formats=("int8",))
        ).output_dir
    return directory


def edit_json(path, **changes):
    """Set keys of a JSON file; it need not exist."""
    values = read_json(path) if path.is_file() else {}
    path.write_text(json.dumps({**values, **changes}), "utf-8")


def make_tokens(rows=2, seq=21):
    """Return random ids, int64 [rows, seq]."""
    return torch.randint(0, 256, (rows, seq), generator=torch.Generator().manual_seed(4))


def decoder_logits(directory: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Return the float32 logits of all positions, [rows, seq, vocab]; int8 is dequantized."""
    checkpoint = Checkpoint.open(directory)
    config, read = checkpoint.config, float_reader(checkpoint)
    hidden_states = embed(checkpoint, tokens)
    positions = Positions.build(config, tokens.shape[1])
    for index in range(config.num_hidden_layers):
        walk_layer(DecoderLayer(config, index, positions, read), hidden_states, batch_rows=8)
    head = EMBEDDING if config.tie_word_embeddings else LM_HEAD
    return rms_norm(hidden_states, read(FINAL_NORM), config.rms_norm_eps) @ read(head).T
