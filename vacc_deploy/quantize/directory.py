"""Write the output: shards of every format in the background, then all that lies beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from vacc_deploy.assets import source_file
from vacc_deploy.checkpoint import (
    MANIFEST_NAME,
    Checkpoint,
    TensorInfo,
    WrittenFile,
    copy_file,
    relative_source,
    side_files,
    sync_directory,
    write_index,
    write_manifest,
    write_shard,
    write_text,
)
from vacc_deploy.quantize.formats import (
    INT8,
    dump_report,
    format_files,
    format_source_files,
    linear_tensors,
)
from vacc_deploy.quantize.journal import Entry
from vacc_deploy.quantize.memory import MAX_PENDING_LAYERS, NUM_WRITERS
from vacc_deploy.quantize.plan import QuantizeOptions
from vacc_deploy.quantize.report import (
    REPORT_NAME,
    TIMING_NAME,
    QuantizedLayer,
    QuantizedLinear,
    QuantizeResult,
)
from vacc_deploy.quantize.resume import Run, pack_scale, shard_path

Shard = dict[str, torch.Tensor | TensorInfo]


class ShardSink:
    """Writes finished shards in the background, and records each once it is on the disk.

    A context manager: no write is under way any more when its block is left, whatever ended it.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._count = run, run.num_layers + 2
        self._pool = ThreadPoolExecutor(NUM_WRITERS, thread_name_prefix="shard-writer")
        self._pending: set[Future[dict[str, WrittenFile]]] = set()
        self._calibrated: set[Future[dict[str, WrittenFile]]] = set()
        self._written = dict(run.written)

    def __enter__(self) -> ShardSink:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # After an error, what is quantized is still worth writing; an interruption cannot wait.
        is_hurried = kind is not None and not issubclass(kind, Exception)
        self._pool.shutdown(cancel_futures=is_hurried)

    def put(
        self,
        shard: int,
        kept: Mapping[str, TensorInfo],
        layer: QuantizedLayer | None = None,
        seconds: float = 0.0,
    ) -> None:
        """Hand over a shard; waits while as many as there are writers are open.

        Of calibrated layers only ``MAX_PENDING_LAYERS`` are taken at a time: beside what the solver
        holds there is little memory for more, and writing is the faster part.

        Args:
            shard: its number, from 0.
            kept: tensors that are copied from the source.
            layer: the quantized linears.
            seconds: what the layer took.
        """
        is_calibrated = layer is not None and layer.is_calibrated
        while len(self._pending) >= NUM_WRITERS or (
            is_calibrated and len(self._calibrated) >= MAX_PENDING_LAYERS
        ):
            self._collect(FIRST_COMPLETED)
        # A list, which the writer empties of the device's tensors: its arguments live as long as
        # it works.
        linears = list(layer.linears) if layer else []
        entry = Entry(
            shard,
            seconds,
            {},
            layer.records if layer else (),
            linear_seconds=_linear_seconds(layer) if layer else {},
        )
        future = self._pool.submit(self._write, entry, kept, linears)
        self._pending.add(future)
        if is_calibrated:
            self._calibrated.add(future)

    def drain(self) -> None:
        """Wait until all that was handed over is on the disk and recorded."""
        self._collect(ALL_COMPLETED)

    def finish(self) -> dict[str, WrittenFile]:
        """Wait for the last shard; return all files by their path within the output."""
        self.drain()
        expected = self._count * len(self._run.formats)
        if len(self._written) != expected:
            raise AssertionError(f"{len(self._written)} files of {expected} were written")
        return self._written

    def _collect(self, until: str) -> None:
        """Wait for pending writes; an error of one of them is raised here."""
        done, self._pending = wait(self._pending, return_when=until)
        self._calibrated &= self._pending
        for future in done:
            self._written |= future.result()

    def _write(
        self, entry: Entry, kept: Mapping[str, TensorInfo], linears: list[QuantizedLinear]
    ) -> dict[str, WrittenFile]:
        """Write a shard in every format, one after the other: each needs memory of its own.

        Args:
            entry: of the journal, but for what is known only now.
            kept: tensors that are copied from the source.
            linears: the quantized linears; used up.
        """
        run, files = self._run, dict[str, WrittenFile]()
        _move_to_host(linears)
        for layout in run.formats:
            name = shard_path(run.formats, layout, entry.shard, run.num_layers)
            tensors: Shard = {**kept}
            for linear in linears:
                tensors.update(linear_tensors(layout, linear.name, linear.codes, linear.scale))
            files[name] = write_shard(run.partial / name, tensors)
            sync_directory((run.partial / name).parent)
        # The codes come back exactly from any format once the scale is known.
        needs_scales = INT8 not in run.formats
        scales = {lin.name: pack_scale(lin.scale) for lin in linears} if needs_scales else {}
        sizes = {name: (file.num_bytes, file.sha256) for name, file in files.items()}
        run.journal.append(replace(entry, files=sizes, scales=scales))
        return files


