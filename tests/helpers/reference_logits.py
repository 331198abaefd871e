"""The logits of a checkpoint directory by the package's own decoder, for comparing loaders with."""

from __future__ import annotations

from pathlib import Path

import torch

from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.models.config import EMBEDDING, FINAL_NORM, LM_HEAD
from vacc_deploy.reference.decoder import (
    DecoderLayer,
    Positions,
    embed,
    float_reader,
    rms_norm,
    walk_layer,
)


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
