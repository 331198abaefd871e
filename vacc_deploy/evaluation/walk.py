"""Hidden states of many prompts, layer by layer: one stage of the model is in memory at a time.

The prompts of a group pass a layer together, so that its weights are read once for all of them.
Groups bound the memory of the hidden states. All arithmetic is float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError
from vacc_deploy.evaluation.trees import Prompt, Tree, attend_tree, gather, plant_all
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.reference.activations import FLOAT, INT8, RoundedLayer
from vacc_deploy.reference.compare import BATCH_TOKENS
from vacc_deploy.reference.decoder import (
    DecoderLayer,
    Positions,
    embed,
    float_reader,
    walk_layer,
)

# Positions of a tree: query, key and value of a 7B model, float32 [4096, 3584] each, take 176 MB.
TREE_TOKENS = 4096
# float32 bytes of the hidden states of a group; what attention returns takes about as much again.
STATE_BYTES = 256 << 20


def longest_prompt(config: ModelConfig) -> int:
    """Return how many tokens of a prompt a model sees as a whole."""
    return min(config.max_position_embeddings, config.sliding_window or 1 << 62)


@dataclass(frozen=True)
class Walk:
    """How prompts pass a model.

    Attributes:
        checkpoint: the model.
        activations: ``int8`` to round the inputs of its linears, see ``reference.activations``.
        state_bytes: float32 bytes of hidden states to hold at a time.
        tree_tokens: positions of a tree of several prompts.
    """

    checkpoint: Checkpoint
    activations: str = FLOAT
    state_bytes: int = STATE_BYTES
    tree_tokens: int = TREE_TOKENS

    def groups(self, prompts: Sequence[Prompt]) -> list[list[Tree]]:
        """Return the prompts in their order, as the groups that pass the model one by one.

        Raises:
            CheckpointError: a prompt is longer than the model's context or window.
        """
        longest = max((len(prompt.ids) for prompt in prompts), default=0)
        if longest > (limit := longest_prompt(self.checkpoint.config)):
            raise CheckpointError(
                f"A prompt has {longest:,} tokens, more than the context or sliding window of "
                f"{limit:,} of {self.checkpoint.directory}. Give shorter texts."
            )
        trees = plant_all(prompts, max_tokens=self.tree_tokens)
        width = 4 * self.checkpoint.config.hidden_size  # bytes of a position's float32 state
        return list(gather(trees, max(1, self.state_bytes // width)))

    def num_steps(self, prompts: Sequence[Prompt]) -> int:
        """Return how many layers ``states`` reports."""
        return len(self.groups(prompts)) * self.checkpoint.config.num_hidden_layers

    def states(self, prompts: Sequence[Prompt], progress: Progress = SILENT) -> torch.Tensor:
        """Return the hidden states of ``each_group``, of all groups: float32 [wanted, hidden]."""
        return torch.cat(list(self.each_group(prompts, progress)))

    def each_group(
        self, prompts: Sequence[Prompt], progress: Progress = SILENT
    ) -> Iterator[torch.Tensor]:
        """Yield the hidden states after the last layer at the wanted positions, group by group.

        Args:
            prompts: any number.
            progress: learns of every layer of every group, ``num_steps`` in all.

        Yields:
            float32 [wanted positions of the group, hidden], prompt by prompt in their order.

        Raises:
            CheckpointError: see ``groups``.
        """
        groups = self.groups(prompts)
        for number, trees in enumerate(groups, 1):
            with torch.inference_mode():
                states = self._pass(trees, progress, f"group {number} of {len(groups)}")
            yield states

    def _pass(self, trees: Sequence[Tree], progress: Progress, note: str) -> torch.Tensor:
        config, read = self.checkpoint.config, float_reader(self.checkpoint)
        tokens = torch.tensor([i for tree in trees for i in tree.tokens()])
        # Every position is a row of its own: [positions, 1, hidden].
        states = embed(self.checkpoint, tokens[:, None])
        longest = max(len(prompt.ids) for tree in trees for prompt in tree.prompts)
        table, kind = Positions.build(config, longest), _KINDS[self.activations]
        parts = list(_cut(trees, table))
        for index in range(config.num_hidden_layers):
            layer = kind(config, index, table, read)
            attended = _attend(layer, states, parts)
            walk_layer(layer, states, batch_rows=BATCH_TOKENS, attended_rows=attended)
            progress.advance(1, f"{note}, layer {index}")
        first, places = 0, list[int]()
        for tree in trees:
            places += (first + place for place in tree.wanted())
            first += tree.num_tokens
        return states[places, 0]  # [positions, 1, hidden] -> [wanted, hidden]


_KINDS: dict[str, type[DecoderLayer]] = {FLOAT: DecoderLayer, INT8: RoundedLayer}


@dataclass(frozen=True)
class _Part:
    """Trees whose positions attend together: which rows they are, and their tables."""

    rows: slice
    trees: Sequence[Tree]
    positions: Positions


def _cut(trees: Sequence[Tree], table: Positions) -> Iterator[_Part]:
    """Yield the trees of a group in parts of some ``BATCH_TOKENS`` rows."""
    first = 0
    for part in gather(trees, BATCH_TOKENS):
        places = [i for tree in part for i in tree.positions()]
        positions = Positions(table.cos[places], table.sin[places])
        yield _Part(slice(first, first + len(places)), part, positions)
        first += len(places)


def _attend(
    layer: DecoderLayer, states: torch.Tensor, parts: Sequence[_Part]
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield rows and what o is applied to for them, float [rows, 1, heads · head_dim]."""
    for part in parts:
        # [positions, 1, hidden] -> [1, positions, hidden]: one sequence for the linears.
        inputs = layer.attention_input(states[part.rows]).transpose(0, 1)
        heads = layer.heads(inputs, part.positions)
        sizes = [tree.num_tokens for tree in part.trees]
        # Of each tree query, key and value, [1, heads, positions of the tree, head_dim].
        triples = zip(*(each.split(sizes, dim=2) for each in heads), strict=True)
        attended = [
            attend_tree(tree, *triple) for tree, triple in zip(part.trees, triples, strict=True)
        ]
        # [1, heads, positions, head_dim] -> [positions, 1, heads · head_dim]
        yield part.rows, torch.cat(attended, dim=2).permute(2, 0, 1, 3).flatten(2)
