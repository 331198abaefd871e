"""Prompts that begin alike, computed once where they are alike: prompts to trees of token ids.

The questions of a subject share their examples, and the choices of a question its text. The shared
ids are the trunk of a tree, and each prompt is a branch. Knows no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch


@dataclass(frozen=True)
class Prompt:
    """Token ids, and how many of the last positions are wanted.

    Attributes:
        ids: at least ``wanted`` of them.
        wanted: positions whose hidden states are to be returned, counted from the end.
    """

    ids: tuple[int, ...]
    wanted: int = 1


@dataclass(frozen=True)
class Tree:
    """Prompts with a common beginning.

    Attributes:
        prompts: each begins with the trunk.
        trunk: how many ids all of them share; the wanted positions of none lie among them.
    """

    prompts: tuple[Prompt, ...]
    trunk: int

    @property
    def num_tokens(self) -> int:
        """The positions to compute: those of the trunk once."""
        return self.trunk + sum(self.branches())

    def branches(self) -> list[int]:
        """Return how many ids each prompt has behind the trunk."""
        return [len(prompt.ids) - self.trunk for prompt in self.prompts]

    def tokens(self) -> list[int]:
        """Return the ids of the trunk, then those of each branch."""
        trunk = list(self.prompts[0].ids[: self.trunk])
        return trunk + [i for prompt in self.prompts for i in prompt.ids[self.trunk :]]

    def positions(self) -> list[int]:
        """Return the position of each of ``tokens`` in its prompt."""
        own = [range(self.trunk, len(prompt.ids)) for prompt in self.prompts]
        return [*range(self.trunk), *(i for positions in own for i in positions)]

    def wanted(self) -> list[int]:
        """Return which of ``tokens`` are wanted, prompt by prompt."""
        places, end = list[int](), self.trunk
        for prompt, length in zip(self.prompts, self.branches(), strict=True):
            end += length
            places += range(end - prompt.wanted, end)
        return places


def plant_all(prompts: Sequence[Prompt], *, max_tokens: int) -> list[Tree]:
    """Return trees that hold all prompts in their order, those next to each other together.

    Args:
        prompts: any number.
        max_tokens: positions that a tree of several prompts may have.
    """
    trees = list[Tree]()
    for prompt in prompts:
        larger = _grow(trees[-1], prompt) if trees else None
        if larger and larger.num_tokens <= max_tokens:
            trees[-1] = larger
        else:
            trees.append(Tree((prompt,), len(prompt.ids) - prompt.wanted))
    return trees


def _grow(tree: Tree, prompt: Prompt) -> Tree | None:
    """Return the tree with one more prompt, None where that saves no position."""
    pairs = zip(prompt.ids[: len(prompt.ids) - prompt.wanted], tree.prompts[0].ids, strict=False)
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    larger = Tree((*tree.prompts, prompt), min(tree.trunk, alike))
    return larger if larger.num_tokens < tree.num_tokens + len(prompt.ids) else None


def gather(trees: Iterable[Tree], max_tokens: int) -> Iterator[list[Tree]]:
    """Yield the trees in groups of at most ``max_tokens`` positions, or of one tree."""
    group, count = list[Tree](), 0
    for tree in trees:
        if group and count + tree.num_tokens > max_tokens:
            yield group
            group, count = [], 0
        group.append(tree)
        count += tree.num_tokens
    if group:
        yield group


def attend_tree(
    tree: Tree, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Return what each position of a tree gathers from those before it in its prompt.

    Args:
        tree: its ``tokens`` are the positions.
        query: float [1, heads, positions, head_dim].
        key: likewise.
        value: likewise.

    Returns:
        float [1, heads, positions, head_dim].
    """
    attend = torch.nn.functional.scaled_dot_product_attention
    parts = [part.split([tree.trunk, *tree.branches()], dim=2) for part in (query, key, value)]
    (trunk_query, *queries), (trunk_key, *keys), (trunk_value, *values) = parts
    attended = [attend(trunk_query, trunk_key, trunk_value, is_causal=True)] if tree.trunk else []
    for own_query, own_key, own_value in zip(queries, keys, values, strict=True):
        count = own_query.shape[2]
        # Position i of the branch sees the trunk and the branch up to i: [branch, trunk + branch]
        seen = torch.ones(count, tree.trunk + count, dtype=torch.bool, device=query.device)
        attended.append(
            attend(
                own_query,
                torch.cat((trunk_key, own_key), dim=2),
                torch.cat((trunk_value, own_value), dim=2),
                attn_mask=seen.tril(tree.trunk),
            )
        )
    return torch.cat(attended, dim=2)
