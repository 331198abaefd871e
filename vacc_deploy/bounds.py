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

# ---- tokenizers --------------------------------------------------------------------------------
# Of the process in which the tokenizers library runs. A text counts at least 512 bytes.
TOKENIZER_CPU_SECONDS = Bound(
    5, "seconds", "to read a tokenizer and to use it; and one more for each MB of it", "0.1 to 0.7"
)
TOKENIZER_CPU_PER_MB = Bound(4, "seconds a MB", "the same, for the texts that it gets", "0.1 to 1")
TOKENIZER_MEMORY = Bound(
    512 << 20, "bytes", "memory to read a tokenizer and to use it", "50 to 160 MiB"
)
TOKENIZER_MEMORY_TIMES = Bound(
    20, "times the file", "the same, above TOKENIZER_MEMORY; 15 times as much of a text", "14"
)

# ---- chat templates ----------------------------------------------------------------------------
TEMPLATE_CHARACTERS = Bound(1 << 18, "characters", "a chat template", "0.3 to 25 kB")
TEMPLATE_CPU_SECONDS = Bound(
    5, "seconds", "to compile a chat template and to render all conversations", "0.1"
)
TEMPLATE_CPU_PER_MB = Bound(
    4, "seconds a MB", "the same, of conversations; one counts at least 512 bytes", "0.3"
)
TEMPLATE_MEMORY = Bound(
    256 << 20, "bytes", "memory to compile a chat template or to render a conversation", "10 MB"
)
CONVERSATION_BYTES = Bound(
    32 << 20, "bytes", "one conversation that a chat template gets", "up to 200 kB"
)
RENDERED_BYTES = Bound(
    64 << 20, "bytes", "what a chat template may write for one conversation", "up to 200 kB"
)

# ---- calibration files -------------------------------------------------------------------------

# ---- outputs, manifests and records of a run ---------------------------------------------------

# ---- messages ----------------------------------------------------------------------------------
