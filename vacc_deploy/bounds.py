"""Every bound on what is read from a stranger, each stated here and nowhere else.

A reader compares with the bound before it uses a size, so that a small file cannot take all memory
or all time. ``docs/security.md`` prints this table, and ``tests/test_bounds.py`` tries each bound
at its edge.
"""

from __future__ import annotations


class Bound(int):
    """A limit, with what the table of ``docs/security.md`` says about it.

    Attributes:
        unit: of the number, such as ``bytes``, ``values`` or ``seconds``.
        what: what is bounded, a noun phrase.
        usual: what published files have, a phrase with a figure.
    """

    unit: str
    what: str
    usual: str

    def __new__(cls, limit: int, unit: str, what: str, usual: str) -> Bound:
        """Return the bound; it computes and prints as its number."""
        bound = super().__new__(cls, limit)
        bound.unit, bound.what, bound.usual = unit, what, usual
        return bound


# ---- weight files ------------------------------------------------------------------------------

# ---- JSON and YAML -----------------------------------------------------------------------------
JSON_DEPTH = Bound(
    100, "levels", "lists and objects within each other in a JSON file", "up to 8 levels"
)

# ---- configuration -----------------------------------------------------------------------------
CONFIG_BYTES = Bound(1 << 20, "bytes", "config.json or config_vacc.json", "under 3 KB")
GENERATION_CONFIG_BYTES = Bound(1 << 20, "bytes", "generation_config.json", "under 1 KB")
NUM_LAYERS = Bound(1 << 10, "layers", "num_hidden_layers", "up to 126")
NUM_HEADS = Bound(1 << 10, "heads", "num_attention_heads, num_key_value_heads", "up to 128")
HEAD_SIZE = Bound(1 << 13, "channels", "head_dim", "up to 256")
HIDDEN_SIZE = Bound(1 << 16, "channels", "hidden_size", "up to 16,384")
INTERMEDIATE_SIZE = Bound(1 << 18, "channels", "intermediate_size", "up to 53,248")
VOCAB_SIZE = Bound(1 << 22, "tokens", "vocab_size", "up to 256,000")
CONTEXT_TOKENS = Bound(
    1 << 24, "tokens", "max_position_embeddings, sliding_window", "up to 4,194,304"
)
CONFIG_NUMBER = Bound(
    10**30,
    "",
    "any number of the architecture (rope_theta, factor, rms_norm_eps), and one divided by it",
    "1e-6 to 1e7",
)
END_TOKENS = Bound(1000, "ids", "the list eos_token_id", "up to 3 ids")

# ---- tokenizers --------------------------------------------------------------------------------

# ---- chat templates ----------------------------------------------------------------------------

# ---- calibration files -------------------------------------------------------------------------

# ---- outputs, manifests and records of a run ---------------------------------------------------

# ---- messages ----------------------------------------------------------------------------------
MESSAGE_CHARACTERS = Bound(
    4000, "characters", "an error, a warning or a note (its middle is left out)", "up to 600"
)
