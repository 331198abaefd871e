"""Read typed values of a configuration within bounds, and collect what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vacc_deploy.bounds import (
    CONFIG_NUMBER,
    CONTEXT_TOKENS,
    HEAD_SIZE,
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    NUM_HEADS,
    NUM_LAYERS,
    VOCAB_SIZE,
)
from vacc_deploy.json_files import is_json

# They keep a damaged config from asking for terabytes.
_LIMITS = {
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": INTERMEDIATE_SIZE,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": NUM_HEADS,
    "num_key_value_heads": NUM_HEADS,
    "head_dim": HEAD_SIZE,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": CONTEXT_TOKENS,
    "sliding_window": CONTEXT_TOKENS,
}


class ConfigReader:
    """Typed values of one config dictionary.

    Attributes:
        raw: dictionary as parsed.
        where: name of the file for messages.
        problems: what was wrong so far, one line each.
    """

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        """Begin with no problem."""
        self.raw, self.where, self.problems = raw, where, list[str]()

    def _value(self, key: str, default: Any, source: Mapping[str, Any] | None = None) -> Any:
        """Return a value, the default where it is absent or null."""
        value = (self.raw if source is None else source).get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number from 1 to the key's limit; 1 where it is none."""
        value = self._value(key, default)
        limit = _LIMITS[key]
        # True is an int in Python. A bad value becomes 1, not 0: others are divided by it.
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= limit:
            expected = f"expected a whole number from 1 to {limit}"
            self.problems.append(f"{key}: got {value!r:.80}, {expected}")
            return 1
        return value

    def number(
        self, key: str, default: float | None, source: Mapping[str, Any] | None = None
    ) -> float:
        """Return a positive number, of ``source`` where it is given; 1.0 where it is none."""
        value = self._value(key, default, source)
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        # Beyond the bounds float32 gives infinity or zero. NaN is not above 0.
        if not good or not 1 / CONFIG_NUMBER <= value <= CONFIG_NUMBER:
            limit = float(CONFIG_NUMBER)
            expected = f"a number from {1 / limit:g} to {limit:g}" if good else "a positive number"
            self.problems.append(f"{key}: got {value!r:.80}, expected {expected}")
            return 1.0
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            self.problems.append(f"{key}: got {value!r:.80}, expected true or false")
            return default
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        """Return an object; an empty one where it is absent."""
        value: Any = self._value(key, {})
        if not isinstance(value, dict):
            self.problems.append(f"{key}: got {value!r:.80}, expected an object")
            return {}
        if not is_json(value):
            self.problems.append(f"{key}: got {value!r:.80}, expected numbers that JSON can write")
        return value