def _linear_seconds(layer: QuantizedLayer) -> dict[str, float]:
    names = [record.name for record in layer.records]
    return dict(zip(names, layer.linear_seconds, strict=True)) if layer.linear_seconds else {}


def _move_to_host(linears: list[QuantizedLinear]) -> None:
    """Replace each linear by its like on the CPU; where it was, its memory is free at once."""
    for place in range(len(linears)):
        linears[place] = _on_host(linears[place])


def _on_host(linear: QuantizedLinear) -> QuantizedLinear:
    """Return a linear with its tensors on the CPU.

    On a stream of its own, the copy from a CUDA device runs beside the next layer's kernels.
    """
    if not linear.codes.is_cuda:
        return linear
    with torch.cuda.stream(torch.cuda.Stream(linear.codes.device)):
        return QuantizedLinear(linear.name, linear.codes.cpu(), linear.scale.cpu())


def finish_output(
    checkpoint: Checkpoint,
    run: Run,
    result: QuantizeResult,
    options: QuantizeOptions,
    files: Mapping[str, WrittenFile],
) -> None:
    """Write everything beside the weights.

    With one format the output is its directory. With several it holds a directory for each, whole
    in itself, and a manifest of their manifests.
    """
    _write_timing(run, result)
    if len(options.formats) == 1:
        written = [file for _, file in sorted(files.items())]
        _finish_format(checkpoint, run.partial, result, options, written)
        return
    manifests = []
    for layout in options.formats:
        inner = replace(result, output_dir=result.output_dir / layout)
        written = [file for name, file in sorted(files.items()) if name.startswith(f"{layout}/")]
        manifest = _finish_format(
            checkpoint, run.partial / layout, inner, replace(options, formats=(layout,)), written
        )
        manifests.append(replace(manifest, name=f"{layout}/{MANIFEST_NAME}"))
        sync_directory(run.partial / layout)
    _write_manifest(checkpoint, run.partial, result, options, manifests)


def _finish_format(
    checkpoint: Checkpoint,
    directory: Path,
    result: QuantizeResult,
    options: QuantizeOptions,
    shards: Sequence[WrittenFile],
) -> WrittenFile:
    """Write what lies beside the weights of one format; return its manifest."""
    config, source, (layout,) = checkpoint.config, checkpoint.directory, options.formats
    files = [*shards, write_index(directory, shards)]
    files += [copy_file(path, directory) for path in side_files(source, with_config=False)]
    for name, text in format_files(layout, config, source).items():
        files.append(write_text(directory / name, text))
    for name in format_source_files(layout, config):
        files.append(copy_file(source_file(name), directory))
    report = {
        "model": result.model,
        "options": options.to_dict(),
        "calibration": result.calibration,
        "totals": result.totals(),
        "warnings": list(result.warnings),
        "linears": [asdict(record) for record in result.linears],
    }
    files.append(write_text(directory / REPORT_NAME, dump_report(report)))
    return _write_manifest(checkpoint, directory, result, options, files)


def _write_manifest(
    checkpoint: Checkpoint,
    directory: Path,
    result: QuantizeResult,
    options: QuantizeOptions,
    files: Sequence[WrittenFile],
) -> WrittenFile:
    return write_manifest(
        directory,
        command="quantize",
        model=result.model,
        source={"path": relative_source(checkpoint.directory, result.output_dir)},
        options=options.to_dict(),
        files=files,
    )


def _write_timing(run: Run, result: QuantizeResult) -> None:
    """Write what differs from run to run: the one file that is in no manifest."""
    recorded = run.journal.recorded
    layers = [recorded.entries[shard] for shard in range(1, run.num_layers + 1)]
    timing: dict[str, Any] = {
        "seconds": round(result.seconds, 3),
        "layer_seconds": [round(entry.seconds, 3) for entry in layers],
        "linear_seconds": {
            name: round(seconds, 4)
            for entry in layers
            for name, seconds in entry.linear_seconds.items()
        },
        "peak_memory_bytes": result.peak_memory_bytes,
        "peak_device_memory_bytes": result.peak_device_memory_bytes,
        "phases": run.clock.to_dict(),
        "resumes": recorded.resumes,
        # By it a later --resume knows a finished output for its own.
        "identity": recorded.identity,
    }
    write_text(run.partial / TIMING_NAME, dump_report(timing))
