"""``vacc-deploy verify``."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import click

from vacc_deploy.cli.model_options import activations_option
from vacc_deploy.cli.options import (
    CHECKPOINT,
    FILE,
    attn_factor_option,
    common_options,
    emit,
)
from vacc_deploy.cli.pair import locate_pair
from vacc_deploy.cli.report import check_report, report_options, write_report
from vacc_deploy.errors import UsageError
from vacc_deploy.reference.limits import MAX_KL, MAX_KL_FLOAT, MIN_TOP1, MIN_TOP1_FLOAT, Limits


def _refuse_nan(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    # It is in no range and out of none.
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is not a number.", ctx, param)
    return value


@click.command("verify")
@click.argument("deployed_dir", metavar="DIR", type=CHECKPOINT)
@click.option(
    "--reference",
    type=CHECKPOINT,
    metavar="DIR",
    help="Compare with this float model. Default: the directory that DIR was made from.",
)
@click.option(
    "--text",
    type=FILE,
    metavar="FILE",
    help="Compare on this UTF-8 text. Default: the package's own.",
)
@click.option(
    "--max-tokens", type=click.IntRange(16), default=2048, help="Limit the tokens that are used."
)
@click.option("--seq-len", type=click.IntRange(16), default=512, help="Set the tokens in a window.")
@click.option(
    "--max-kl",
    type=click.FloatRange(0),
    callback=_refuse_nan,
    help="Fail (exit code 3) above this mean KL, in nats; inf sets no limit.  "
    f"[default: {MAX_KL:g}, for float weights {MAX_KL_FLOAT:g}, with room for chance]",
)
@click.option(
    "--min-top1",
    type=click.FloatRange(0, 1),
    callback=_refuse_nan,
    help="Fail (exit code 3) below this share of equal top tokens; 0 sets no limit.  "
    f"[default: {MIN_TOP1:g}, for float weights {MIN_TOP1_FLOAT:g}, with room for chance]",
)
@click.option(
    "--no-limits",
    is_flag=True,
    help="Show the figures without a verdict on them; damaged files still fail.",
)
@click.option(
    "--audit",
    is_flag=True,
    help="Measure the largest activations too; fail where float16 cannot hold one.",
)
@attn_factor_option("as DIR reads it")
@activations_option
@report_options
@common_options
def verify_command(
    deployed_dir: str,
    reference: str | None,
    text: Path | None,
    max_tokens: int,
    seq_len: int,
    max_kl: float | None,
    min_top1: float | None,
    no_limits: bool,
    audit: bool,
    attn_factor: str | None,
    activations: str,
    report: Path | None,
    language: str | None,
) -> None:
    """Compare the deployed weights in DIR with the float model, on this CPU, and give a verdict.

    First every file is compared with the hash that its manifest gives. Then both models are walked
    layer by layer over the same text. Memory holds one stage of one layer, whatever the model's
    size. The exit code is 0 for passed, or for not judged with --no-limits, and 3 for failed.

    Example: vacc-deploy verify DeepSeek-R1-Distill-Qwen-7B-vacc-int8
    """
    from vacc_deploy.cli.terminal import terminal_progress
    from vacc_deploy.reference.verify import verify
    from vacc_deploy.reference.windows import check_text

    if no_limits and (max_kl is not None or min_top1 is not None):
        given = "--max-kl" if max_kl is not None else "--min-top1"
        raise UsageError(f"--no-limits and {given} exclude each other. Give one of them.")
    # There is no --overwrite: an older page is replaced, if it is ours and nobody has changed it.
    check_report(report, language, overwrite=True)

    check = partial(check_text, text) if text is not None else lambda: None
    deployed, float_model = locate_pair(deployed_dir, reference, check)
    result = verify(
        deployed,
        reference_dir=float_model,
        text_file=text,
        max_tokens=max_tokens,
        sequence_length=seq_len,
        limits=None if no_limits else Limits(max_kl, min_top1),
        attn_factor=attn_factor,
        activations=activations,
        audit=audit,
        progress=terminal_progress(),
    )
    if report is not None:
        from vacc_deploy.reference.verify import add_tokenizer

        result = add_tokenizer(result)
    # First what cannot fail: the comparison may have taken hours.
    emit(result)
    if report is not None:
        from vacc_deploy.pages.verify_page import verify_page

        write_report(report, verify_page, result, language, overwrite=True)
    if result.failures:
        raise click.exceptions.Exit(3)
