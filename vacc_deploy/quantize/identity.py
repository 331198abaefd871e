"""What decides the bytes of a quantization, to compare an interrupted run with the one now.

Flat: a name to a plain value, so that every difference has a name of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from vacc_deploy import __version__
from vacc_deploy.checkpoint import Checkpoint, ShardHeader, library_versions, side_files
from vacc_deploy.models.vacc_config import VACC_CONFIG_NAME
from vacc_deploy.quantize.compute import Compute
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.system import processor_name

# Weights of at most this size are hashed whole; of larger ones three pieces of every tensor are.
WHOLE_BYTES = 64 << 20
PIECE_BYTES = 4096
_SHOWN_CHARS = 64


def identify(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    model: str,
    calibration: dict[str, Any] | None,
    compute: Compute,
    num_ranks: int = 1,
) -> dict[str, Any]:
    """Return what decides the bytes of the output.

    Args:
        checkpoint: the source.
        options: of the run.
        model: the model's name, which the manifest carries.
        calibration: what the report says of the rows; None for rounding, whose integers do not
            depend on the machine.
        compute: the device and the precision of a calibrated run.
        num_ranks: processes that share its rows.
    """
    values: dict[str, Any] = {"model": model, "vacc-deploy": __version__}
    values |= {f"library {name}": version for name, version in library_versions().items()}
    asked = options.to_dict()
    values |= dict(_flatten("option", asked))
    whole = checkpoint.weight_bytes <= WHOLE_BYTES
    for name, shard in checkpoint.shards.items():
        values[f"weights {name}"] = _hash(_shard_pieces(shard, whole))
    for path in side_files(checkpoint.directory, with_config=True):
        values[f"file {path.name}"] = _hash(_pieces(path, [(0, path.stat().st_size)]))
    vacc_config = checkpoint.directory / VACC_CONFIG_NAME
    if vacc_config.is_file():
        size = vacc_config.stat().st_size
        values[f"file {VACC_CONFIG_NAME}"] = _hash(_pieces(vacc_config, [(0, size)]))
    if calibration is not None:
        # An option's name may also be that of what came of it: the answers and their hash.
        given = {name: value for name, value in calibration.items() if value != asked.get(name)}
        values |= dict(_flatten("calibration", given))
        # The order of a float sum depends on all of them.
        values["device"] = compute.describe()
        values["compute dtype"] = str(compute.dtype).removeprefix("torch.")
        values["torch threads"] = torch.get_num_threads()
        # Which of its vector units torch uses, too.
        capability = torch.backends.cpu.get_cpu_capability()
        values["processor"] = f"{processor_name()}, {capability}"
        values["processes"] = num_ranks
    return values


def _flatten(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every plain value below ``values`` with the way to it."""
    for name, value in values.items():
        if isinstance(value, (list, tuple)):
            value = {str(place): item for place, item in enumerate(value)}
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
    before, after = labels
    return [
        f"{name}: {_show(recorded.get(name))} {before}, {_show(current.get(name))} {after}"
        for name in sorted(recorded.keys() | current.keys())
        if recorded.get(name) != current.get(name)
    ]


def _show(value: Any) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def _hash(pieces: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _shard_pieces(shard: ShardHeader, whole: bool) -> Iterator[bytes]:
    """Yield the header's hash and what is read of the tensors of one file."""
    yield shard.header_sha256.encode()
    places = []
    for info in shard.tensors:
        last = max(0, info.num_bytes - PIECE_BYTES)
        if whole:
            places.append((info.offset, info.num_bytes))
        else:
            size = min(PIECE_BYTES, info.num_bytes)
            places += [(info.offset + start, size) for start in (0, last // 2, last)]
    yield from _pieces(shard.path, places)


def _pieces(path: Path, places: list[tuple[int, int]]) -> Iterator[bytes]:
    """Yield the bytes at (offset, size) of a file, a MiB at most at a time."""
    with path.open("rb", buffering=0) as file:
        for offset, size in places:
            file.seek(offset)
            while size > 0 and (piece := file.read(min(size, 1 << 20))):
                yield piece
                size -= len(piece)
