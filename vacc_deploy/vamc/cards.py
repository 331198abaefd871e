"""What is known of the Vastai cards, and how a model's weights and cache divide over their dies.

No figure here was measured on a card; each card says where its numbers come from. Imports nothing
heavy: the command line reads the names of the cards at its start.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vacc_deploy.results import format_bytes
from vacc_deploy.vamc.options import LENGTH_MULTIPLE

if TYPE_CHECKING:
    from vacc_deploy.models.config import ModelConfig

GIB = 1 << 30
FLOAT16_BYTES, FLOAT32_BYTES = 2, 4


@dataclass(frozen=True)
class Card:
    """One card type.

    Attributes:
        name: name that the vendor uses.
        num_dies: dies per card; tensor parallelism counts dies, not cards.
        die_memory_bytes: memory of one die. The vendor writes "G" or "GB"; read as GiB.
        source: who says how the memory divides: ``published``, ``inferred`` or ``third party``.
        reference: text that the numbers come from.
        memory_bandwidth: bytes a second that one die reads from its memory; None where nobody has
            published it, which is so for all of them.
    """

    name: str
    num_dies: int
    die_memory_bytes: int
    source: str
    reference: str
    memory_bandwidth: float | None = None

    def with_bandwidth(self, gigabytes_per_second: float | None) -> Card:
        """Return the card with a bandwidth of one die that the user knows, or as it is."""
        if gigabytes_per_second is None:
            return self
        return replace(self, memory_bandwidth=gigabytes_per_second * 1e9)


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


def read_bytes(config: ModelConfig, dtype: str) -> int:
    """Return the bytes of the weights that one token reads: all but an embedding of its own.

    Of the embedding a token reads one row. Where it is the head too, the head reads all of it.
    """
    embedding = config.vocab_size * config.hidden_size * FLOAT16_BYTES
    return weight_bytes(config, dtype) - (0 if config.tie_word_embeddings else embedding)


def activation_bytes_per_die(
    config: ModelConfig, *, tensor_parallel_size: int, prefill: int
) -> int:
    """Return an estimate of the activations of one prompt on one die.

    What vamc keeps is not published. Inferred from the shapes of the graph that it compiles, with
    eager attention: hidden states and residual [prefill, hidden], and the largest of three stages
    that do not overlap. Attention has q, k, v and the scores [heads, prefill, prefill] in float16
    and in float32, the MLP has gate and up, and the head has float32 logits: of the last position
    where ``insert_slice`` cuts the states (all but Llama), else of all.
    """
    heads = -(-config.num_attention_heads // tensor_parallel_size)
    kv_heads = -(-config.num_key_value_heads // tensor_parallel_size)
    width = -(-config.intermediate_size // tensor_parallel_size)
    words = -(-config.vocab_size // tensor_parallel_size)
    states = 2 * prefill * config.hidden_size * FLOAT16_BYTES
    attention = prefill * (heads + 2 * kv_heads) * config.head_dim * FLOAT16_BYTES
    attention += heads * prefill * prefill * (FLOAT16_BYTES + FLOAT32_BYTES)
    mlp = 2 * prefill * width * FLOAT16_BYTES
    rows = prefill if config.model_type == "llama" else 1
    return states + max(attention, mlp, rows * words * FLOAT32_BYTES)


@dataclass(frozen=True)
class MemoryPlan:
    """What one die holds: its share of the weights, and the cache of one full-length sequence.

    Attributes:
        prefill, num_tokens: longest prompt, and longest prompt with its answer.
        activation_bytes_per_die: see the function of this name; an estimate.
        read_bytes_per_die: of the weights, for one token.
        max_position_embeddings: of the model.
    """

    card: Card
    tensor_parallel_size: int
    prefill: int
    num_tokens: int
    weight_bytes_per_die: int
    kv_bytes_per_die: int
    activation_bytes_per_die: int
    read_bytes_per_die: int
    max_position_embeddings: int

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

    @property
    def fits(self) -> bool:
        """Whether weights, activations and the cache of one sequence fit, by our estimate."""
        return self._cache_bytes >= self.kv_bytes_per_die

    @property
    def _cache_bytes(self) -> int:
        """What weights and activations leave for caches; may be negative."""
        used = self.weight_bytes_per_die + self.activation_bytes_per_die
        return self.card.die_memory_bytes - used

    @property
    def num_sequences(self) -> int:
        """How many sequences of full length fit at once."""
        return max(0, self._cache_bytes) // self.kv_bytes_per_die

    @property
    def longest_total(self) -> int:
        """The largest total length that one sequence can have; 0 where none is above the prompt."""
        tokens = max(0, self._cache_bytes) * self.num_tokens // self.kv_bytes_per_die
        longest = min(tokens, self.max_position_embeddings) // LENGTH_MULTIPLE * LENGTH_MULTIPLE
        return longest if longest > self.prefill else 0

    @property
    def bytes_per_token(self) -> int:
        """What a die reads for the last token of a full sequence: weights and cache."""
        return self.read_bytes_per_die + self.kv_bytes_per_die

    @property
    def tokens_per_second(self) -> float | None:
        """The bound that memory traffic sets for one sequence; None without a bandwidth."""
        bandwidth = self.card.memory_bandwidth
        return None if bandwidth is None else bandwidth / self.bytes_per_token

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return {
            "card": self.card.name,
            "source": self.card.source,
            "num_cards": self.num_cards,
            "dies_per_card": self.card.num_dies,
            "tensor_parallel_size": self.tensor_parallel_size,
            "prefill": self.prefill,
            "total": self.num_tokens,
            "die_memory_bytes": self.card.die_memory_bytes,
            "weight_bytes_per_die": self.weight_bytes_per_die,
            "kv_bytes_per_die": self.kv_bytes_per_die,
            "activation_bytes_per_die": self.activation_bytes_per_die,
            "free_bytes_per_die": self.free_bytes,
            "longest_total": self.longest_total,
            "num_sequences": self.num_sequences,
            "bytes_per_token_per_die": self.bytes_per_token,
            "memory_bandwidth": self.card.memory_bandwidth,
            "max_tokens_per_second": self.tokens_per_second,
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
        activations = (
            f"about {format_bytes(self.activation_bytes_per_die)} a die for a prompt of "
            f"{self.prefill} tokens (our inference from the shapes)"
        )
        return [
            ("cards", cards),
            ("memory per die", memory),
            ("activations", activations),
            ("what fits", self._describe_room()),
            ("memory traffic", self._describe_traffic()),
        ]

    def _describe_room(self) -> str:
        if not self.longest_total:
            return "no sequence that is longer than the prompt"
        return (
            f"by these figures a total length of up to {self.longest_total} tokens, "
            f"or {self.num_sequences} sequences of {self.num_tokens} tokens at once"
        )

    def _describe_traffic(self) -> str:
        each = f"{format_bytes(self.bytes_per_token)} a die for a token at full length"
        rate = self.tokens_per_second
        if rate is None:
            return f"{each}; no bandwidth is published for {self.card.name}, so no rate follows"
        return (
            f"{each}; at {(self.card.memory_bandwidth or 0) / 1e9:g} GB/s no more than {rate:.1f} "
            "tokens a second for one sequence"
        )


def plan_memory(
    card: Card,
    config: ModelConfig,
    *,
    dtype: str,
    tensor_parallel_size: int,
    lengths: tuple[int, int],
) -> MemoryPlan:
    """Divide a model over the dies of ``card``, weights in equal shares.

    The real share is somewhat larger: vamc's own buffers and padding are not published.

    Args:
        card: its dies are alike.
        config: of the model.
        dtype: see ``weight_bytes``.
        tensor_parallel_size: number of dies.
        lengths: longest prompt, and longest prompt with its answer, in tokens.
    """
    prefill, total = lengths
    size = tensor_parallel_size
    return MemoryPlan(
        card,
        size,
        prefill,
        total,
        weight_bytes_per_die=-(-weight_bytes(config, dtype) // size),
        kv_bytes_per_die=kv_bytes_per_die(config, tensor_parallel_size=size, num_tokens=total),
        activation_bytes_per_die=activation_bytes_per_die(
            config, tensor_parallel_size=size, prefill=prefill
        ),
        read_bytes_per_die=-(-read_bytes(config, dtype) // size),
        max_position_embeddings=config.max_position_embeddings,
    )
