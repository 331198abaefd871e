"""Begin a run in its partial directory, or go on where an interrupted one stopped.

Of an interrupted run only what its journal lists counts, and of that only what still has its hash.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from vacc_deploy.checkpoint import (
    JOURNAL_NAME,
    TensorInfo,
    WrittenFile,
    clear_partial,
    partial_path,
    read_header,
    read_tensor,
    record_file,
    remove_path,
    shard_name,
)
from vacc_deploy.errors import CheckpointError, OutputError, list_problems
from vacc_deploy.formats.layouts import INT8
from vacc_deploy.formats.linears import codes_from
from vacc_deploy.phases import PhaseClock
from vacc_deploy.progress import Progress
from vacc_deploy.quantize.identity import differences
from vacc_deploy.quantize.journal import Entry, Journal, Recorded, read_journal

Finished = Callable[[str], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Run:
    """A run that has begun.

    Attributes:
        partial: its directory.
        formats: the layouts it writes.
        num_layers: of the model; there are two shards more.
        journal: open for more entries.
        written: path within ``partial`` to the finished files that were found there.
        finished: the number of layers that need not be quantized again.
        clock: counts the seconds of this run by phase.
    """

    partial: Path
    formats: tuple[str, ...]
    num_layers: int
    journal: Journal
    written: dict[str, WrittenFile]
    finished: int
    clock: PhaseClock = field(default_factory=PhaseClock)

    def read_finished(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the codes int8 [out, in] and the scale float16 [out] of a finished linear.

        Args:
            name: the linear's full name, ``model.layers.<i>...``.
        """
        shard = int(name.split(".")[2]) + 1
        layout = INT8 if INT8 in self.formats else self.formats[0]
        path = self.partial / shard_path(self.formats, layout, shard, self.num_layers)
        infos = {info.name: info for info in read_header(path).tensors}
        scale = self.journal.recorded.entries[shard].scales.get(name)
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


def check_unfinished(output_dir: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse to destroy the finished layers of an interrupted run without being told to.

    Raises:
        OutputError: gives their number and the two ways on; or their journal is damaged, or
            another version's.
    """
    if overwrite and not resume:
        return
    partial = partial_path(output_dir)
    recorded = read_journal(partial)
    if resume:
        return
    if recorded is None and (partial / JOURNAL_NAME).exists() and _has_shards(partial):
        raise OutputError(
            f"{partial} holds shards of an interrupted run, but {JOURNAL_NAME} there is damaged, "
            "so that none can be used again. Give --overwrite to begin again."
        )
    if recorded is None or not recorded.finished:
        return
    raise OutputError(
        f"{partial} holds {recorded.finished} of {recorded.num_layers} finished "
        "layers of an interrupted run. Give --resume to go on from there, or --overwrite to begin "
        "again."
    )


def _has_shards(partial: Path) -> bool:
    """Return whether a shard lies there, or in the directory of a format."""
    return any(any(partial.glob(f"{below}model-*.safetensors")) for below in ("", "*/"))


def begin_run(
    partial: Path,
    identity: dict[str, Any],
    formats: tuple[str, ...],
    num_layers: int,
    *,
    resume: bool,
    progress: Progress,
) -> Run:
    """Begin in a claimed partial directory; with ``resume`` go on from its finished layers.

    Raises:
        OutputError: the finished layers come from other inputs, options or versions; every
            difference is named; or only another version can read their journal.
    """
    recorded = read_journal(partial) if resume else None
    if resume and recorded is None and (partial / JOURNAL_NAME).exists():
        progress.warn(f"the journal in {partial} is damaged: beginning again")
    if recorded is None or not recorded.finished:
        clear_partial(partial)
        _make_directories(partial, formats)
        journal = Journal(partial, Recorded(identity, num_layers))
        return Run(partial, formats, num_layers, journal, {}, 0)
    different = differences(recorded.identity, identity)
    if different:
        raise OutputError(
            f"{partial} was begun with other inputs, options or versions:\n"
            f"{list_problems(different, limit=len(different))}\n"
            "Give the same as then to resume, or --overwrite to begin again."
        )
    return _go_on(partial, recorded, formats, progress)


def _make_directories(partial: Path, formats: tuple[str, ...]) -> None:
    for layout in formats if len(formats) > 1 else ():
        (partial / layout).mkdir(exist_ok=True)


def _go_on(partial: Path, recorded: Recorded, formats: tuple[str, ...], progress: Progress) -> Run:
    """Verify the recorded shards; keep the sound ones up to the first layer that is not."""
    num_layers, written, sound = recorded.num_layers, dict[str, WrittenFile](), dict[int, Entry]()
    progress.start("Verifying finished shards", len(recorded.entries), "shards")
    for shard, entry in sorted(recorded.entries.items()):
        expected = {shard_path(formats, layout, shard, num_layers) for layout in formats}
        try:
            if entry.files.keys() != expected:
                raise CheckpointError(f"the journal lists {sorted(entry.files)}")
            files = {name: _verify(partial / name, *entry.files[name]) for name in expected}
        except CheckpointError as err:
            progress.warn(f"shard {shard + 1} of {num_layers + 2} is made again: {err}")
            continue
        finally:
            progress.advance(1)
        sound[shard] = entry
        written |= files
    progress.finish()
    finished = replace(recorded, entries=sound).finished
    if finished < recorded.finished:
        progress.warn(f"going on after layer {finished} instead of {recorded.finished}")
    kept = {
        shard: entry
        for shard, entry in sound.items()
        if shard <= finished or shard == num_layers + 1
    }
    # The journal first: no entry may outlive its file.
    journal = Journal(partial, replace(recorded, resumes=recorded.resumes + 1, entries=kept))
    names = {name for entry in kept.values() for name in entry.files}
    _remove_others(partial, names, formats)
    return Run(
        partial,
        formats,
        num_layers,
        journal,
        {name: file for name, file in written.items() if name in names},
        finished,
    )


def _verify(path: Path, num_bytes: int, sha256: str) -> WrittenFile:
    """Return the record of a finished file.

    Raises:
        CheckpointError: the file is missing or not what was written.
    """
    if path.is_symlink() or not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if path.stat().st_size != num_bytes:
        raise CheckpointError(f"{path} has {path.stat().st_size:,} bytes, expected {num_bytes:,}")
    file = record_file(path)
    if file.sha256 != sha256:
        raise CheckpointError(f"{path} has another hash than when it was written")
    infos: tuple[TensorInfo, ...] = read_header(path).tensors
    names = tuple(info.name for info in infos)
    return replace(file, tensors=names, tensor_bytes=sum(info.num_bytes for info in infos))


def _remove_others(partial: Path, kept: set[str], formats: tuple[str, ...]) -> None:
    """Remove what is neither ours to keep nor a directory of a format."""
    run_files = {path.name for path in partial.iterdir() if path.name.startswith(".vacc-deploy-")}
    directories = set(formats) if len(formats) > 1 else set()
    for path in partial.iterdir():
        is_directory = path.is_dir() and not path.is_symlink()
        if path.name in directories and is_directory:
            for inner in path.iterdir():
                if f"{path.name}/{inner.name}" not in kept:
                    remove_path(inner)
        elif path.name not in kept and path.name not in run_files:
            remove_path(path)
    _make_directories(partial, formats)
