"""``vacc-deploy quantize``."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vacc_deploy.cli.options import (
    CHECKPOINT,
    again_with,
    common_options,
    downloading,
    emit,
    output_option,
    output_options,
    say,
)
from vacc_deploy.cli.quantize_options import (
    QuantizeCommand,
    quantization_options,
    read_options,
)
from vacc_deploy.cli.report import check_report, report_options, write_report
from vacc_deploy.errors import OutputError, UsageError

if TYPE_CHECKING:
    from vacc_deploy.quantize.result import QuantizeResult


@click.command("quantize", cls=QuantizeCommand)
@click.argument("checkpoint_dir", metavar="DIR", type=CHECKPOINT)
@output_option(
    "Set the output directory. Default: <DIR>-int8 for vamc, <DIR>-int8-codes for int8, else "
    "<DIR>-<format>; with several formats <DIR>-quantized"
)
@quantization_options
@click.option(
    "--resume", is_flag=True, help="Go on where an interrupted run of the same command stopped."
)
@output_options
@report_options
@common_options
@click.pass_context
def quantize_command(
    context: click.Context,
    checkpoint_dir: str,
    output: Path | None,
    device: str,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    report: Path | None,
    language: str | None,
    **given: Any,
) -> None:
    """Write per-channel symmetric int8 weights of the checkpoint in DIR.

    Without --calibration the weights are rounded to nearest. With it every linear is quantized both
    by GPTQ and by rounding, and the one with the smaller error on held-out text is kept.

    A run that was killed or failed after its first layer goes on with the same command and
    --resume. So does one that was stopped with Ctrl-C, which ends it at once.

    \b
    Examples:
      vacc-deploy quantize DeepSeek-R1-Distill-Qwen-7B-vacc
      vacc-deploy quantize DeepSeek-R1-Distill-Qwen-7B-vacc \\
          --calibration c4=c4-train.00000-of-01024.json.gz --calibration ceval=ceval-exam.zip
    """
    from vacc_deploy.cli.launcher import join_ranks
    from vacc_deploy.cli.terminal import quiet_transformers, terminal_progress
    from vacc_deploy.lookup.locate import locate
    from vacc_deploy.progress import SILENT
    from vacc_deploy.quantize.plan import check_before_download, check_before_weights
    from vacc_deploy.quantize.run import quantize

    if given["answers"] == "own":  # written by a model of transformers
        quiet_transformers()
    with join_ranks(os.environ, device) as (ranks, kept, own_device):
        is_first = ranks.rank == 0
        if resume and overwrite:
            raise _resume_or_overwrite()
        _check_report(report, language, dry_run, overwrite or resume)
        options = read_options(context, given, own_device)
        place: dict[str, Any] = {"output": output, "overwrite": overwrite, "resume": resume}
        progress = terminal_progress() if is_first else SILENT
        check = partial(check_before_download, options=options, ranks=ranks, progress=progress)
        source = locate(
            checkpoint_dir,
            again=partial(again_with, "checkpoint_dir"),
            needs_float=True,
            may_download=not dry_run,
            before_download=partial(check, **place),
            check_config=partial(check_before_weights, checkpoint_dir, options=options),
            downloading=downloading,
            say=say,
        )
        run: dict[str, Any] = {"progress": progress, "kept": kept, "ranks": ranks}
        result = quantize(source.directory, options=options, **place, dry_run=dry_run, **run)
    if is_first:
        if report is not None:
            _write_report(report, result, language, overwrite or resume)
        emit(result)


def _check_report(
    report: Path | None, language: str | None, dry_run: bool, overwrite: bool
) -> None:
    """Refuse a page that could not be written; a resumed run may find that of a finished one."""
    if dry_run and report is not None:
        raise UsageError("--dry-run writes nothing, so it has no page. Leave --report out.")
    check_report(report, language, overwrite=overwrite)


def _write_report(
    report: Path, result: QuantizeResult, language: str | None, overwrite: bool
) -> None:
    """Write the page of a finished output; an error says that only the page is missing."""
    from vacc_deploy.pages.quantize_page import quantize_page

    try:
        write_report(report, quantize_page, result, language, overwrite=overwrite)
    except (OutputError, OSError) as err:
        raise OutputError(
            f"{err}\nThe weights in {result.output_dir} are finished; only the page is missing. "
            "The same command with --resume writes it."
        ) from err


def _resume_or_overwrite() -> UsageError:
    """Return the refusal of both options together, with the command line of each."""
    from vacc_deploy.cli.launcher import launcher, read_launch
    from vacc_deploy.cli.resuming import overwrite_command, resume_command
    from vacc_deploy.quantize.plan import RESUME_OR_OVERWRITE

    way = launcher(os.environ, read_launch(os.environ))
    commands = resume_command(sys.argv, way), overwrite_command(sys.argv, way)
    return UsageError("\n  ".join((RESUME_OR_OVERWRITE, *commands)))
