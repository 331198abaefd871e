"""Quantize a checkpoint layer by layer into a new directory; memory holds one layer at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vacc_deploy.checkpoint import (
    Checkpoint,
    TensorInfo,
    check_output,
    check_space,
    model_name,
    output_directory,
)
from vacc_deploy.decoder import check_sequence_length
from vacc_deploy.errors import CheckpointError
from vacc_deploy.model_config import EMBEDDING, FINAL_NORM, LAYER_LINEARS, LM_HEAD, linear_name
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.quantize.calibrated import calibrate_layers
from vacc_deploy.quantize.directory import Shard, ShardSink, finish_directory
from vacc_deploy.quantize.formats import INT8, linear_tensors
from vacc_deploy.quantize.plan import (
    OWN,
    QuantizeOptions,
    budget_warnings,
    describe_calibration,
    memory_bytes,
    output_bytes,
)
from vacc_deploy.quantize.report import RTN, LinearRecord, QuantizeResult, summarize_layer
from vacc_deploy.quantize.rounded import round_layers
from vacc_deploy.tokenizer import Tokenizer
from vacc_deploy.vacc_config import check_vacc_config

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows
    from vacc_deploy.own_answers import OwnAnswers


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
        CheckpointError: the source is damaged or quantized already, or its context is shorter than
            a calibration row.
        CalibrationError: calibration text is missing, damaged or too short.
        QuantizationError: a weight or an activation is not finite.
        OutputError: the output cannot be written.
    """
    started = time.monotonic()
    options.check()
    checkpoint = _open_float(checkpoint_dir)
    output_dir = output or _default_output(checkpoint_dir)
    inputs = checkpoint.input_paths()
    check_output(output_dir, overwrite=overwrite, inputs=inputs)
    rows = _calibration_rows(checkpoint, options, progress, dry_run=dry_run)
    result = _plan(checkpoint, options, rows, output_dir)
    check_space(output_dir, result.output_bytes)
    for warning in result.warnings:
        progress.warn(warning)
    if dry_run:
        return replace(result, dry_run=True)
    with output_directory(output_dir, overwrite=overwrite, inputs=inputs) as partial:
        shards = checkpoint.config.num_hidden_layers + 2
        # Rounding is bound by reading and writing: the other cores are the writers'.
        threads = _torch_threads(1) if rows is None else nullcontext()
        with threads, ShardSink(partial, shards) as sink:
            records, seconds = _write_layers(checkpoint, options, rows, sink, progress)
            files = sink.finish()
        result = replace(
            result,
            linears=tuple(records),
            warnings=(*result.warnings, *_warnings(records)),
            seconds=time.monotonic() - started,
            peak_memory_bytes=_peak_memory_bytes(),
        )
        finish_directory(checkpoint, partial, result, options, files, seconds)
    for warning in _warnings(records):
        progress.warn(warning)
    return result


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _plan(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    rows: CalibrationRows | None,
    output_dir: Path,
) -> QuantizeResult:
    """Return what is known before the work: sizes, memory, calibration."""
    return QuantizeResult(
        model=model_name(checkpoint.directory),
        output_dir=output_dir,
        method=options.method,
        input_bytes=checkpoint.weight_bytes,
        output_bytes=output_bytes(checkpoint),
        memory_bytes=memory_bytes(checkpoint, options),
        calibration=describe_calibration(checkpoint.config, rows) if rows else None,
        warnings=budget_warnings(checkpoint.config, rows) if rows else (),
    )


def _open_float(checkpoint_dir: Path) -> Checkpoint:
    """Return the checked source; refuse int8 weights and a ``config_vacc.json`` that is not its."""
    checkpoint = Checkpoint.open(checkpoint_dir)
    if checkpoint.config.quantization_bit:
        raise CheckpointError(
            f"{checkpoint_dir} is quantized already. Give the float directory it was made from."
        )
    check_vacc_config(checkpoint_dir, checkpoint.config)
    return checkpoint


def _peak_memory_bytes() -> int:
    """Return the largest resident size this process has had.

    From the kernel's own line: what getrusage gives is inherited from the parent across exec.
    """
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _default_output(checkpoint_dir: Path) -> Path:
    """Return ``<checkpoint_dir>-int8``, also for ``.`` and ``..``, which have no name."""
    named = checkpoint_dir if checkpoint_dir.name not in ("", "..") else checkpoint_dir.resolve()
    return named.with_name(f"{named.name}-int8")


def _calibration_rows(
    checkpoint: Checkpoint, options: QuantizeOptions, progress: Progress, *, dry_run: bool
) -> CalibrationRows | None:
    if options.method == RTN:
        return None
    from vacc_deploy.calibration.rows import build_rows

    check_sequence_length(checkpoint.config, options.sequence_length)
    tokenizer = Tokenizer.from_dir(checkpoint.directory)
    return build_rows(
        options.sources,
        tokenizer,
        num_samples=options.num_samples,
        sequence_length=options.sequence_length,
        seed=options.seed,
        vocab_size=checkpoint.config.vocab_size,
        evaluation_share=options.evaluation_share,
        writer=_answer_writer(checkpoint, tokenizer, options, progress, dry_run=dry_run),
        progress=progress,
    )


def _answer_writer(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    options: QuantizeOptions,
    progress: Progress,
    *,
    dry_run: bool,
) -> OwnAnswers | None:
    if options.answers != OWN:
        return None
    if dry_run:
        progress.warn("A dry run writes no answers: the plan counts the data set's own.")
        return None
    from vacc_deploy.own_answers import OwnAnswers

    return OwnAnswers(
        checkpoint,
        tokenizer,
        max_new_tokens=options.max_answer_tokens,
        seed=options.seed,
        cache_dir=options.answers_cache,
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
    layers = (
        round_layers(checkpoint) if rows is None else calibrate_layers(checkpoint, options, rows)
    )
    last: Shard = {FINAL_NORM: checkpoint.info(FINAL_NORM)}
    if LM_HEAD in checkpoint.tensors:
        last[LM_HEAD] = checkpoint.info(LM_HEAD)
    # The two large shards that are only copied come first, beside the first layers' arithmetic.
    sink.put(0, {EMBEDDING: checkpoint.info(EMBEDDING)})
    sink.put(checkpoint.config.num_hidden_layers + 1, last)
    records, seconds = list[LinearRecord](), list[float]()
    progress.start("Quantizing", checkpoint.config.num_hidden_layers, "layers")
    before = time.monotonic()
    for layer in layers:
        shard: Shard = {**_kept_tensors(checkpoint, layer.index)}
        for linear in layer.linears:
            shard.update(linear_tensors(INT8, linear.name, linear.codes, linear.scale))
        sink.put(layer.index + 1, shard)
        records += layer.records
        seconds.append(time.monotonic() - before)
        before = time.monotonic()
        progress.advance(1, summarize_layer(layer.index, layer.records))
    progress.finish()
    return records, seconds


def _kept_tensors(checkpoint: Checkpoint, layer: int) -> dict[str, TensorInfo]:
    """Return the tensors of a layer that stay as they are: norms and biases."""
    weights = {f"{linear_name(layer, linear)}.weight" for linear in LAYER_LINEARS}
    names = checkpoint.config.layer_tensors(layer).keys() - weights
    return {name: checkpoint.info(name) for name in sorted(names)}


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
