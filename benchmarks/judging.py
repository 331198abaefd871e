"""Compare a deployed directory with its float model on many texts; run the float model once.

The float model's last hidden states and the scores of each directory are stored in a work
directory, under a hash of what they were computed from. Empty it after a change to the arithmetic
of the decoder or of the scores.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vacc_deploy.checkpoint.manifest import read_manifest
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.reference.decoder import DecoderLayer, Positions, embed, float_reader, walk_layer
from vacc_deploy.reference.next_tokens import NextTokenScores, compare_next_tokens

BATCH_TOKENS = 2048


def last_hidden_states(checkpoint: Checkpoint, tokens: torch.Tensor) -> torch.Tensor:
    """Return the states after the last layer, float32 [rows, seq, hidden]."""
    positions = Positions.build(checkpoint.config, tokens.shape[1])
    read, hidden_states = float_reader(checkpoint), embed(checkpoint, tokens)
    for index in range(checkpoint.config.num_hidden_layers):
        layer = DecoderLayer(checkpoint.config, index, positions, read)
        walk_layer(layer, hidden_states, batch_rows=max(1, BATCH_TOKENS // tokens.shape[1]))
    return hidden_states


class Judge:
    """Scores deployed directories of one float model on given texts."""

    def __init__(
        self, reference: Checkpoint, domains: dict[str, torch.Tensor], work_dir: Path
    ) -> None:
        """Prepare to judge; creates the work directory.

        Args:
            reference: the float model.
            domains: the texts, name to token ids int64 [rows, seq].
            work_dir: directory that saves states and scores.
        """
        self.domains, self._reference, self._work_dir = domains, reference, work_dir
        work_dir.mkdir(parents=True, exist_ok=True)

    def score(self, deployed_dir: Path, domain: str) -> NextTokenScores:
        """Return the scores of a deployed directory on one of the texts."""
        key = self._deployed_key(deployed_dir, domain)
        path = self._work_dir / f"scores-{key}"
        if key and path.with_suffix(".json").is_file():
            saved = json.loads(path.with_suffix(".json").read_text("utf-8"))
            vector = torch.from_numpy(np.load(path.with_suffix(".npy")))
            return replace(NextTokenScores(**saved), token_kl=vector)
        scores = self._compute(deployed_dir, domain)
        values = scores.to_dict()
        if key and None not in values.values():
            assert scores.token_kl is not None
            np.save(path.with_suffix(".npy"), scores.token_kl.numpy())
            del values["perplexity_change"]
            path.with_suffix(".json").write_text(json.dumps(values), "utf-8")
        return scores

    def _compute(self, deployed_dir: Path, domain: str) -> NextTokenScores:
        tokens, deployed = self.domains[domain], Checkpoint.open(deployed_dir)
        with torch.inference_mode():
            return compare_next_tokens(
                self._reference,
                self._float_states(domain),
                deployed,
                last_hidden_states(deployed, tokens),
                tokens,
            )

    def _float_states(self, domain: str) -> torch.Tensor:
        path = self._work_dir / f"float-{self._float_key(domain)}.npy"
        if path.is_file():
            return torch.from_numpy(np.load(path))
        hidden_states = last_hidden_states(self._reference, self.domains[domain])
        np.save(path, hidden_states.numpy())
        return hidden_states

    def _float_key(self, domain: str) -> str:
        """Return a digest of the tokens and of the float files' names, sizes and times."""
        digest = hashlib.sha256(self.domains[domain].numpy().tobytes())
        digest.update(str(tuple(self.domains[domain].shape)).encode())
        for name in sorted(self._reference.shards):
            path = (self._reference.directory / name).resolve()
            digest.update(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
        return digest.hexdigest()[:32]

    def _deployed_key(self, deployed_dir: Path, domain: str) -> str | None:
        """Return a digest of the float key and the deployed weights' hashes, None without them."""
        manifest = read_manifest(deployed_dir)
        if manifest is None:
            return None
        digest = hashlib.sha256(self._float_key(domain).encode())
        for name, values in manifest["files"].items():
            if name.endswith(".safetensors"):
                digest.update(f"{name} {values.get('sha256')}\n".encode())
        return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Paired:
    """How the KL of one deployed directory stands to that of another, token by token.

    ``ratio`` compares the means, and ``ratio_standard_error`` is its error (delta method).
    ``difference`` is in nats. Tokens count as independent.
    """

    ratio: float
    ratio_standard_error: float
    difference: float
    difference_standard_error: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; None for a figure that is not finite."""
        return {k: v if math.isfinite(v) else None for k, v in vars(self).items()}


def compare_paired(left: NextTokenScores, right: NextTokenScores) -> Paired:
    """Return how ``left`` stands to ``right``, both on the same tokens."""
    assert left.token_kl is not None and right.token_kl is not None
    ratio = left.mean_kl / right.mean_kl if right.mean_kl else math.nan
    root = math.sqrt(left.num_tokens)
    residual = left.token_kl - ratio * right.token_kl
    difference = left.token_kl - right.token_kl
    return Paired(
        ratio,
        residual.std().item() / root / right.mean_kl if right.mean_kl else math.nan,
        difference.mean().item(),
        difference.std().item() / root,
    )
