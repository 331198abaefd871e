"""Models whose answer is known."""

from __future__ import annotations

from pathlib import Path

import torch
from reference_logits import make_directory
from tokenizer_builders import EOS_ID


def make_ending(tmp_path: Path, num_tokens: int) -> Path:
    """Write a model that always answers "!" (id 0), or ends at once when ``num_tokens`` is 1."""
    head = torch.zeros(272, 64)
    head[EOS_ID if num_tokens == 1 else 0] = 1.0
    embedding = torch.ones(272, 64)
    embedding[-1] = 2.0  # of no token: an embedding of one value would be refused
    extra = {"lm_head.weight": head, "model.embed_tokens.weight": embedding}
    for layer in range(2):  # which leave the hidden states as they are
        extra[f"model.layers.{layer}.self_attn.o_proj.weight"] = torch.zeros(64, 64)
        extra[f"model.layers.{layer}.mlp.down_proj.weight"] = torch.zeros(64, 160)
    extra["model.norm.weight"] = torch.ones(64)
    return make_directory(tmp_path, extra_tensors={n: t.bfloat16() for n, t in extra.items()})
