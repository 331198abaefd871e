"""Read typed values from a configuration and collect every problem, instead of the first only."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

# Sizes far above any published model. They keep a damaged config from asking for terabytes.
_LIMITS = {
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 18,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "num_key_value_heads": 1 << 10,
    "vocab_size": 1 << 22,
    "max_position_embeddings": 1 << 24,
}


class ConfigReader:
    """Typed values of one config dictionary.

    Attributes:
        raw: the dictionary.
        where: the file's name for messages.
        problems: what was wrong so far, one line each.
    """

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        """Begin with no problem."""
        self.raw, self.where, self.problems = raw, where, list[str]()

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number from 1 to the key's limit; 1 where it is none."""
        value = self.raw.get(key)
        value = default if value is None else value
        limit = _LIMITS.get(key, 1 << 24)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= limit:
            self.problems.append(f"{key}: got {value!r}, expected a whole number from 1 to {limit}")
            return 1
        return value

    def number(self, key: str, default: float | None, source: Mapping[str, Any]) -> float:
        """Return a positive number of ``source``; 1.0 where it is none."""
        value = source.get(key)
        value = default if value is None else value
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not good or not 0 < value <= sys.float_info.max:  # type: ignore[operator]
            self.problems.append(f"{key}: got {value!r}, expected a positive number")
            return 1.0
        return float(value)  # type: ignore[arg-type]

    def boolean(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.raw.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            self.problems.append(f"{key}: got {value!r}, expected true or false")
            return default
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        """Return an object; an empty one where it is absent."""
        value = self.raw.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.problems.append(f"{key}: got {value!r}, expected an object")
            return {}
        return value
