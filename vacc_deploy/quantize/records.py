"""A run, and what it writes down of itself in its partial directory: a file for it, one a shard.

Each is written aside, brought to the disk and renamed, so it is whole or absent. A shard's record
comes after the shard's files: where it stands, they stand.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from vacc_deploy.bounds import NUM_LAYERS, RECORD_NUMBER, RUN_RECORD_BYTES
from vacc_deploy.checkpoint.header import read_header
from vacc_deploy.checkpoint.stored import read_tensor
from vacc_deploy.errors import CheckpointError, OutputError
from vacc_deploy.formats.layouts import GGUF, INT8
from vacc_deploy.formats.linears import codes_from
from vacc_deploy.json_files import read_json
from vacc_deploy.outputs.run_files import GGUF_PREFIX, RUN_FILE_PREFIX, SHARD_RECORD_PREFIX
from vacc_deploy.outputs.text_file import replace_text
from vacc_deploy.outputs.writer import WrittenFile, shard_name
from vacc_deploy.phases import PhaseClock
from vacc_deploy.quantize.maxima import read_maxima
from vacc_deploy.quantize.record_checks import (
    read_files,
    read_identity,
    read_linear,
    read_number,
    read_seconds,
    read_texts,
    unpack_scale,
)
from vacc_deploy.solver.records import LinearRecord

RUN_NAME = f"{RUN_FILE_PREFIX}run.json"
RECORD_VERSION = 4


@dataclass(frozen=True)
class ShardRecord:
    """One shard that is on the disk in every format.

    Attributes:
        shard: number of the shard: 0 is the embedding, layer i is i + 1, the last is the head.
        seconds: wall time of the layer.
        files: path within the partial directory to size and SHA-256; empty where the record is
            damaged.
        records: one entry for each linear of the layer.
        scales: linear to its float16 scales in base64, where no format stores them.
        linear_seconds: linear to its wall time, where that was measured.
        maxima: the largest activations of a calibrated layer, by tensor.
    """

    shard: int
    seconds: float = 0.0
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    records: tuple[LinearRecord, ...] = ()
    scales: Mapping[str, str] = field(default_factory=dict)
    linear_seconds: Mapping[str, float] = field(default_factory=dict)
    maxima: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run and the shards that it has finished.

    Attributes:
        partial: the directory in which it writes.
        formats: the layouts it writes.
        identity: what decides the bytes, see ``quantize.identity``.
        num_layers: number of layers of the model; there are two shards more.
        overwrite: whether the run may replace an output that stands there.
        resumes: how often the run was resumed.
        shards: number to record; grows while the run goes on.
        written: path within ``partial`` to the finished files that were found there.
        clock: counts the seconds by phase.
    """

    partial: Path
    formats: tuple[str, ...]
    identity: dict[str, Any]
    num_layers: int
    overwrite: bool = False
    resumes: int = 0
    shards: dict[int, ShardRecord] = field(default_factory=dict)
    written: dict[str, WrittenFile] = field(default_factory=dict)
    clock: PhaseClock = field(default_factory=PhaseClock)

    @property
    def finished(self) -> int:
        """The layers from the first on that are finished without a gap."""
        layers = range(self.num_layers)
        return next((layer for layer in layers if layer + 1 not in self.shards), len(layers))

    @property
    def layers(self) -> list[ShardRecord]:
        """The records of all layers of a complete run, in their order."""
        return [self.shards[layer + 1] for layer in range(self.num_layers)]

    @property
    def num_bytes(self) -> int:
        """The bytes of all finished files."""
        return sum(size for shard in self.shards.values() for size, _ in shard.files.values())

    def add(self, shard: ShardRecord) -> None:
        """Record a shard whose files are on the disk; safe from several threads."""
        write_record(self.partial / record_name(shard.shard), asdict(shard))
        self.shards[shard.shard] = shard

    def read_finished(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the codes int8 [out, in] and the scale float16 [out] of a finished linear.

        Args:
            name: the linear's full name, ``model.layers.<i>...``.
        """
        shard = int(name.split(".")[2]) + 1
        # int8 stores codes and scale as they are; the other layouts have to be unpacked.
        layout = INT8 if INT8 in self.formats else self.formats[0]
        path = self.partial / shard_path(self.formats, layout, shard, self.num_layers)
        infos = {info.name: info for info in read_header(path).tensors}
        packed = self.shards[shard].scales.get(name)
        # The record was checked against the model before the run went on.
        scale = unpack_scale(packed, len(base64.b64decode(packed)) // 2) if packed else None
        return codes_from(layout, lambda tensor: read_tensor(infos[tensor]), name, scale)


def pack_scale(scale: torch.Tensor) -> str:
    """Return a float16 scale [out] as base64 of its little-endian bytes."""
    return base64.b64encode(scale.numpy().astype("<f2").tobytes()).decode()


def shard_path(formats: Sequence[str], layout: str, shard: int, num_layers: int) -> str:
    """Return where a shard lies within the output: below its format where there are several.

    Those of a GGUF file are the run's own: they go with its other files once the output stands, so
    that an interruption at any moment before leaves all of them to go on with.
    """
    if layout == GGUF:
        return f"{GGUF_PREFIX}{shard + 1:05d}.safetensors"
    name = shard_name(shard, num_layers + 2)
    return name if len(formats) == 1 else f"{layout}/{name}"


def record_name(shard: int) -> str:
    """Return the name of a shard's record; it has the number of the shard's own file name."""
    return f"{SHARD_RECORD_PREFIX}{shard + 1:05d}.json"


def write_record(path: Path, values: dict[str, Any]) -> None:
    """Write the file of a run or the record of a shard; it replaces an older one at once."""
    replace_text(path, json.dumps(values, separators=(",", ":")), overwrite=True, head="")


def read_run(partial: Path, formats: tuple[str, ...]) -> Run | None:
    """Return the run that began in a partial directory, None where none has.

    Args:
        partial: the directory.
        formats: the layouts that a run now would write; the identity says whether this one did.

    Raises:
        CheckpointError: the file of the run is damaged.
        OutputError: another version wrote one of the files, and may have finished layers there.
    """
    path = partial / RUN_NAME
    try:
        if not _is_file(path):
            # Earlier versions kept one growing file instead.
            path = partial / f"{RUN_FILE_PREFIX}journal"
            if _is_file(path):
                raise ValueError(f"expected {RUN_NAME}")
            return None
        run = _parse_run(partial, formats, read_json(path, limit_bytes=RUN_RECORD_BYTES))
        # By number, not by listing: a strange file beside them is never read.
        for shard in range(run.num_layers + 2):
            path = partial / record_name(shard)
            if _is_file(path):
                run.shards[shard] = _read_shard(path, shard)
    except (TypeError, ValueError, OverflowError, AttributeError) as err:
        raise OutputError(
            f"{path} was written by another version of vacc-deploy, and this one cannot read it, "
            f"nor the layers that are finished there ({str(err)[:300]}). Resume with the version "
            "that began, or give --overwrite, without --resume, to begin again."
        ) from err
    return run


def _is_file(path: Path) -> bool:
    # A link could lead to another run's record, or out of the directory.
    return path.is_file() and not path.is_symlink()


def _parse_run(partial: Path, formats: tuple[str, ...], values: Any) -> Run:
    if not isinstance(values, dict):
        raise CheckpointError(f"{partial / RUN_NAME} holds no JSON object")
    if values.get("version") != RECORD_VERSION:
        raise ValueError(f"version {values.get('version')!r:.40}, expected {RECORD_VERSION}")
    identity, num_layers, resumes = (values.get(k) for k in ("identity", "num_layers", "resumes"))
    identity = read_identity(identity)
    if type(num_layers) is not int or type(resumes) is not int:
        raise ValueError("it lacks the number of layers or of resumes")
    if not 0 < num_layers <= NUM_LAYERS or not 0 <= resumes <= RECORD_NUMBER:
        raise ValueError(
            f"{num_layers!r:.40} layers and {resumes!r:.40} resumes, expected at most {NUM_LAYERS}"
        )
    # Earlier versions did not say.
    overwrite = values.get("overwrite") is True
    return Run(partial, formats, identity, num_layers, overwrite, resumes)


def _read_shard(path: Path, shard: int) -> ShardRecord:
    """Return a shard's record, one without files where it is damaged."""
    try:
        values = read_json(path, limit_bytes=RUN_RECORD_BYTES)
    except CheckpointError:
        values = None
    if not isinstance(values, dict):
        return ShardRecord(shard)
    # Valid JSON with other fields is no damage: a version wrote it that does not say so.
    names = {item.name for item in fields(ShardRecord)}
    if values.keys() != names:
        raise ValueError(f"it has the fields {sorted(values)!r:.200}, expected {sorted(names)}")
    if values["shard"] != shard:
        raise ValueError(f"it is of shard {values['shard']!r:.40}, expected {shard}")
    return ShardRecord(
        shard=shard,
        seconds=read_number(values["seconds"]),
        files=read_files(values["files"]),
        records=tuple(map(read_linear, values["records"])),
        scales=read_texts(values["scales"]),
        linear_seconds=read_seconds(values["linear_seconds"]),
        maxima=read_maxima(values["maxima"]),
    )
