"""Quantize a checkpoint layer by layer into a new directory; memory holds one layer at a time.

Resumable at every layer: see ``quantize.records``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vacc_deploy.checkpoint.changes import check_unchanged, unchanged
from vacc_deploy.outputs.output import output_directory, remove_leftovers
from vacc_deploy.phases import PhaseClock
from vacc_deploy.progress import SILENT, KeptLayers, Progress
from vacc_deploy.quantize.calibrated import calibrate_along
from vacc_deploy.quantize.finish import finish_output
from vacc_deploy.quantize.maxima import ranges_of
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.plan import PlannedRun, plan_run
from vacc_deploy.quantize.ranks import ALONE, Ranks
from vacc_deploy.quantize.records import Run
from vacc_deploy.quantize.result import QuantizeResult
from vacc_deploy.quantize.resume import begin_run
from vacc_deploy.quantize.shards import write_shards
from vacc_deploy.quantize.standing import Foreign
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
    kept: KeptLayers | None = None,
    ranks: Ranks = ALONE,
) -> QuantizeResult:
    """Write a directory of quantized weights, or one that holds a directory for each format.

    Once a layer is finished, an error or an interruption leaves ``<output>.partial``, from which a
    later call with ``resume`` goes on.

    Args:
        checkpoint_dir: a prepared directory, or any float checkpoint of a known architecture.
        options: method, calibration and formats.
        output: the directory to write; default ``<checkpoint_dir>-`` and the layout's ending, with
            several formats ``<checkpoint_dir>-quantized``.
        overwrite: replace an output of an earlier run, and forget the finished layers of an
            interrupted one.
        dry_run: validate (calibration text included) and plan only.
        resume: go on where an interrupted run with the same inputs, options and versions stopped;
            begin where there is none; do nothing where its output is finished. Not with
            ``overwrite``; a run that began with it keeps that right.
        progress: receives every layer.
        kept: tells, from then on, which finished layers stay if the run ends now.
        ranks: the processes of the run; every one calls this function with the same arguments, and
            the first one writes.

    Raises:
        UsageError: contradicting options.
        CheckpointError: the source is damaged, quantized already, too short, or changed meanwhile.
        CalibrationError: calibration text is missing, damaged or too short.
        UnsupportedModelError: a format cannot hold this model.
        QuantizationError: a weight or an activation is not finite.
        OutputError: the output cannot be written, or the interrupted run was another one.
    """
    planned = plan_run(
        checkpoint_dir,
        options=options,
        output=output,
        overwrite=overwrite,
        dry_run=dry_run,
        resume=resume,
        progress=progress,
        kept=kept,
        ranks=ranks,
    )
    if planned.result.already_finished:
        notes = list(planned.result.notes)
        if not dry_run and ranks.rank == 0:
            remove_leftovers(planned.result.output_dir, notes.append)
        return replace(planned.result, notes=tuple(notes))
    if dry_run:
        return forecast(planned, progress) if ranks.rank == 0 else planned.result
    return execute(planned, progress, kept or KeptLayers(), ranks)


def forecast(planned: PlannedRun, progress: Progress) -> QuantizeResult:
    """Return the plan with what samples say of time and memory; nothing stays."""
    # The run itself will need the time of the planning too.
    so_far = time.monotonic() - planned.started
    estimate, problem = planned.plan.forecast(so_far, progress)
    warnings = planned.result.warnings
    if problem:
        warnings += (f"No time is predicted: {problem}",)
        progress.warn(warnings[-1])
    return replace(planned.result, dry_run=True, estimate=estimate, warnings=warnings)


def execute(
    planned: PlannedRun, progress: Progress, kept: KeptLayers, ranks: Ranks
) -> QuantizeResult:
    """Write the output; after an error the finished layers stay in the partial directory.

    A rank other than the first writes nothing: it only calibrates along.
    """
    plan, result, has_begun = planned.plan, planned.result, False
    checkpoint, options, compute = plan.checkpoint, plan.options, plan.compute
    if ranks.rank > 0:
        assert plan.rows is not None, "rounding has one process"
        calibrate_along(checkpoint, options, plan.rows, compute=compute, ranks=ranks)
        return result
    # Waiting for the device at every phase costs speed: only where it was asked for.
    clock = PhaseClock(compute.synchronize if options.profile else None)
    run = replace(planned.run, clock=clock)

    def keeps() -> bool:
        # Until the run has begun, what an earlier one left is untouched.
        return run.finished > 0 if has_begun else isinstance(planned.standing, (Run, Foreign))

    notes = list(result.notes)
    output = output_directory(
        result.output_dir,
        overwrite=run.overwrite,
        source=checkpoint,
        keeps=keeps,
        say=notes.append,
    )
    with output, unchanged(checkpoint):
        # What was changed during the planning is told now and not after hours.
        check_unchanged(checkpoint)
        begin_run(run, checkpoint.config.linear_names(), progress)
        has_begun = True
        kept.follow(lambda: run.finished, run.num_layers, has_begun=True)
        files = write_shards(
            checkpoint, run, options, plan.rows, compute=compute, progress=progress, ranks=ranks
        )
        linears = tuple(record for layer in run.layers for record in layer.records)
        warnings = _linear_warnings(linears, options.dampening_frac)
        result = replace(
            result,
            linears=linears,
            audit=ranges_of(layer.maxima for layer in run.layers),
            warnings=(*result.warnings, *warnings),
            seconds=time.monotonic() - planned.started,
            peak_memory_bytes=peak_memory_bytes(),
            peak_device_memory_bytes=compute.peak_memory_bytes(),
        )
        finish_output(checkpoint, run, result, options, files)
    for warning in warnings:
        progress.warn(warning)
    return replace(result, notes=tuple(notes))


def _linear_warnings(records: Sequence[LinearRecord], dampening_frac: float) -> list[str]:
    """Return one line for each kind of weaker result."""
    # No error_rtn: a linear that was never to be solved, as down_proj with the fast effort.
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
            f"{len(damped)} linears needed more dampening than {dampening_frac:g} "
            f"(first {damped[0]})"
        )
    return lines
