"""Quantize a checkpoint layer by layer into a new directory; memory holds one layer at a time."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vacc_deploy.assets import SOURCE_FILES, source_file
from vacc_deploy.checkpoint import (
    Checkpoint,
    TensorInfo,
    WrittenFile,
    check_output,
    check_space,
    copy_file,
    model_name,
    output_directory,
    relative_source,
    shard_name,
    side_files,
    write_index,
    write_manifest,
    write_shard,
    write_text,
)
from vacc_deploy.decoder import DecoderLayer, Positions, embed, float_reader, walk_layer
from vacc_deploy.errors import CheckpointError, QuantizationError, UsageError
from vacc_deploy.model_config import (
    CONFIG_NAME,
    EMBEDDING,
    FINAL_NORM,
    LAYER_LINEARS,
    LM_HEAD,
    linear_name,
)
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.quantize.formats import (
    dump_report,
    int8_config,
    int8_tensors,
    int8_vacc_config,
)
from vacc_deploy.quantize.int8 import quantize_rounding
from vacc_deploy.quantize.layer import LayerQuantizer
from vacc_deploy.quantize.report import (
    GPTQ,
    REPORT_NAME,
    RTN,
    TIMING_NAME,
    LinearRecord,
    QuantizeResult,
    summarize_layer,
)
from vacc_deploy.tokenizer import Tokenizer
from vacc_deploy.vacc_config import VACC_CONFIG_NAME, needs_vacc_config

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows
    from vacc_deploy.calibration.sources import CalibrationSource

HELD_OUT_SHARE = 0.1
BATCH_TOKENS = 2048
KEPT_BYTES = 2 << 30
_RUNTIME_BYTES = 400 << 20

Shard = dict[str, "torch.Tensor | TensorInfo"]


@dataclass(frozen=True)
class QuantizeOptions:
    """What shapes the result of ``quantize``.

    Attributes:
        method: ``gptq`` (needs sources) or ``rtn``.
        sources: calibration files, mixed by weight.
        num_samples: calibration rows.
        sequence_length: tokens of a row.
        seed: of the sampling.
        act_order: settle the columns with the largest inputs first.
    """

    method: str
    sources: tuple[CalibrationSource, ...] = ()
    num_samples: int = 128
    sequence_length: int = 2048
    seed: int = 0
    act_order: bool = True

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            UsageError: says which.
        """
        if self.method == GPTQ and not self.sources:
            raise UsageError(
                "--method gptq needs text to calibrate on: give --calibration NAME=PATH (c4, ceval, "
                "alpaca or text), or use --method rtn."
            )
        if self.method == RTN and self.sources:
            raise UsageError("--method rtn uses no calibration data. Leave --calibration out.")
        if self.method == GPTQ and self.num_samples < 2:
            raise UsageError(
                "--num-samples must be at least 2: one row in ten, and at least one, is held out "
                "to compare gptq with rounding."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the options for the report and the manifest."""
        if self.method == RTN:
            return {"method": RTN, "formats": ["int8"]}
        return {
            "method": self.method,
            "formats": ["int8"],
            "num_samples": self.num_samples,
            "sequence_length": self.sequence_length,
            "seed": self.seed,
            "act_order": self.act_order,
            "held_out_share": HELD_OUT_SHARE,
        }


def quantize(
    checkpoint_dir: Path,
    *,
    options: QuantizeOptions,
    output: Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> QuantizeResult:
    """Write an int8 directory.

    Args:
        checkpoint_dir: a prepared directory, or any float checkpoint of the two architectures.
        options: method and calibration.
        output: the directory to write; default ``<checkpoint_dir>-int8``.
        overwrite: replace an output of an earlier run.
        dry_run: validate (calibration text included) and plan only.
        progress: told of every layer.

    Raises:
        UsageError: contradicting options.
        CheckpointError: the source is damaged or quantized already.
        CalibrationError: calibration text is missing, damaged or too short.
        QuantizationError: a weight or an activation is not finite.
        OutputError: the output cannot be written.
    """
    started = time.monotonic()
    options.check()
    checkpoint = Checkpoint.open(checkpoint_dir)
    if checkpoint.config.quantization_bit:
        raise CheckpointError(
            f"{checkpoint_dir} is quantized already. Give the float directory it was made from."
        )
    output_dir = output or checkpoint_dir.with_name(f"{checkpoint_dir.resolve().name}-int8")
    check_output(output_dir, overwrite=overwrite, inputs=(checkpoint_dir,))
    rows = _calibration_rows(checkpoint, options, progress)
    result = QuantizeResult(
        model=model_name(checkpoint_dir),
        output_dir=output_dir,
        method=options.method,
        input_bytes=checkpoint.weight_bytes,
        output_bytes=_output_bytes(checkpoint),
        memory_bytes=_memory_bytes(checkpoint, options),
        calibration=rows.to_dict() if rows else None,
        dry_run=dry_run,
    )
    check_space(output_dir, result.output_bytes)
    if dry_run:
        return result
    with output_directory(output_dir, overwrite=overwrite, inputs=(checkpoint_dir,)) as partial:
        sink = ShardSink(partial, checkpoint.config.num_hidden_layers + 2)
        records, seconds = _write_layers(checkpoint, options, rows, sink, progress)
        files = sink.finish()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        result = replace(
            result,
            linears=tuple(records),
            warnings=_warnings(records),
            seconds=time.monotonic() - started,
            peak_memory_bytes=peak,
        )
        _finish_directory(checkpoint, partial, result, options, files, seconds)
    for warning in result.warnings:
        progress.warn(warning)
    return result


class ShardSink:
    """Writes finished shards in the background, one at a time, in order."""

    def __init__(self, directory: Path, count: int) -> None:
        self._directory, self._count, self._next = directory, count, 0
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-writer")
        self._pending: Future[WrittenFile] | None = None
        self._written: list[WrittenFile] = []

    def put(self, tensors: Shard) -> None:
        """Hand over the next shard; waits for the one before it, so that two are in memory."""
        self._wait()
        path = self._directory / shard_name(self._next, self._count)
        self._next += 1
        self._pending = self._pool.submit(write_shard, path, tensors)

    def finish(self) -> list[WrittenFile]:
        """Wait for the last shard, write the index, return all files."""
        self._wait()
        self._pool.shutdown()
        if self._next != self._count:
            raise AssertionError(f"{self._next} shards of {self._count} were written")
        return [*self._written, write_index(self._directory, self._written)]

    def _wait(self) -> None:
        if self._pending is not None:
            self._written.append(self._pending.result())
            self._pending = None


def _calibration_rows(
    checkpoint: Checkpoint, options: QuantizeOptions, progress: Progress
) -> CalibrationRows | None:
    if options.method == RTN:
        return None
    from vacc_deploy.calibration.rows import build_rows

    return build_rows(
        options.sources,
        Tokenizer.from_dir(checkpoint.directory),
        num_samples=options.num_samples,
        sequence_length=options.sequence_length,
        seed=options.seed,
        vocab_size=checkpoint.config.vocab_size,
        progress=progress,
    )


def _write_layers(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    rows: CalibrationRows | None,
    sink: ShardSink,
    progress: Progress,
) -> tuple[list[LinearRecord], list[float]]:
    """Write every shard; return the records of all linears and the seconds of each layer."""
    layers = _round_layers(checkpoint) if rows is None else _calibrate(checkpoint, options, rows)
    sink.put({EMBEDDING: checkpoint.info(EMBEDDING)})
    records, seconds = list[LinearRecord](), list[float]()
    progress.start("Quantizing", checkpoint.config.num_hidden_layers, "layers")
    before = time.monotonic()
    for index, (tensors, layer_records) in enumerate(layers):
        shard: Shard = {**_kept_tensors(checkpoint, index), **tensors}
        sink.put(shard)
        records += layer_records
        seconds.append(time.monotonic() - before)
        before = time.monotonic()
        progress.advance(1, summarize_layer(index, layer_records))
    progress.finish()
    last: Shard = {FINAL_NORM: checkpoint.info(FINAL_NORM)}
    if LM_HEAD in checkpoint.tensors:
        last[LM_HEAD] = checkpoint.info(LM_HEAD)
    sink.put(last)
    return records, seconds


def _kept_tensors(checkpoint: Checkpoint, layer: int) -> dict[str, TensorInfo]:
    """Return the tensors of a layer that stay as they are: norms and biases."""
    weights = {f"{linear_name(layer, linear)}.weight" for linear in LAYER_LINEARS}
    names = checkpoint.config.layer_tensors(layer).keys() - weights
    return {name: checkpoint.info(name) for name in sorted(names)}


def _round_layers(
    checkpoint: Checkpoint,
) -> Iterator[tuple[dict[str, torch.Tensor], list[LinearRecord]]]:
    """Yield every layer quantized by rounding; no forward pass, no calibration."""
    for layer in range(checkpoint.config.num_hidden_layers):
        tensors, records = dict[str, torch.Tensor](), []
        for linear in LAYER_LINEARS:
            name = linear_name(layer, linear)
            try:
                codes, scale = quantize_rounding(checkpoint.read(f"{name}.weight"))
            except QuantizationError as err:
                raise QuantizationError(
                    f"{name}.weight in {checkpoint.directory}: {err}. Download the file "
                    f"{checkpoint.info(f'{name}.weight').path.name} again."
                ) from err
            tensors.update(int8_tensors(name, codes, scale))
            records.append(LinearRecord(name, RTN))
        yield tensors, records


def _calibrate(
    checkpoint: Checkpoint, options: QuantizeOptions, rows: CalibrationRows
) -> Iterator[tuple[dict[str, torch.Tensor], list[LinearRecord]]]:
    """Yield every layer quantized by GPTQ, carrying the rows through the quantized layers."""
    config, tokens = checkpoint.config, torch.from_numpy(rows.tokens)
    num_rows, sequence_length = tokens.shape
    num_held_out = max(1, round(num_rows * HELD_OUT_SHARE))
    positions = Positions.build(config, sequence_length)
    read = float_reader(checkpoint)
    with torch.inference_mode():
        hidden_states = embed(checkpoint, tokens)
        for index in range(config.num_hidden_layers):
            quantizer = LayerQuantizer(
                num_fit_rows=num_rows - num_held_out,
                num_held_out_tokens=num_held_out * sequence_length,
                act_order=options.act_order,
            )
            walk_layer(
                DecoderLayer(config, index, positions, read),
                hidden_states,
                batch_rows=max(1, BATCH_TOKENS // sequence_length),
                observer=quantizer,
                kept_bytes=KEPT_BYTES,
            )
            yield quantizer.tensors, quantizer.records


def _warnings(records: Sequence[LinearRecord]) -> tuple[str, ...]:
    """Return one line for each kind of weaker result."""
    failed = [r.name for r in records if r.error_rtn is not None and r.dampening_frac is None]
    damped = [r.name for r in records if (r.dampening_frac or 0) > 0.01]
    lines = []
    if failed:
        lines.append(
            f"{len(failed)} linears were rounded because their Hessian could not be factored "
            f"(first {failed[0]})"
        )
    if damped:
        lines.append(f"{len(damped)} linears needed more damping than 0.01 (first {damped[0]})")
    return tuple(lines)


def _output_bytes(checkpoint: Checkpoint) -> int:
    config, total = checkpoint.config, checkpoint.weight_bytes
    for layer in range(config.num_hidden_layers):
        for linear in LAYER_LINEARS:
            out_features, in_features = config.linear_shape(linear)
            stored = checkpoint.info(f"{linear_name(layer, linear)}.weight").num_bytes
            total += out_features * in_features + 2 * out_features - stored
    return total


def _memory_bytes(checkpoint: Checkpoint, options: QuantizeOptions) -> int:
    """Return an estimate of the peak memory: one layer, never all of them."""
    config = checkpoint.config
    layer = sum(out * inp for out, inp in map(config.linear_shape, LAYER_LINEARS))
    if options.method == RTN:
        return _RUNTIME_BYTES + 3 * layer
    tokens = options.num_samples * options.sequence_length
    width = max(config.intermediate_size, config.hidden_size)
    kept = tokens * config.intermediate_size * 4
    down = 4 * config.intermediate_size * config.hidden_size
    return (
        _RUNTIME_BYTES
        + 4 * tokens * config.hidden_size
        + (kept if kept <= KEPT_BYTES else 0)
        + 4 * 4 * BATCH_TOKENS * config.intermediate_size
        + (3 if options.act_order else 2) * 4 * width * width
        + 5 * down
        + layer
    )


def _finish_directory(
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
