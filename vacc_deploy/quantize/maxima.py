"""The largest activations that a calibrated run sees, at no extra pass.

Of the deployed layers only: ``verify --audit`` measures more tensors, of any directory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from vacc_deploy.quantize.ranks import Ranks
from vacc_deploy.reference.decoder import DOWN, GATE_UP, OUTPUT, QKV
from vacc_deploy.reference.ranges import INPUT, RESIDUAL, ActivationRange

# The tensors of a layer, in the order of use: stage and name.
_TENSORS = (
    (QKV, INPUT),
    (OUTPUT, INPUT),
    (OUTPUT, RESIDUAL),
    (GATE_UP, INPUT),
    (DOWN, INPUT),
    (DOWN, RESIDUAL),
)
_KEYS = {f"{stage} {tensor}": (stage, tensor) for stage, tensor in _TENSORS}


class LayerMaxima:
    """The largest absolute value of each tensor of one layer over the rows of this rank."""

    def __init__(self) -> None:
        """Begin with no tensor seen."""
        self._largest: dict[str, torch.Tensor] = {}

    def see(self, stage: str, tensor: str, values: torch.Tensor) -> None:
        """Look at a tensor [rows, seq, width]; nothing waits for the device."""
        low, high = torch.aminmax(values)
        largest, key = torch.maximum(-low, high), f"{stage} {tensor}"
        if key in self._largest:
            largest = torch.maximum(self._largest[key], largest)
        self._largest[key] = largest

    def join(self, ranks: Ranks) -> dict[str, float]:
        """Return the largest values over all ranks; every rank calls this. NaN is infinity."""
        # One copy from the device.
        own = torch.stack([self._largest[key].float() for key in _KEYS]).tolist()
        return {
            key: max(math.inf if math.isnan(value) else value for value in values)
            for key, values in zip(_KEYS, zip(*ranks.collect(own), strict=True), strict=True)
        }


def read_maxima(value: Any) -> dict[str, float]:
    """Return what ``LayerMaxima.join`` has returned, from the record of a layer.

    Raises:
        ValueError: it is something else. An empty one is that of a layer that was rounded.
    """
    if value == {}:
        return {}
    if not isinstance(value, dict) or value.keys() != _KEYS.keys():
        raise ValueError(f"the largest activations are {value!r:.80}")
    for largest in value.values():
        if type(largest) not in (int, float) or not largest >= 0:
            raise ValueError(f"a largest activation is {largest!r:.40}")
    return {key: float(value[key]) for key in _KEYS}


def ranges_of(layers: Iterable[Mapping[str, float]]) -> tuple[ActivationRange, ...]:
    """Return the ranges of all layers, in their order."""
    return tuple(
        ActivationRange(layer, *_KEYS[key], largest)
        for layer, maxima in enumerate(layers)
        for key, largest in maxima.items()
    )


def read_ranges(audit: Any) -> tuple[ActivationRange, ...]:
    """Return the ranges that the field ``audit`` of a report lists.

    Raises:
        ValueError: it is no list of such ranges.
    """
    ranges = []
    for entry in audit if isinstance(audit, list) else [audit]:
        if not isinstance(entry, dict):
            raise ValueError(f"an entry of the audit is {entry!r:.80}")
        layer, names = entry.get("layer"), (entry.get("stage"), entry.get("tensor"))
        largest = entry.get("max_abs")
        largest = math.inf if largest is None else largest  # JSON has no infinity
        is_number = type(largest) is float and largest >= 0
        if type(layer) is not int or names not in _TENSORS or not is_number:
            raise ValueError(f"an entry of the audit is {entry!r:.80}")
        ranges.append(ActivationRange(layer, *names, largest))
    return tuple(ranges)
