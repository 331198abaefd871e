"""What decides the bytes of a quantization, to compare an interrupted run with the one now.

Flat: a name to a plain value, so that every difference has a name of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from vacc_deploy import __version__
from vacc_deploy.checkpoint.files import side_files
from vacc_deploy.checkpoint.fingerprint import fingerprint_file, fingerprint_weights
from vacc_deploy.checkpoint.manifest import library_versions
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.models.vacc_config import VACC_CONFIG_NAME
from vacc_deploy.quantize.compute import Compute
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.system import processor_name


def identify(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    model: str,
    calibration: dict[str, Any] | None,
    compute: Compute,
    *,
    num_ranks: int = 1,
) -> dict[str, Any]:
    """Return what decides the bytes of the output.

    ``model`` is the name that the manifest carries, ``calibration`` what the report says of the
    rows: None for rounding, whose integers do not depend on the machine.
    """
    values: dict[str, Any] = {"model": model, "vacc-deploy": __version__}
    values |= {f"library {name}": version for name, version in library_versions().items()}
    asked = options.to_dict()
    values |= dict(_flatten("option", asked))
    values |= dict(_flatten("weights", fingerprint_weights(checkpoint)))
    vacc_config = checkpoint.directory / VACC_CONFIG_NAME
    for path in (*side_files(checkpoint.directory, with_config=True), vacc_config):
        if path.is_file():
            values[f"file {path.name}"] = fingerprint_file(path)
    if calibration is not None:
        # An option's name may also be that of what came of it: the answers and their hash.
        given = {name: value for name, value in calibration.items() if value != asked.get(name)}
        values |= dict(_flatten("calibration", given))
        # The order of a float sum depends on all of them.
        values["device"] = compute.describe()
        values["compute dtype"] = str(compute.dtype).removeprefix("torch.")
        values["torch threads"] = torch.get_num_threads()
        values["processor"] = f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}"
        values["processes"] = num_ranks
    return values


def _flatten(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every plain value below ``values`` with the way to it."""
    for name, value in values.items():
        if isinstance(value, (list, tuple)):
            # By number, so that a difference names the item.
            value = {str(number): item for number, item in enumerate(value)}
        if isinstance(value, Mapping):
            yield from _flatten(f"{prefix} {name}", value)
        else:
            yield f"{prefix} {name}", value


def differences(
    recorded: Mapping[str, Any],
    current: Mapping[str, Any],
    *,
    labels: tuple[str, str] = ("then", "now"),
) -> list[str]:
    """Return one line for every value in which two identities differ."""
    return [
        f"{name}: {_show(recorded.get(name))} {labels[0]}, {_show(current.get(name))} {labels[1]}"
        for name in sorted(recorded.keys() | current.keys())
        if recorded.get(name) != current.get(name)
    ]


def _show(value: Any) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # 64 characters: a SHA-256 is shown whole.
    return text if len(text) <= 64 else f"{text[:64]}..."
