"""What is known of the Vastai cards, and how a model's weights and cache divide over their dies.

No figure here was measured on a card; each card says where its numbers come from. Imports nothing
heavy: the command line reads the names of the cards at its start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vacc_deploy.results import format_bytes

if TYPE_CHECKING:
    from vacc_deploy.models.config import ModelConfig

GIB = 1 << 30
FLOAT16_BYTES = 2


@dataclass(frozen=True)
class Card:
    """One card type.

    Attributes:
        name: name that the vendor uses.
        num_dies: dies per card; tensor parallelism counts dies, not cards.
        die_memory_bytes: memory of one die. The vendor writes "G" or "GB"; read as GiB.
        source: who says how the memory divides: ``published``, ``inferred`` or ``third party``.
        reference: text that the numbers come from.
    """

    name: str
    num_dies: int
    die_memory_bytes: int
    source: str
    reference: str


_VA16 = "the vendor writes 128 G per card; four dies follow from its TP16 on four cards"
_VA1L = "the vendor writes 64 G per card; two dies follow from its TP2 on one card"
_VA10L = "the vendor writes 128 G per card; four dies of 32 G is another party's note"
_VA1 = "the vendor's sample that prints card information"
_CARDS = (
    Card("VA16", 4, 32 * GIB, "inferred", _VA16),
    Card("VA1L", 2, 32 * GIB, "inferred", _VA1L),
    Card("VA10L", 4, 32 * GIB, "third party", _VA10L),
    Card("VA1-16G", 2, 8 * GIB, "published", _VA1),
)
CARDS = {card.name: card for card in _CARDS}


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Return the bytes of all weights on the cards.

    ``fp16``: two bytes each. ``int8``: the linears of the decoder layers as int8 codes with one
    float16 scale per output row, everything else (embeddings, head, norms, biases) float16.
    """
    total = config.num_parameters() * FLOAT16_BYTES
    if dtype == "fp16":
        return total
    # A code takes one byte instead of two; the scales come on top.
    saved = sum(
        out_features * in_features - out_features * FLOAT16_BYTES
        for out_features, in_features in config.linear_names().values()
    )
    return total - saved


def kv_bytes_per_die(config: ModelConfig, *, tensor_parallel_size: int, num_tokens: int) -> int:
    """Return the float16 cache of one sequence on one die.

    A die holds whole heads: with fewer key-value heads than dies each die holds one [inferred].
    """
    heads = -(-config.num_key_value_heads // tensor_parallel_size)
    # The first 2: a key and a value for each head.
    return 2 * config.num_hidden_layers * heads * config.head_dim * FLOAT16_BYTES * num_tokens


@dataclass(frozen=True)
class MemoryPlan:
    """What one die holds: its share of the weights and the cache of one full-length sequence."""

    card: Card
    tensor_parallel_size: int
    num_tokens: int
    weight_bytes_per_die: int
    kv_bytes_per_die: int

    @property
    def num_cards(self) -> int:
        """Cards that the dies fill."""
        return -(-self.tensor_parallel_size // self.card.num_dies)

    @property
    def weights_fit(self) -> bool:
        """Whether the weights alone are smaller than the memory of a die."""
        return self.weight_bytes_per_die < self.card.die_memory_bytes

    @property
    def free_bytes(self) -> int:
        """What weights and cache leave of a die; negative when they do not fit."""
        return self.card.die_memory_bytes - self.weight_bytes_per_die - self.kv_bytes_per_die

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return {
            "card": self.card.name,
            "source": self.card.source,
            "num_cards": self.num_cards,
            "dies_per_card": self.card.num_dies,
            "die_memory_bytes": self.card.die_memory_bytes,
            "weight_bytes_per_die": self.weight_bytes_per_die,
            "kv_bytes_per_die": self.kv_bytes_per_die,
            "free_bytes_per_die": self.free_bytes,
        }

    def to_pairs(self) -> list[tuple[str, str]]:
        """Return the figures as name and text."""
        card, free = self.card, self.free_bytes
        rest = (
            f"{format_bytes(free)} left for more sequences, activations and the runtime"
            if free >= 0
            else f"{format_bytes(-free)} too much"
        )
        cards = (
            f"{self.num_cards} x {card.name} ({card.num_dies} dies of "
            f"{format_bytes(card.die_memory_bytes)} each; {card.source}: {card.reference})"
        )
        memory = (
            f"{format_bytes(self.weight_bytes_per_die)} weights + "
            f"{format_bytes(self.kv_bytes_per_die)} cache of one sequence of "
            f"{self.num_tokens} tokens, {rest}"
        )
        return [("cards", cards), ("memory per die", memory)]


def plan_memory(
    card: Card, config: ModelConfig, *, dtype: str, tensor_parallel_size: int, num_tokens: int
) -> MemoryPlan:
    """Divide a model over the dies of ``card``, weights in equal shares.

    The real share is somewhat larger: vamc's own buffers and padding are not published.
    """
    weights = -(-weight_bytes(config, dtype) // tensor_parallel_size)
    cache = kv_bytes_per_die(
        config, tensor_parallel_size=tensor_parallel_size, num_tokens=num_tokens
    )
    return MemoryPlan(card, tensor_parallel_size, num_tokens, weights, cache)
