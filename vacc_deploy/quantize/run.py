"""Quantize a checkpoint layer by layer into a new directory; memory holds one layer at a time.

Resumable at every layer: see ``quantize.records``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vacc_deploy.calibration.budget import budget_warnings, describe_calibration
from vacc_deploy.checkpoint import (
    Checkpoint,
    check_output,
    check_space,
    model_name,
    output_directory,
    partial_path,
    remove_leftovers,
)
from vacc_deploy.errors import CheckpointError
from vacc_deploy.models.directory_config import check_format
from vacc_deploy.models.vacc_config import check_vacc_config
from vacc_deploy.phases import PhaseClock
from vacc_deploy.progress import SILENT, UNCONTROLLED, Progress, RunControl
from vacc_deploy.quantize.assist import check_ranks
from vacc_deploy.quantize.calibration_rows import read_calibration_rows
from vacc_deploy.quantize.compute import choose_compute
from vacc_deploy.quantize.finish import finish_output, output_bytes
from vacc_deploy.quantize.forecast import Plan
from vacc_deploy.quantize.identity import identify
from vacc_deploy.quantize.options import OWN, QuantizeOptions
from vacc_deploy.quantize.ranks import ALONE, Ranks
from vacc_deploy.quantize.records import RUN_NAME, RunRecord
from vacc_deploy.quantize.result import QuantizeResult
from vacc_deploy.quantize.resume import Run, begin_run
from vacc_deploy.quantize.shards import write_shards
from vacc_deploy.quantize.standing import (
    Finished,
    Foreign,
    Standing,
    Unfinished,
    check_same_run,
    check_standing,
    look_at,
    take_finished,
)
from vacc_deploy.quantize.warm_up import warming_up
from vacc_deploy.solver.records import LinearRecord
from vacc_deploy.system import peak_memory_bytes


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
    planned = plan_run(
        checkpoint_dir,
        options=options,
        output=output,
        overwrite=overwrite,
        dry_run=dry_run,
        resume=resume,
        progress=progress,
        control=control,
        ranks=ranks,
    )
    if planned.result.already_finished:
        if not dry_run:
            remove_leftovers(planned.result.output_dir)
        return planned.result
    if dry_run:
        return forecast(planned, progress, control)
    return execute(planned, progress, control, ranks)


@dataclass(frozen=True)
class PlannedRun:
    """A run of which everything is checked and nothing is written.

    Attributes:
        plan: the checkpoint, the options, the calibration rows and the device.
        result: what is known before the work; the whole result where the output is finished.
        standing: what stands where the run would write.
        record: the run to begin, or the interrupted one to go on with.
        overwrite: whether an older output may be replaced.
        started: when the planning began.
    """

    plan: Plan
    result: QuantizeResult
    standing: Standing
    record: RunRecord
    overwrite: bool
    started: float

    @property
    def left(self) -> RunRecord | None:
        """The interrupted run that has left finished layers, to be continued or not."""
        return self.standing.run if isinstance(self.standing, Unfinished) else None


def plan_run(
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
) -> PlannedRun:
    """Check everything, read the calibration text, and look at what stands; see ``quantize``."""
    started = time.monotonic()
    options.check()
    checkpoint = _open_float(checkpoint_dir)
    for layout in options.formats:
        check_format(layout, checkpoint.config)
    output_dir = output or _default_output(checkpoint_dir, options.formats)
    standing = look_at(output_dir)
    if overwrite or not (resume and isinstance(standing, Finished)):
        # Else nothing is written, whatever stands there.
        check_output(output_dir, overwrite=overwrite, inputs=checkpoint.input_paths())
    check_standing(standing, resume=resume, overwrite=overwrite)
    if resume and isinstance(standing, Foreign):
        progress.warn(f"{RUN_NAME} in {partial_path(output_dir)} is damaged: beginning again")
    left = standing.run if isinstance(standing, Unfinished) else None
    # An interruption may also come before the first layer of a resumed run.
    with _telling(control, left, KeyboardInterrupt, SystemExit):
        compute = choose_compute(options.device, options.compute_dtype)
        with warming_up(compute):
            rows = read_calibration_rows(checkpoint, options, progress, dry_run=dry_run)
        check_ranks(checkpoint, rows, ranks)
        num_bytes = sum(output_bytes(checkpoint, layout) for layout in options.formats)
        num_finished = left.finished if resume and left else 0
        plan = Plan(checkpoint, options, rows, compute, num_bytes, num_finished)
        result = _planned_result(plan, output_dir)
        identity = identify(
            checkpoint, options, result.model, result.calibration, compute, ranks.count
        )
        record = RunRecord(identity, checkpoint.config.num_hidden_layers)
        planned = PlannedRun(plan, result, standing, record, overwrite, started)
        # A dry run writes no answers, so it cannot know whether those of then were the same.
        if resume and not (dry_run and options.answers == OWN):
            planned = _go_on(planned)
        if not planned.result.already_finished:
            # What an interrupted run has written is used again, or removed first.
            written = num_bytes - (left.num_bytes if left else 0)
            check_space(output_dir, written + plan.spooled_bytes(ranks.count, ranks.local_count))
            _warn(progress, result.warnings)
    return planned


def _go_on(planned: PlannedRun) -> PlannedRun:
    """Return the run as it goes on from what stands there.

    Raises:
        OutputError: what stands there was another run's, or is a damaged output.
    """
    standing, identity = planned.standing, planned.record.identity
    if isinstance(standing, Unfinished):
        check_same_run(standing, identity)
        return replace(planned, record=replace(standing.run, resumes=standing.run.resumes + 1))
    if isinstance(standing, Finished):
        overwrite = planned.overwrite
        finished = take_finished(planned.result, standing, identity, overwrite=overwrite)
        return replace(planned, result=finished or planned.result)
    return planned


def forecast(planned: PlannedRun, progress: Progress, control: RunControl) -> QuantizeResult:
    """Return the plan with what a trial says of its time; nothing is written."""
    with _telling(control, planned.left, KeyboardInterrupt, SystemExit):
        so_far = time.monotonic() - planned.started
        estimate, problem = planned.plan.predict_time(so_far, progress)
    problems = [f"No time is predicted: {problem}"] if problem else []
    _warn(progress, problems)
    warnings = (*planned.result.warnings, *problems)
    return replace(planned.result, dry_run=True, estimate=estimate, warnings=warnings)


def execute(
    planned: PlannedRun, progress: Progress, control: RunControl, ranks: Ranks
) -> QuantizeResult:
    """Write the output; after an error the finished layers stay in the partial directory."""
    plan, result, record = planned.plan, planned.result, planned.record
    checkpoint, options, compute = plan.checkpoint, plan.options, plan.compute
    run: Run | None = None

    def keeps() -> bool:
        # Until the run has begun, what an earlier one left is untouched.
        if run is None:
            return isinstance(planned.standing, (Unfinished, Foreign))
        return record.finished > 0

    overwrite, inputs = planned.overwrite, checkpoint.input_paths()
    with (
        _telling(control, record, BaseException),
        output_directory(
            result.output_dir, overwrite=overwrite, inputs=inputs, keeps=keeps
        ) as partial,
    ):
        clock = PhaseClock(compute.synchronize if options.profile else None)
        run = begin_run(partial, record, options.formats, progress=progress, clock=clock)
        files = write_shards(checkpoint, run, options, plan.rows, progress, control, ranks)
        result = _with_records(result, run, planned.started, options.dampening_frac)
        result = replace(result, peak_device_memory_bytes=compute.peak_memory_bytes())
        finish_output(checkpoint, run, result, options, files)
    _warn(progress, _record_warnings(result.linears, options.dampening_frac))
    return result


@contextmanager
def _telling(
    control: RunControl, run: RunRecord | None, *errors: type[BaseException]
) -> Iterator[None]:
    """Say to ``control`` what an unfinished run keeps, when one of ``errors`` ends the block."""
    try:
        yield
    except errors:
        if run is not None and run.finished:
            control.kept(run.finished, run.num_layers)
        raise


def _warn(progress: Progress, warnings: Sequence[str]) -> None:
    for warning in warnings:
        progress.warn(warning)


def _with_records(
    result: QuantizeResult, run: Run, started: float, dampening_frac: float
) -> QuantizeResult:
    """Add what is known once all layers are written."""
    layers = [run.record.shards[layer + 1] for layer in range(run.num_layers)]
    records = [record for layer in layers for record in layer.records]
    return replace(
        result,
        linears=tuple(records),
        warnings=(*result.warnings, *_record_warnings(records, dampening_frac)),
        seconds=time.monotonic() - started,
        peak_memory_bytes=peak_memory_bytes(),
    )


def _planned_result(plan: Plan, output_dir: Path) -> QuantizeResult:
    """Return what is known before the work: sizes, memory, calibration."""
    checkpoint, options, rows = plan.checkpoint, plan.options, plan.rows
    return QuantizeResult(
        model=model_name(checkpoint.directory),
        output_dir=output_dir,
        method=options.method,
        input_bytes=checkpoint.weight_bytes,
        output_bytes=plan.output_bytes,
        estimate=plan.estimate_memory(),
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
