"""Write an int8 directory: shards in the background, then everything that lies beside them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vacc_deploy.assets import SOURCE_FILES, source_file
from vacc_deploy.checkpoint import (
    Checkpoint,
    TensorInfo,
    WrittenFile,
    copy_file,
    relative_source,
    shard_name,
    side_files,
    write_index,
    write_manifest,
    write_shard,
    write_text,
)
from vacc_deploy.model_config import CONFIG_NAME
from vacc_deploy.quantize.formats import dump_report, int8_config, int8_vacc_config
from vacc_deploy.quantize.plan import QuantizeOptions
from vacc_deploy.quantize.report import REPORT_NAME, TIMING_NAME, QuantizeResult
from vacc_deploy.vacc_config import VACC_CONFIG_NAME, needs_vacc_config

if TYPE_CHECKING:
    import torch

_WRITERS = 3

Shard = dict[str, "torch.Tensor | TensorInfo"]


class ShardSink:
    """Writes finished shards in the background.

    Three at a time, so that the layers need not wait for the two large shards that are only copied.
    A context manager: no write is under way any more when its block is left, whatever ended it.
    """

    def __init__(self, directory: Path, count: int) -> None:
        self._directory, self._count = directory, count
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="shard-writer")
        self._pending: set[Future[WrittenFile]] = set()
        self._written: list[WrittenFile] = []

    def __enter__(self) -> ShardSink:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def put(self, index: int, tensors: Shard) -> None:
        """Hand over shard ``index`` (from 0); waits while as many as there are writers are open."""
        if len(self._pending) >= _WRITERS:
            self._collect(FIRST_COMPLETED)
        path = self._directory / shard_name(index, self._count)
        self._pending.add(self._pool.submit(write_shard, path, tensors))

    def finish(self) -> list[WrittenFile]:
        """Wait for the last shard, write the index, return all files."""
        self._collect(ALL_COMPLETED)
        if len(self._written) != self._count:
            raise AssertionError(f"{len(self._written)} shards of {self._count} were written")
        shards = sorted(self._written, key=lambda file: file.name)
        return [*shards, write_index(self._directory, shards)]

    def _collect(self, until: str) -> None:
        """Wait for pending writes; an error of one of them is raised here."""
        done, self._pending = wait(self._pending, return_when=until)
        self._written += [future.result() for future in done]


def finish_directory(
    checkpoint: Checkpoint,
    partial: Path,
    result: QuantizeResult,
    options: QuantizeOptions,
    files: list[WrittenFile],
    layer_seconds: Sequence[float],
) -> None:
    """Write everything beside the weights."""
    config, source = checkpoint.config, checkpoint.directory
    files = [*files, *(copy_file(path, partial) for path in side_files(source, with_config=False))]
    files.append(write_text(partial / CONFIG_NAME, int8_config(config)))
    if needs_vacc_config(config):
        files += [copy_file(source_file(name), partial) for name in SOURCE_FILES]
        text = int8_vacc_config(config, source)
        files.append(write_text(partial / VACC_CONFIG_NAME, text))
    report = {
        "model": result.model,
        "options": options.to_dict(),
        "calibration": result.calibration,
        "totals": result.totals(),
        "warnings": list(result.warnings),
        "linears": [asdict(record) for record in result.linears],
    }
    files.append(write_text(partial / REPORT_NAME, dump_report(report)))
    timing = {
        "seconds": round(result.seconds, 3),
        "layer_seconds": [round(value, 3) for value in layer_seconds],
        "peak_memory_bytes": result.peak_memory_bytes,
    }
    # Times differ from run to run, so this one file is not in the manifest.
    write_text(partial / TIMING_NAME, dump_report(timing))
    write_manifest(
        partial,
        command="quantize",
        model=result.model,
        source={"path": relative_source(source, result.output_dir)},
        options=options.to_dict(),
        files=files,
    )
