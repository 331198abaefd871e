"""Write an int8 directory: shards in the background, then everything that lies beside them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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

Shard = dict[str, "torch.Tensor | TensorInfo"]


class ShardSink:
    """Writes finished shards in the background, one at a time, in order.

    A context manager: no write is under way any more when its block is left, whatever ended it.
    """

    def __init__(self, directory: Path, count: int) -> None:
        self._directory, self._count, self._next = directory, count, 0
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-writer")
        self._pending: Future[WrittenFile] | None = None
        self._written: list[WrittenFile] = []

    def __enter__(self) -> ShardSink:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown()

    def put(self, tensors: Shard) -> None:
        """Hand over the next shard; waits for the one before it, so that two are in memory."""
        self._wait()
        path = self._directory / shard_name(self._next, self._count)
        self._next += 1
        self._pending = self._pool.submit(write_shard, path, tensors)

    def finish(self) -> list[WrittenFile]:
        """Wait for the last shard, write the index, return all files."""
        self._wait()
        if self._next != self._count:
            raise AssertionError(f"{self._next} shards of {self._count} were written")
        return [*self._written, write_index(self._directory, self._written)]

    def _wait(self) -> None:
        if self._pending is not None:
            self._written.append(self._pending.result())
            self._pending = None


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
        text = int8_vacc_config(config, source / VACC_CONFIG_NAME)
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
