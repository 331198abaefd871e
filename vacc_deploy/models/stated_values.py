"""Read single values that a configuration file states in another form than loaders take."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from math import isfinite
from typing import Any, TypeAlias

# What turns a token's text into its id; None where there is no such token.
TokenId: TypeAlias = Callable[[str], int | None]


def read_flag(stated: Any) -> bool | None:
    """Return the flag that a text or a number says; None for what is a flag or says none."""
    words = {"true": True, "false": False, "1": True, "0": False}
    is_number = type(stated) is int
    return words.get(str(stated)[:8].lower()) if is_number or isinstance(stated, str) else None


def read_number(stated: Any) -> int | float | None:
    """Return the number that a text says; None for what is no text or says none."""
    if not isinstance(stated, str) or len(stated) > 12 or not stated.isascii():
        return None
    with suppress(ValueError):
        value = float(stated)
        if isfinite(value):
            return int(value) if value.is_integer() and "." not in stated else value
    return None


def settle_id(entry: Any, limit: int, token_id: TokenId) -> int | None:
    """Return one id; None where it stands for none."""
    if isinstance(entry, str):
        # Bounded: a number of a million digits would take long.
        is_number = entry.isascii() and entry.isdecimal() and len(entry) < 12
        entry = int(entry) if is_number else token_id(entry)
    if isinstance(entry, float) and entry.is_integer():
        entry = int(entry)
    return entry if type(entry) is int and 0 <= entry < limit else None
