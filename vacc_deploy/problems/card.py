"""Rules for a compile file against the memory of a card. No figure was measured on a card."""

from __future__ import annotations

from vacc_deploy.problems.problem import ERROR, NOTE, WARNING, Rule

WEIGHTS_DO_NOT_FIT = Rule(
    "VD801",
    ERROR,
    "the weights do not fit a die",
    "The model cannot be loaded.",
    "Share it among more dies (tp), or compile it as int8.",
)
TOO_TIGHT = Rule(
    "VD802",
    WARNING,
    "weights, cache and activations together do not fit a die",
    "One sequence of full length would not fit. The activations are our estimate.",
    "Lower the total length, or share the model among more dies (tp).",
)
CARD_NOT_CHECKED = Rule(
    "VD803",
    NOTE,
    "the memory of the card was not checked",
    "The file names no model whose sizes are known here.",
    "Run check where the directory lies.",
)
