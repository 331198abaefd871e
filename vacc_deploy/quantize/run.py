"""Quantize a checkpoint layer by layer into a new directory; memory holds one layer at a time.

Resumable at every layer: see ``quantize.journal``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vacc_deploy.calibration.budget import budget_warnings, describe_calibration
from vacc_deploy.checkpoint import (
    Checkpoint,
    check_output,
    check_space,
    model_name,
    output_directory,
)
from vacc_deploy.errors import CheckpointError
from vacc_deploy.models.directory_config import check_format
from vacc_deploy.models.vacc_config import check_vacc_config
from vacc_deploy.phases import PhaseClock
from vacc_deploy.progress import SILENT, UNCONTROLLED, Progress, RunControl
from vacc_deploy.quantize.assist import check_ranks
from vacc_deploy.quantize.complete import finished_identity, take_finished
from vacc_deploy.quantize.compute import Compute, choose_compute
from vacc_deploy.quantize.finish import finish_output, output_bytes
from vacc_deploy.quantize.forecast import Plan
from vacc_deploy.quantize.identity import identify
from vacc_deploy.quantize.journal import has_finished_layers, unfinished_run
from vacc_deploy.quantize.options import OWN, QuantizeOptions
from vacc_deploy.quantize.ranks import ALONE, Ranks
from vacc_deploy.quantize.result import QuantizeResult
from vacc_deploy.quantize.resume import Run, begin_run, check_unfinished
from vacc_deploy.quantize.shards import write_shards
from vacc_deploy.quantize.warm_up import warming_up
from vacc_deploy.reference.decoder import check_sequence_length
from vacc_deploy.solver.records import RTN, LinearRecord
from vacc_deploy.system import peak_memory_bytes
from vacc_deploy.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vacc_deploy.calibration.own_answers import OwnAnswers
    from vacc_deploy.calibration.rows import CalibrationRows


def quantize(
    checkpoint_dir: Path,
    *,
    options: QuantizeOptions,
    output: Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    resume: bool = False,
    progress: Progress = SILENT,
    control: RunControl = UNCONTROLLED,
    ranks: Ranks = ALONE,
) -> QuantizeResult:
    """Write a directory of quantized weights, or one that holds a directory for each format.

    Once a layer is finished, an error or an interruption leaves ``<output>.partial``, from which a
    later call with ``resume`` goes on.

    Args:
        checkpoint_dir: a prepared directory, or any float checkpoint of the two architectures.
        options: method, calibration and formats.
        output: the directory to write; default ``<checkpoint_dir>-<format>``, with several formats
            ``<checkpoint_dir>-quantized``.
        overwrite: replace an output of an earlier run; without ``resume`` also forget the finished
            layers of an interrupted one.
        dry_run: validate (calibration text included) and plan only.
        resume: go on where an interrupted run with the same inputs, options and versions stopped;
            begin where there is none; do nothing where its output is finished.
        progress: told of every layer.
        control: may stop the run between two layers; told what an unfinished run keeps.
        ranks: the processes of the run, of which this is the first; see ``assist``.

    Raises:
        UsageError: contradicting options.
        CheckpointError: the source is damaged or quantized already, or its context is shorter than
            a calibration row.
        CalibrationError: calibration text is missing, damaged or too short.
        UnsupportedModelError: a format cannot hold this model.
        QuantizationError: a weight or an activation is not finite.
        OutputError: the output cannot be written, or the interrupted run was another one.
        StoppedError: ``control`` asked for it.
    """
    started = time.monotonic()
    options.check()
    checkpoint = _open_float(checkpoint_dir)
    for layout in options.formats:
        check_format(layout, checkpoint.config)
    output_dir = output or _default_output(checkpoint_dir, options.formats)
    request = _Request(checkpoint, options, output_dir, overwrite, dry_run, resume)
    standing = finished_identity(output_dir) if resume else None
    if overwrite or standing is None:  # else nothing is written, whatever stands there
        check_output(output_dir, overwrite=overwrite, inputs=checkpoint.input_paths())
    check_unfinished(output_dir, resume=resume, overwrite=overwrite)
    # An interruption may also come before the first layer of a resumed run.
    with _telling(control, output_dir, KeyboardInterrupt, SystemExit):
        return _quantize(request, standing, progress, control, ranks, started)


@dataclass(frozen=True)
class _Request:
    """What ``quantize`` was asked for, checked."""

    checkpoint: Checkpoint
    options: QuantizeOptions
    output_dir: Path
    overwrite: bool
    dry_run: bool
    resume: bool


def _quantize(
    request: _Request,
    standing: dict[str, Any] | None,
    progress: Progress,
    control: RunControl,
    ranks: Ranks,
    started: float,
) -> QuantizeResult:
    """Plan and work; ``standing`` is the identity of an output that stands already."""
    checkpoint, options, output_dir = request.checkpoint, request.options, request.output_dir
    compute = choose_compute(options.device, options.compute_dtype)
    with warming_up(compute):
        rows = _calibration_rows(checkpoint, options, progress, dry_run=request.dry_run)
    check_ranks(checkpoint, rows, ranks)
    plan = _plan(checkpoint, options, rows, compute, output_dir if request.resume else None)
    result = _planned_result(plan, output_dir)
    identity = identify(checkpoint, options, result.model, result.calibration, compute, ranks.count)
    # A dry run writes no answers, so it cannot tell whether a finished output has the same ones.
    if standing is not None and not (request.dry_run and options.answers == OWN):
        finished = take_finished(
            result, standing, identity, overwrite=request.overwrite, dry_run=request.dry_run
        )
        if finished is not None:
            return finished
    # What an interrupted run has written is used again, or removed first.
    written = result.output_bytes - _kept_bytes(output_dir)
    check_space(output_dir, written + plan.spooled_bytes(ranks.count, ranks.local_count))
    _warn(progress, result.warnings)
    if request.dry_run:
        folder = output_dir.resolve().parent
        estimate, problem = plan.forecast(folder, time.monotonic() - started, progress)
        problems = [f"No time is predicted: {problem}"] if problem else []
        _warn(progress, problems)
        warnings = (*result.warnings, *problems)
        return replace(result, dry_run=True, estimate=estimate, warnings=warnings)
    inputs = checkpoint.input_paths()
    with output_directory(
        output_dir, overwrite=request.overwrite, inputs=inputs, keeps=has_finished_layers
    ) as partial:
        num_layers = checkpoint.config.num_hidden_layers
        run = begin_run(
            partial, identity, options.formats, num_layers, resume=request.resume, progress=progress
        )
        synchronize = compute.synchronize if options.profile else None
        run = replace(run, clock=PhaseClock(synchronize))
        with closing(run.journal), _telling(control, output_dir, BaseException):
            files = write_shards(checkpoint, run, options, rows, progress, control, ranks)
            result = _with_records(result, run, started, options.dampening_frac)
            result = replace(result, peak_device_memory_bytes=compute.peak_memory_bytes())
            finish_output(checkpoint, run, result, options, files)
    _warn(progress, _record_warnings(result.linears, options.dampening_frac))
    return result


def _warn(progress: Progress, warnings: Sequence[str]) -> None:
    for warning in warnings:
        progress.warn(warning)


def _with_records(
    result: QuantizeResult, run: Run, started: float, dampening_frac: float
) -> QuantizeResult:
    """Add what is known once all layers are written."""
    entries = run.journal.recorded.entries
    records = [record for shard in range(run.num_layers) for record in entries[shard + 1].records]
    return replace(
        result,
        linears=tuple(records),
        warnings=(*result.warnings, *_record_warnings(records, dampening_frac)),
        seconds=time.monotonic() - started,
        peak_memory_bytes=peak_memory_bytes(),
    )


@contextmanager
def _telling(control: RunControl, output_dir: Path, *errors: type[BaseException]) -> Iterator[None]:
    """Tell ``control`` what an unfinished run keeps, when one of ``errors`` ends the block."""
    try:
        yield
    except errors:
        recorded = unfinished_run(output_dir)
        if recorded is not None:
            control.kept(recorded.finished, recorded.num_layers)
        raise


def _kept_bytes(output_dir: Path) -> int:
    """Return the bytes that an interrupted run has written already."""
    recorded = unfinished_run(output_dir)
    entries = recorded.entries.values() if recorded else ()
    return sum(size for entry in entries for size, _ in entry.files.values())


def _plan(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    rows: CalibrationRows | None,
    compute: Compute,
    resumed: Path | None,
) -> Plan:
    """Return the run as planned; ``resumed`` is the output whose finished layers stay."""
    recorded = unfinished_run(resumed) if resumed else None
    num_bytes = sum(output_bytes(checkpoint, layout) for layout in options.formats)
    finished = recorded.finished if recorded else 0
    return Plan(checkpoint, options, rows, compute, num_bytes, finished)


def _planned_result(plan: Plan, output_dir: Path) -> QuantizeResult:
    """Return what is known before the work: sizes and calibration."""
    checkpoint, options, rows = plan.checkpoint, plan.options, plan.rows
    return QuantizeResult(
        model=model_name(checkpoint.directory),
        output_dir=output_dir,
        method=options.method,
        input_bytes=checkpoint.weight_bytes,
        output_bytes=plan.output_bytes,
        formats=options.formats,
        calibration=describe_calibration(checkpoint.config, rows) if rows else None,
        warnings=budget_warnings(checkpoint.config, rows) if rows else (),
    )


def _open_float(checkpoint_dir: Path) -> Checkpoint:
    """Return the checked source; refuse int8 weights and a ``config_vacc.json`` that is not its."""
    checkpoint = Checkpoint.open(checkpoint_dir)
    if checkpoint.config.quantization_format:
        raise CheckpointError(
            f"{checkpoint_dir} is quantized already. Give the float directory it was made from."
        )
    check_vacc_config(checkpoint_dir, checkpoint.config)
    return checkpoint


def _default_output(checkpoint_dir: Path, formats: tuple[str, ...]) -> Path:
    """Return ``<checkpoint_dir>-<ending>``, also for ``.`` and ``..``, which have no name."""
    named = checkpoint_dir if checkpoint_dir.name not in ("", "..") else checkpoint_dir.resolve()
    ending = formats[0] if len(formats) == 1 else "quantized"
    return named.with_name(f"{named.name}-{ending}")


def _calibration_rows(
    checkpoint: Checkpoint, options: QuantizeOptions, progress: Progress, *, dry_run: bool
) -> CalibrationRows | None:
    if options.method == RTN:
        return None
    from vacc_deploy.calibration.rows import build_rows

    check_sequence_length(checkpoint.config, options.sequence_length)
    tokenizer = Tokenizer.from_dir(checkpoint.directory)
    writer = _answer_writer(checkpoint, tokenizer, options, progress, dry_run=dry_run)
    try:
        return build_rows(
            options.sources,
            tokenizer,
            num_samples=options.num_samples,
            sequence_length=options.sequence_length,
            seed=options.seed,
            vocab_size=checkpoint.config.vocab_size,
            evaluation_share=options.evaluation_share,
            writer=writer,
            progress=progress,
        )
    finally:
        if writer is not None:
            writer.release()


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
        progress.warn(
            "A dry run writes no answers: the plan counts the data set's own, and no time for "
            "writing them."
        )
        return None
    from vacc_deploy.calibration.own_answers import OwnAnswers

    return OwnAnswers(
        checkpoint,
        tokenizer,
        max_new_tokens=options.max_answer_tokens,
        seed=options.seed,
        cache_dir=options.answers_cache,
        device=options.device,
        progress=progress,
    )


def _record_warnings(records: Sequence[LinearRecord], dampening_frac: float) -> tuple[str, ...]:
    """Return one line for each kind of weaker result."""
    failed = [r.name for r in records if r.error_rtn is not None and r.dampening_frac is None]
    damped = [r.name for r in records if (r.dampening_frac or 0) > dampening_frac]
    lines = []
    if failed:
        lines.append(
            f"{len(failed)} linears were rounded because their Hessian could not be factored "
            f"(first {failed[0]})"
        )
    if damped:
        lines.append(
            f"{len(damped)} linears needed more damping than {dampening_frac:g} (first {damped[0]})"
        )
    return tuple(lines)
