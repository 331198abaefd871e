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

# ---- chat templates ----------------------------------------------------------------------------

# ---- calibration files -------------------------------------------------------------------------

# ---- outputs, manifests and records of a run ---------------------------------------------------
LINK_STEPS = Bound(
    8, "directories", "directories of links that were prepared from one another", "1 or 2"
)

# ---- messages ----------------------------------------------------------------------------------
