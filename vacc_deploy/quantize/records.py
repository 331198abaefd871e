"""What a run writes down in its partial directory: one file for the run, one for each shard.

Each is written aside, brought to the disk and renamed, so it is whole or absent. A shard's record
comes after the shard's files: where it stands, they stand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vacc_deploy.checkpoint.output import RUN_FILE_PREFIX, replace_text
from vacc_deploy.errors import CheckpointError, OutputError
from vacc_deploy.json_files import read_json
from vacc_deploy.solver.records import LinearRecord

RUN_NAME = f"{RUN_FILE_PREFIX}run.json"
RECORD_VERSION = 3
# The directory may be a stranger's. A record of 7 linears with its scales has some 200 KiB.
MAX_RECORD_BYTES = 1 << 20
MAX_LAYERS = 1024
_MAX_REASON_CHARS = 300
# Earlier versions kept one growing file instead.
_OLD_NAME = f"{RUN_FILE_PREFIX}journal"


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
    """

    shard: int
    seconds: float = 0.0
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    records: tuple[LinearRecord, ...] = ()
    scales: Mapping[str, str] = field(default_factory=dict)
    linear_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """A run and the shards that it has finished.

    Attributes:
        identity: what decides the bytes, see ``quantize.identity``.
        num_layers: number of layers of the model.
        resumes: how often the run was resumed.
        shards: number to record; grows while the run goes on.
    """

    identity: dict[str, Any]
    num_layers: int
    resumes: int = 0
    shards: dict[int, ShardRecord] = field(default_factory=dict)

    @property
    def finished(self) -> int:
        """The layers from the first on that are finished without a gap."""
        count = 0
        while count < self.num_layers and count + 1 in self.shards:
            count += 1
        return count

    @property
    def num_bytes(self) -> int:
        """The bytes of all finished files."""
        return sum(size for shard in self.shards.values() for size, _ in shard.files.values())


def record_name(shard: int) -> str:
    """Return the name of a shard's record; it has the number of the shard's own file name."""
    return f"{RUN_FILE_PREFIX}shard-{shard + 1:05d}.json"


def write_run(partial: Path, run: RunRecord) -> None:
    """Write the file of the run; it replaces an older one at once."""
    values = {
        "version": RECORD_VERSION,
        "identity": run.identity,
        "num_layers": run.num_layers,
        "resumes": run.resumes,
    }
    # The shards have files of their own: this one never grows.
    _write(partial / RUN_NAME, values)


def write_record(partial: Path, record: ShardRecord) -> None:
    """Write the record of a shard whose files are on the disk."""
    _write(partial / record_name(record.shard), asdict(record))


def _write(path: Path, values: dict[str, Any]) -> None:
    replace_text(path, json.dumps(values, separators=(",", ":")), overwrite=True, head="")


def read_run(partial: Path) -> RunRecord | None:
    """Return the run that began in a partial directory, None where none has.

    Raises:
        CheckpointError: the file of the run is damaged.
        OutputError: another version wrote one of the files, and may have finished layers there.
    """
    path = partial / RUN_NAME
    if not _is_file(path):
        if _is_file(partial / _OLD_NAME):
            raise _other_version(partial / _OLD_NAME, f"expected {RUN_NAME}")
        return None
    values = read_json(path, limit_bytes=MAX_RECORD_BYTES)
    try:
        run = _parse_run(values)
        # By number, not by listing: a strange file beside them is never read.
        for shard in range(run.num_layers + 2):
            path = partial / record_name(shard)
            if _is_file(path):
                run.shards[shard] = _read_record(path, shard)
    except (TypeError, ValueError, OverflowError, AttributeError) as err:
        raise _other_version(path, str(err)[:_MAX_REASON_CHARS]) from err
    return run


def _is_file(path: Path) -> bool:
    # A link could lead to another run's record, or out of the directory.
    return path.is_file() and not path.is_symlink()


def _other_version(path: Path, reason: str) -> OutputError:
    return OutputError(
        f"{path} was written by another version of vacc-deploy, and this one cannot read it, "
        f"nor the layers that are finished there ({reason}). Resume with the version that began, "
        "or give --overwrite, without --resume, to begin again."
    )


def _parse_run(values: Any) -> RunRecord:
    """Return the run without its shards.

    Raises:
        ValueError: another version wrote it.
        AttributeError: it is not a JSON object.
    """
    if values.get("version") != RECORD_VERSION:
        raise ValueError(f"version {values.get('version')!r}, expected {RECORD_VERSION}")
    identity, num_layers, resumes = (values.get(k) for k in ("identity", "num_layers", "resumes"))
    if not isinstance(identity, dict) or type(num_layers) is not int or type(resumes) is not int:
        raise ValueError("it lacks the run's identity, number of layers or number of resumes")
    if not 0 < num_layers <= MAX_LAYERS:
        raise ValueError(f"{num_layers} layers, expected 1 to {MAX_LAYERS}")
    return RunRecord(identity, num_layers, resumes)


def _read_record(path: Path, shard: int) -> ShardRecord:
    """Return a shard's record, one without files where it is damaged.

    Raises:
        ValueError: a field is missing or unknown, as also TypeError and AttributeError may say.
    """
    try:
        values = read_json(path, limit_bytes=MAX_RECORD_BYTES)
    except CheckpointError:
        return ShardRecord(shard)
    # Valid JSON with other fields is no damage: a version wrote it that does not say so.
    names = {item.name for item in fields(ShardRecord)}
    if values.keys() != names:
        raise ValueError(f"it has the fields {sorted(values)}, expected {sorted(names)}")
    if values["shard"] != shard:
        raise ValueError(f"it is of shard {values['shard']!r}, expected {shard}")
    return ShardRecord(
        shard=shard,
        seconds=float(values["seconds"]),
        files={str(k): (int(size), str(sha)) for k, (size, sha) in values["files"].items()},
        records=tuple(LinearRecord(**record) for record in values["records"]),
        scales={str(k): str(text) for k, text in values["scales"].items()},
        linear_seconds={str(k): float(s) for k, s in values["linear_seconds"].items()},
    )
