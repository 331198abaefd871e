"""Begin a run in its partial directory, or go on where an interrupted one stopped.

Of an interrupted run only what has a record counts, and of that only what still has its hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vacc_deploy.checkpoint.header import read_header
from vacc_deploy.errors import CheckpointError
from vacc_deploy.formats.layouts import INT8
from vacc_deploy.outputs.partial import clear_partial
from vacc_deploy.outputs.writer import WrittenFile, record_file
from vacc_deploy.progress import Progress
from vacc_deploy.quantize.record_checks import find_problem
from vacc_deploy.quantize.records import (
    RECORD_VERSION,
    RUN_NAME,
    Run,
    record_name,
    shard_path,
    write_record,
)


def begin_run(run: Run, linears: Mapping[str, tuple[int, int]], progress: Progress) -> None:
    """Begin in a claimed partial directory; all that ``run`` does not name is removed from it.

    Args:
        run: a new run without shards, or an interrupted one; what is damaged is taken out.
        linears: the linears of all layers, full name to [out, in].
        progress: shows the finished shards that are verified.
    """
    if run.shards:
        _verify_shards(run, linears, progress)
    # The run goes on at the first layer that is missing, and makes those behind it again.
    for shard in run.shards.keys() - {*range(run.finished + 1), run.num_layers + 1}:
        for name in run.shards.pop(shard).files:
            del run.written[name]
    records = {RUN_NAME, *map(record_name, run.shards)} if run.shards else set[str]()
    # Records go before files and before the new file of the run: none may outlive what it tells
    # of, or count for another run.
    clear_partial(run.partial, keep={*records, *run.written})
    # The shards have files of their own: this one never grows.
    names = ("identity", "num_layers", "overwrite", "resumes")
    values = {name: getattr(run, name) for name in names}
    write_record(run.partial / RUN_NAME, {"version": RECORD_VERSION, **values})
    # Directories of formats: with one format the output is that format's.
    for layout in run.formats if len(run.formats) > 1 else ():
        (run.partial / layout).mkdir(exist_ok=True)


def _verify_shards(run: Run, linears: Mapping[str, tuple[int, int]], progress: Progress) -> None:
    """Take the shards that are damaged out of ``run``, and note the files of the sound ones."""
    before, partial = run.finished, run.partial
    progress.start("Verifying finished shards", len(run.shards), "shards")
    for number, shard in sorted(run.shards.items()):
        # Names as this run would choose them: a record leads to no other file.
        names = [shard_path(run.formats, layout, number, run.num_layers) for layout in run.formats]
        try:
            if shard.files.keys() != set(names):
                raise CheckpointError(f"{partial / record_name(number)} is damaged")
            own = {name: linears[name] for name in linears if int(name.split(".")[2]) + 1 == number}
            needs_scales = INT8 not in run.formats
            problem = find_problem(shard.records, shard.scales, own, needs_scales=needs_scales)
            if problem:
                raise CheckpointError(f"{partial / record_name(number)} is damaged: {problem}")
            found = {name: _verify(partial / name, *shard.files[name]) for name in names}
        except CheckpointError as err:
            progress.warn(f"shard {number + 1} of {run.num_layers + 2} is made again: {err}")
            del run.shards[number]
        else:
            run.written.update(found)
        progress.advance(1)
    progress.finish()
    if run.finished < before:
        progress.warn(f"going on after layer {run.finished} instead of {before}")


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
