"""Compare a deployed checkpoint with its float model on the same tokens.

Walks both layer by layer: one stage of one of them is in memory at a time, whatever the model's
size. All arithmetic is float32; the inputs of the deployed linears may be rounded as int8 runtimes
round them. ``verify`` brings the text and judges the result.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from vacc_deploy.checkpoint.fingerprint import fingerprint_file
from vacc_deploy.checkpoint.manifest import stored_layout
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError, list_problems
from vacc_deploy.models.rope import with_attention_factor_of
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.reference.activations import FLOAT, INT8, RoundedLayer, RoundingError
from vacc_deploy.reference.decoder import (
    DOWN,
    DecoderLayer,
    Positions,
    embed,
    float_reader,
    walk_layer,
)
from vacc_deploy.reference.next_tokens import NextTokenScores, compare_next_tokens
from vacc_deploy.reference.ranges import RESIDUAL, ActivationRange
from vacc_deploy.reference.watch import RangeTally, WatchedLayer, WatchedRoundedLayer

# Tokens in a stage at a time: the gate of a 7B model, float32 [2048, 18944], takes 155 MB.
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class LayerError:
    """How far the deployed hidden states are from the float ones after a layer.

    Attributes:
        layer: index of the layer.
        relative_error: ‖h' − h‖ / ‖h‖ over all tokens.
        sqnr_db: the same figure as a signal-to-noise ratio in decibels.
    """

    layer: int
    relative_error: float
    sqnr_db: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; an infinite figure (the SQNR of equal states) is None."""
        values = asdict(self)
        return {key: value if math.isfinite(value) else None for key, value in values.items()}


class Comparison(NamedTuple):
    """What a comparison found.

    Attributes:
        scores: of the predictions.
        layers: one error for each layer.
        rounding: of each linear what rounding its inputs changed; empty where none was rounded.
        ranges: the sizes of the deployed model's activations; empty where they were not asked for.
    """

    scores: NextTokenScores
    layers: list[LayerError]
    rounding: list[RoundingError]
    ranges: list[ActivationRange]


def compare_on_tokens(
    reference: Checkpoint,
    deployed: Checkpoint,
    tokens: torch.Tensor,
    progress: Progress = SILENT,
    *,
    activations: str = FLOAT,
    audit: bool = False,
) -> Comparison:
    """Return the scores and every layer's error of two checkpoints on token windows.

    Args:
        reference: the float checkpoint.
        deployed: the deployed checkpoint; ``check_pair`` says whether the two fit.
        tokens: int64 [rows, seq].
        progress: learns of every layer, then of every slice of the vocabulary.
        activations: ``int8`` to round the inputs of the deployed model's linears.
        audit: whether to measure the sizes of the deployed model's activations too.
    """
    tally = RangeTally() if audit else None
    with torch.inference_mode():
        # Both float32 [rows, seq, hidden]; walk_layer overwrites them, layer after layer.
        float_states, deployed_states = embed(reference, tokens), embed(deployed, tokens)
        # A table for each: their attention factors may differ.
        length = tokens.shape[1]
        walks = [
            (kind, model, Positions.build(model.config, length), float_reader(model), states)
            for kind, model, states in (
                (DecoderLayer, reference, float_states),
                (_layer_kind(activations, tally), deployed, deployed_states),
            )
        ]
        layers, rounding = [], list[RoundingError]()
        progress.start("Verifying", reference.config.num_hidden_layers, "layers")
        for index in range(reference.config.num_hidden_layers):
            # In step, a layer of one and then of the other: only the current states are held.
            for kind, model, positions, read, hidden_states in walks:
                layer = kind(model.config, index, positions, read)
                batch_rows = max(1, BATCH_TOKENS // length)
                walk_layer(layer, hidden_states, batch_rows=batch_rows)  # in place
                if isinstance(layer, RoundedLayer):
                    rounding += layer.errors()
            if tally:
                tally.see(index, DOWN, RESIDUAL, deployed_states)
            layers.append(_layer_error(index, float_states, deployed_states))
            sqnr = layers[-1].sqnr_db
            is_equal = math.isinf(sqnr)
            progress.advance(1, f"layer {index}: {'equal' if is_equal else f'SQNR {sqnr:.1f} dB'}")
        progress.finish()
        scores = compare_next_tokens(
            reference,
            float_states,
            deployed,
            deployed_states,
            tokens,
            progress=progress,
            tally=tally,
        )
    return Comparison(scores, layers, rounding, tally.ranges() if tally else [])


def _layer_kind(activations: str, tally: RangeTally | None) -> Callable[..., DecoderLayer]:
    """Return what makes the layers of the deployed model."""
    is_rounded = activations == INT8
    if tally is None:
        return RoundedLayer if is_rounded else DecoderLayer
    return partial(WatchedRoundedLayer if is_rounded else WatchedLayer, tally=tally)


def check_pair(reference: Checkpoint, deployed: Checkpoint) -> None:
    """Refuse a reference that is quantized or another architecture.

    Attention factors of yarn may differ: how much that changes is what may be asked.

    Raises:
        CheckpointError: names the field and both values.
    """
    if stored_layout(reference.directory, reference.config):
        raise CheckpointError(
            f"{reference.directory} is quantized. Give the float model with --reference."
        )
    alike = with_attention_factor_of(reference.config, deployed.config)
    differences = [
        f"{name} is {got} in {deployed.directory}, {expected} in {reference.directory}"
        for name, (got, expected) in alike.differences(reference.config).items()
    ]
    if differences:
        raise CheckpointError(
            f"The two directories are different models:\n{list_problems(differences)}\n"
            "Give the right float model with --reference."
        )


def same_weights(reference: Checkpoint, deployed: Checkpoint, progress: Progress = SILENT) -> str:
    """Return how the weight files of two directories are the same, or nothing where they differ.

    Returns:
        ``linked``: they are one and the same on the disk; ``equal``: they have equal hashes.
    """
    if reference.shards.keys() != deployed.shards.keys():
        return ""
    pairs = [(shard, deployed.shards[name]) for name, shard in reference.shards.items()]
    if all(os.path.samefile(left.path, right.path) for left, right in pairs):
        return "linked"
    # What costs no reading first.
    if any(left.header_sha256 != right.header_sha256 for left, right in pairs):
        return ""
    progress.start("Comparing files", sum(2 * left.file_bytes for left, _ in pairs), "bytes")
    for left, right in pairs:
        is_same = fingerprint_file(left.path) == fingerprint_file(right.path)
        progress.advance(2 * left.file_bytes, left.path.name)
        if not is_same:
            break
    progress.finish()
    return "equal" if is_same else ""


def _layer_error(index: int, expected: torch.Tensor, got: torch.Tensor) -> LayerError:
    # Subtracted in float32 and squared in float64: over millions of numbers a float32 sum rounds.
    error = torch.linalg.vector_norm((got - expected).double()).item()
    signal = torch.linalg.vector_norm(expected.double()).item()
    relative = error / signal if signal else 0.0
    # 20 and not 10: a ratio of norms, where the decibel is of powers.
    return LayerError(index, relative, -20 * math.log10(relative) if relative else math.inf)
