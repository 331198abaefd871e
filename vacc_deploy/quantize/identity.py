"""What decides the bytes of a quantization, to compare an interrupted run with the one now.

Flat: a name to a plain value, so that every difference has a name of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from vacc_deploy import __version__
from vacc_deploy.checkpoint.fingerprint import fingerprint_file, fingerprint_weights
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.formats.layouts import GGUF
from vacc_deploy.gguf_file.package import check_package
from vacc_deploy.models.vacc_config import VACC_CONFIG_NAME
from vacc_deploy.outputs.files import side_files
from vacc_deploy.outputs.manifests import library_versions
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
    if GGUF in options.formats:
        values["library gguf"] = check_package()
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


# Options by the names of their fields, where the flag has another one; "" is no option.
_FLAGS = {"sequence_length": "--seq-len", "dampening_frac": "--dampening"}
_FLAGS |= {"held_out_share": "", "num_float_rows": ""}
# What has no option, and how to have it as then.
_ADVICE = {
    "torch threads": "set OMP_NUM_THREADS={}",
    "processes": "start {}",
    "compute dtype": "give --compute-dtype {}",
}
_SOURCE = re.compile("calibration sources ([0-9]+) (kind|file|weight|sha256)")
# What decides the integers of any method. The rest exists for calibrated runs only.
_OF_ANY_METHOD = (
    *("model", "vacc-deploy", "library ", "file ", "weights "),
    *("option method", "option formats ", "option group_size", "option gguf_"),
)


def differences(
    recorded: Mapping[str, Any],
    current: Mapping[str, Any],
    *,
    labels: tuple[str, str] = ("then", "now"),
) -> list[str]:
    """Return one line for every value in which two identities differ.

    Options and calibration sources are named as they are typed. What only follows from another
    difference is left out: the calibration tokens of other options, say.
    """
    names = [
        name
        for name in sorted(recorded.keys() | current.keys())
        if recorded.get(name) != current.get(name)
    ]
    if "option method" in names:
        names = [name for name in names if name.startswith(_OF_ANY_METHOD)]
    causes = [
        name for name in names if not name.startswith("calibration ") or _SOURCE.fullmatch(name)
    ]
    # Neither the machine nor the number of processes chooses tokens.
    if any(name.startswith(("option ", "calibration ", "file ", "library ")) for name in causes):
        names = causes
    lines = (_describe(name, recorded, current, labels) for name in names)
    return list(dict.fromkeys(lines))  # a source's kind, file and weight are in one


def _describe(
    name: str, recorded: Mapping[str, Any], current: Mapping[str, Any], labels: tuple[str, str]
) -> str:
    """Return the line of one difference."""
    title, then, now = name, recorded.get(name), current.get(name)
    source = _SOURCE.fullmatch(name)
    if source:
        then, now = (_source_text(values, source[1]) for values in (recorded, current))
        title = _numbered("--calibration", source[1])
        if then == now:  # the same name, and another content
            title = f"calibration file {recorded[name.replace(source[2], 'file')]}"
            then, now = recorded.get(name), current.get(name)
    elif name.startswith("option "):
        field, _, number = name.removeprefix("option ").partition(" ")
        flag = _FLAGS.get(field, f"--{field.replace('_', '-')}")
        title = _numbered("--format", number) if field == "formats" else flag or name
    line = f"{title}: {_show(then)} {labels[0]}, {_show(now)} {labels[1]}"
    advice = _ADVICE.get(name) if then is not None else None
    return f"{line} ({advice.format(then)})" if advice else line


def _numbered(flag: str, number: str) -> str:
    """Return an option that may be repeated; its first value needs no number."""
    return flag if number == "0" else f"{flag}, number {int(number) + 1}"


def _source_text(values: Mapping[str, Any], number: str) -> str | None:
    """Return a calibration source as it is typed, without directories; None for none."""
    kind, file, weight = (
        values.get(f"calibration sources {number} {part}") for part in ("kind", "file", "weight")
    )
    if kind is None:
        return None
    return f"{kind}={file}" if weight in (None, 1) else f"{kind}={file}:{weight:g}"


def _show(value: Any) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # 64 characters: a SHA-256 is shown whole.
    return text if len(text) <= 64 else f"{text[:64]}..."
