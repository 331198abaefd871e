"""How a checkpoint's authors sample: one table for the GGUF file and for the Modelfile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# Beyond what any sampler takes, and within the numbers of the format.
_LARGEST = 1 << 30


class Sampler(NamedTuple):
    """A setting of a sampler.

    Attributes:
        kind: name of its type in ``gguf.GGUFValueType``.
        key: of the GGUF file, below ``general.sampling``; empty where it is not written there.
        parameter: of a Modelfile.
    """

    kind: str
    key: str
    parameter: str


# By the keys of generation_config.json.
SAMPLERS = {
    "temperature": Sampler("FLOAT32", "temp", "temperature"),
    "top_p": Sampler("FLOAT32", "top_p", "top_p"),
    "min_p": Sampler("FLOAT32", "min_p", "min_p"),
    "top_k": Sampler("INT32", "top_k", "top_k"),
    "repetition_penalty": Sampler("FLOAT32", "", "repeat_penalty"),
}


def stated_sampling(generation: Mapping[str, Any]) -> dict[str, float]:
    """Return the settings that ``generation_config.json`` states, by its own keys.

    What is no number of the setting's type is left out: a ``top_k`` is a whole number of tokens.
    """
    found = {}
    for name, sampler in SAMPLERS.items():
        stated = generation.get(name)
        wanted = int if sampler.kind == "INT32" else (int, float)
        if isinstance(stated, wanted) and type(stated) is not bool and 0 <= stated <= _LARGEST:
            found[name] = stated
    return found
