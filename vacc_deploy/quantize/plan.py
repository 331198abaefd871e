"""Plan a quantization: every check, the calibration rows, and what stands where it would write."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vacc_deploy.calibration.budget import budget_warnings, describe_calibration
from vacc_deploy.checkpoint.caches import cache_of, default_output, snapshot_name
from vacc_deploy.checkpoint.manifest import model_name, name_source, stored_layout
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.checkpoint.soundness import check_weights
from vacc_deploy.datasets.sources import check_source
from vacc_deploy.errors import CheckpointError, OutputError, UsageError
from vacc_deploy.formats.layouts import GGUF, GPTQ, INT8, LAYOUTS
from vacc_deploy.gguf_file.key_values import check_architecture
from vacc_deploy.models.config import LAYER_LINEARS, ModelConfig
from vacc_deploy.models.directory_config import check_format, layout_notes, tensor_parallel_sizes
from vacc_deploy.models.vacc_config import check_vacc_config, ways_to_the_card
from vacc_deploy.outputs.file_system import check_space
from vacc_deploy.outputs.output import try_output
from vacc_deploy.outputs.output_rules import check_output
from vacc_deploy.outputs.partial import partial_path
from vacc_deploy.outputs.side_files import plan_side_files
from vacc_deploy.permissions import real_path
from vacc_deploy.progress import SILENT, KeptLayers, Progress
from vacc_deploy.quantize.compute import choose_compute
from vacc_deploy.quantize.finish import output_bytes, plan_gguf, temporary_bytes
from vacc_deploy.quantize.forecast import Plan
from vacc_deploy.quantize.identity import identify
from vacc_deploy.quantize.options import FAST, OWN, QuantizeOptions
from vacc_deploy.quantize.ranks import ALONE, Ranks, check_rows, check_same
from vacc_deploy.quantize.records import Run
from vacc_deploy.quantize.result import QuantizeResult
from vacc_deploy.quantize.rows import read_on_rank_0
from vacc_deploy.quantize.standing import (
    Finished,
    Foreign,
    Standing,
    continue_run,
    find_obstacle,
    look_at,
    take_finished,
)
from vacc_deploy.quantize.warm_up import warming_up
from vacc_deploy.reference.decoder import check_sequence_length
from vacc_deploy.solver import RTN

RESUME_OR_OVERWRITE = (
    "--resume goes on with what an earlier run has finished, --overwrite begins again. Give one of "
    "them."
)


@dataclass(frozen=True)
class PlannedRun:
    """A run of which everything is checked and nothing is written.

    Attributes:
        plan: weights, options, rows and device.
        result: what is known before the work; the whole result where the output is finished.
        run: the run to begin, or the interrupted one to go on with.
        standing: what stands where the run would write.
        started: when the planning began.
    """

    plan: Plan
    result: QuantizeResult
    run: Run
    standing: Standing
    started: float


def plan_run(
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
) -> PlannedRun:
    """Check everything, read the calibration text, and look at what stands; see ``quantize``."""
    started = time.monotonic()
    # First what costs little: calibration text is read, and weights are hashed, when all else fits.
    options.check()
    if resume and overwrite:
        raise UsageError(RESUME_OR_OVERWRITE)
    compute = choose_compute(options.device, options.compute_dtype)
    checkpoint = _open_float(checkpoint_dir, options.formats)
    output_dir = output or _default_output(checkpoint_dir, options.formats)
    standing: Standing = None
    notes, remarks = tuple[str, ...](), tuple[str, ...]()
    if ranks.rank == 0:  # the others write nothing, and may not even see the directory
        _say_ways(checkpoint, options, progress)
        standing = look_at(output_dir, options.formats)
        asked = {"resume": resume, "overwrite": overwrite, "dry_run": dry_run}
        notes = _say_notes(checkpoint, progress, is_default=output is None)
        notes += tuple(n for f in options.formats for n in layout_notes(f, checkpoint.config))
        notes += check_place(standing, output_dir, checkpoint, progress, **asked)
        # A finished output needs no weights. Else what is copied, and some of each linear, is read.
        if not (resume and isinstance(standing, Finished)):
            remarks = _check_values(checkpoint, options, progress)
    left = standing if isinstance(standing, Run) else None
    if resume and left and not dry_run and kept:
        # An interruption may also come before the first layer of a resumed run.
        kept.follow(lambda: left.finished, left.num_layers, has_begun=False)
    check_same(checkpoint, options, compute, ranks)
    with warming_up(compute):
        rows = read_on_rank_0(checkpoint, options, progress, ranks, dry_run=dry_run)
    check_rows(rows, ranks)
    plan = Plan(checkpoint, options, rows, compute, output_bytes(checkpoint, options))
    result = _planned_result(plan, output_dir, notes, remarks)
    made = result.model, result.calibration, compute
    identity = identify(checkpoint, options, *made, num_ranks=ranks.count)
    shape = options.formats, identity, checkpoint.config.num_hidden_layers
    run = Run(partial_path(output_dir), *shape, overwrite)
    # A dry run writes no answers, so it cannot know whether those of then were the same.
    known = None if dry_run and options.answers == OWN else identity
    if resume and left:
        run = continue_run(left, known, checkpoint.config.num_hidden_layers)
    elif resume and isinstance(standing, Finished) and known is not None:
        result = take_finished(result, standing, known, progress)
    result = replace(result, already_finished=ranks.share(result.already_finished))
    if ranks.rank == 0 and not result.already_finished:
        _check_space(plan, output_dir, left, ranks)
        for warning in result.warnings:
            progress.warn(warning)
    plan = replace(plan, num_finished=run.finished)
    return PlannedRun(plan, result, run, standing=standing, started=started)


def check_before_download(
    name: str,
    *,
    options: QuantizeOptions,
    output: Path | None,
    overwrite: bool,
    resume: bool,
    progress: Progress = SILENT,
    ranks: Ranks = ALONE,
) -> None:
    """Refuse what can be refused before anything of the model ``name`` is downloaded.

    Raises: see ``quantize``.
    """
    options.check()
    choose_compute(options.device, options.compute_dtype)
    if ranks.rank > 0:  # only the first one reads text and writes
        return
    for source in options.sources:
        check_source(source)
    output_dir = output or default_output(Path(_output_name(name, options.formats)))
    standing = look_at(output_dir, options.formats)
    asked = {"resume": resume, "overwrite": overwrite, "dry_run": False}
    check_place(standing, output_dir, None, progress, **asked)


def check_before_weights(repository: str, config: ModelConfig, options: QuantizeOptions) -> None:
    """Refuse a model by its configuration alone.

    Raises: see ``quantize``.
    """
    if config.quantization_format:
        raise _quantized_already(repository)
    for layout in options.formats:
        check_format(layout, config)
    if GGUF in options.formats:
        check_architecture(config)
    if options.method != RTN:
        check_sequence_length(config, options.sequence_length)


def _say_ways(checkpoint: Checkpoint, options: QuantizeOptions, progress: Progress) -> None:
    """Say before hours of work which directories vamc will be able to read."""
    ways = ways_to_the_card(checkpoint.config)
    if ways and INT8 in options.formats:
        progress.warn(ways)
    elif ways:
        progress.say(ways)


def _say_notes(checkpoint: Checkpoint, progress: Progress, *, is_default: bool) -> tuple[str, ...]:
    """Refuse contradicting tokenizer files before hours of work; say and return what is noted.

    ``is_default``: nobody has said where the output goes.
    """
    notes = plan_side_files(checkpoint, with_config=False).to_notes()
    for note in notes:
        progress.say(note)
    if is_default and (cache := cache_of(checkpoint.directory)):
        notes += (f"the source lies in {cache}, so the output lies in the working directory.",)
    return notes


def check_place(
    standing: Standing,
    output_dir: Path,
    source: Checkpoint | None,
    progress: Progress,
    *,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
) -> tuple[str, ...]:
    """Refuse to write where something stands; return the notes of a dry run, which may do so.

    A run that goes on may replace an output if it was begun so.
    """
    problem = find_obstacle(standing, resume=resume, overwrite=overwrite)
    if problem and not dry_run:
        raise OutputError(problem)
    if problem:
        return (f"without --dry-run this is refused: {problem}",)
    if isinstance(standing, Foreign) and resume:
        progress.warn(f"{standing.lost} is damaged: beginning again")
    if resume and isinstance(standing, Finished):  # nothing will be written
        return ()
    may_replace = overwrite or (resume and isinstance(standing, Run) and standing.overwrite)
    rules: dict[str, Any] = {"overwrite": may_replace, "source": source, "progress": progress}
    if dry_run:
        return check_output(output_dir, dry_run=True, **rules)
    try_output(output_dir, **rules)
    return ()


def _check_values(
    checkpoint: Checkpoint, options: QuantizeOptions, progress: Progress
) -> tuple[str, ...]:
    """Refuse values that no model can work with or no format can hold; return the remarks."""
    remarks = check_weights(checkpoint, progress, whole=False)
    if GGUF in options.formats:
        remarks += plan_gguf(checkpoint, options).check()
    return remarks


def _check_space(plan: Plan, output_dir: Path, left: Run | None, ranks: Ranks) -> None:
    # What an interrupted run has written is used again, or removed first.
    needed = plan.output_bytes - (left.num_bytes if left else 0)
    needed += temporary_bytes(plan.checkpoint, plan.options)
    check_space(output_dir, needed + plan.spooled_bytes(ranks.count, ranks.local_count))


def _planned_result(
    plan: Plan, output_dir: Path, notes: tuple[str, ...], remarks: tuple[str, ...]
) -> QuantizeResult:
    """Return what is known before the work: sizes, memory, calibration."""
    checkpoint, options, rows = plan.checkpoint, plan.options, plan.rows
    rounded = LAYER_LINEARS[-1:] if options.effort == FAST else ()  # down_proj
    warnings = remarks
    if rows:
        warnings += (*rows.warnings, *budget_warnings(checkpoint.config, rows, rounded))
    return QuantizeResult(
        model=model_name(checkpoint.directory),
        output_dir=output_dir,
        method=options.method,
        input_bytes=checkpoint.weight_bytes,
        output_bytes=plan.output_bytes,
        formats=options.formats,
        calibration=describe_calibration(checkpoint.config, rows, rounded) if rows else None,
        warnings=warnings,
        notes=notes,
        tensor_parallel=(
            {GPTQ: tuple(tensor_parallel_sizes(checkpoint.config))}
            if GPTQ in options.formats
            else {}
        ),
    )


def _open_float(checkpoint_dir: Path, formats: tuple[str, ...]) -> Checkpoint:
    """Return the checked source of float weights, which all of ``formats`` can hold."""
    checkpoint = Checkpoint.open(checkpoint_dir)
    if stored_layout(checkpoint_dir, checkpoint.config):
        raise _quantized_already(checkpoint_dir)
    check_vacc_config(checkpoint_dir, checkpoint.config)
    for layout in formats:
        check_format(layout, checkpoint.config)
    return checkpoint


def _quantized_already(place: Path | str) -> CheckpointError:
    return CheckpointError(
        f"{place} is quantized already. Give the float directory it was made from"
        f"{name_source(Path(place))}."
    )


def _default_output(checkpoint_dir: Path, formats: tuple[str, ...]) -> Path:
    """Return ``<checkpoint_dir>-<ending>``, also for ``.`` and ``..``, which have no name.

    That of a snapshot in a cache has the name of its repository and lies in the working directory:
    the cache is not ours to write to.

    Raises:
        OutputError: the working directory lies in a cache, too.
    """
    named = checkpoint_dir if checkpoint_dir.name not in ("", "..") else real_path(checkpoint_dir)
    # Not all links resolved: a link that stands elsewhere gives its own name.
    if repository := snapshot_name(real_path(named.parent) / named.name):
        return default_output(Path(_output_name(repository, formats)))
    place = Path() if cache_of(named) else named.parent
    return default_output(place / _output_name(named.name, formats))


def _output_name(name: str, formats: tuple[str, ...]) -> str:
    return f"{name}-{LAYOUTS[formats[0]].ending if len(formats) == 1 else 'quantized'}"
