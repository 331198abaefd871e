"""Begin a run in its partial directory, or go on where an interrupted one stopped.

Of an interrupted run only what has a record counts, and of that only what still has its hash.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from vacc_deploy.checkpoint.header import read_header
from vacc_deploy.checkpoint.output import clear_partial
from vacc_deploy.checkpoint.reader import read_tensor
from vacc_deploy.checkpoint.writer import WrittenFile, record_file, shard_name
from vacc_deploy.errors import CheckpointError
from vacc_deploy.formats.layouts import INT8
from vacc_deploy.formats.linears import codes_from
from vacc_deploy.phases import PhaseClock
from vacc_deploy.progress import Progress
from vacc_deploy.quantize.records import (
    RUN_NAME,
    RunRecord,
    ShardRecord,
    record_name,
    write_record,
    write_run,
)


@dataclass(frozen=True)
class Run:
    """A run that has begun.

    Attributes:
        partial: the directory in which it writes.
        formats: the layouts it writes.
        record: the run and its finished shards, as they are recorded in ``partial``.
        written: path within ``partial`` to the finished files that were found there.
        finished: the number of layers that need not be quantized again.
        clock: counts the seconds of this run by phase.
    """

    partial: Path
    formats: tuple[str, ...]
    record: RunRecord
    written: dict[str, WrittenFile]
    finished: int
    clock: PhaseClock = field(default_factory=PhaseClock)

    @property
    def num_layers(self) -> int:
        """The layers of the model; there are two shards more."""
        return self.record.num_layers

    def add(self, shard: ShardRecord) -> None:
        """Record a shard whose files are on the disk; safe from several threads."""
        write_record(self.partial, shard)
        self.record.shards[shard.shard] = shard

    def read_finished(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the codes int8 [out, in] and the scale float16 [out] of a finished linear.

        Args:
            name: the linear's full name, ``model.layers.<i>...``.
        """
        shard = int(name.split(".")[2]) + 1
        layout = INT8 if INT8 in self.formats else self.formats[0]
        path = self.partial / shard_path(self.formats, layout, shard, self.num_layers)
        infos = {info.name: info for info in read_header(path).tensors}
        scale = self.record.shards[shard].scales.get(name)
        return codes_from(
            layout,
            lambda tensor: read_tensor(infos[tensor]),
            name,
            None if scale is None else unpack_scale(scale),
        )


def shard_path(formats: Sequence[str], layout: str, shard: int, num_layers: int) -> str:
    """Return where a shard lies within the output: below its format where there are several."""
    name = shard_name(shard, num_layers + 2)
    return name if len(formats) == 1 else f"{layout}/{name}"


def pack_scale(scale: torch.Tensor) -> str:
    """Return a float16 scale [out] as base64 of its little-endian bytes."""
    return base64.b64encode(scale.numpy().astype("<f2").tobytes()).decode()


def unpack_scale(text: str) -> torch.Tensor:
    """Return what ``pack_scale`` packed."""
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float16)


def begin_run(
    partial: Path,
    record: RunRecord,
    formats: tuple[str, ...],
    *,
    progress: Progress,
    clock: PhaseClock,
) -> Run:
    """Begin in a claimed partial directory; all that ``record`` does not name is removed from it.

    Args:
        partial: the directory.
        record: a new run without shards, or an interrupted one; what is damaged is taken out.
        formats: the layouts to write.
        progress: told of the finished shards that are verified.
        clock: counts the seconds of this run by phase.
    """
    written = _verify_shards(partial, record, formats, progress) if record.shards else {}
    # The run goes on at the first layer that is missing, and makes those behind it again.
    finished, last = record.finished, record.num_layers + 1
    for shard in record.shards.keys() - {*range(finished + 1), last}:
        del record.shards[shard]
    files = {name for shard in record.shards.values() for name in shard.files}
    keep = {RUN_NAME, *map(record_name, record.shards), *files} if files else set[str]()
    # Records go before files and before the new file of the run: none may outlive what it tells
    # of, or count for another run.
    clear_partial(partial, keep=keep)
    write_run(partial, record)
    # Directories of formats: with one format the output is that format's.
    for layout in formats if len(formats) > 1 else ():
        (partial / layout).mkdir(exist_ok=True)
    written = {name: file for name, file in written.items() if name in files}
    return Run(partial, formats, record, written, finished, clock)


def _verify_shards(
    partial: Path, record: RunRecord, formats: tuple[str, ...], progress: Progress
) -> dict[str, WrittenFile]:
    """Take the shards that are damaged out of ``record``; return the files of the sound ones."""
    before, written = record.finished, dict[str, WrittenFile]()
    progress.start("Verifying finished shards", len(record.shards), "shards")
    for number, shard in sorted(record.shards.items()):
        # Names as this run would choose them: a record leads to no other file.
        names = [shard_path(formats, layout, number, record.num_layers) for layout in formats]
        try:
            if shard.files.keys() != set(names):
                raise CheckpointError(f"{partial / record_name(number)} is damaged")
            written |= {name: _verify(partial / name, *shard.files[name]) for name in names}
        except CheckpointError as err:
            progress.warn(f"shard {number + 1} of {record.num_layers + 2} is made again: {err}")
            del record.shards[number]
        progress.advance(1)
    progress.finish()
    if record.finished < before:
        progress.warn(f"going on after layer {record.finished} instead of {before}")
    return written


def _verify(path: Path, num_bytes: int, sha256: str) -> WrittenFile:
    """Return what is known of a finished file.

    Raises:
        CheckpointError: the file is missing or not what was written.
    """
    if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
        raise CheckpointError(f"{path} is missing")
    # The size first: it costs no reading.
    if path.stat().st_size != num_bytes:
        raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes, expected {num_bytes:,}")
    file = record_file(path)
    if file.sha256 != sha256:
        raise CheckpointError(f"{path} has another hash than when it was written")
    infos = read_header(path).tensors
    names = tuple(info.name for info in infos)
    return replace(file, tensors=names, tensor_bytes=sum(info.num_bytes for info in infos))
