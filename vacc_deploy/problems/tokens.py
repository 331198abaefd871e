"""Rules for the tokenizer: its files, and what the installed transformers makes of them."""

from __future__ import annotations

from vacc_deploy.problems.problem import ERROR, Rule

TOKENIZER_UNUSABLE = Rule(
    "VD401",
    ERROR,
    "the tokenizer cannot be used",
    "No text can be made token ids, or its ids are not those that the model was trained with.",
    "Restore the tokenizer files from the model's repository.",
)
