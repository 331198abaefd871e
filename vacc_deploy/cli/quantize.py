"""``vacc-deploy quantize``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from vacc_deploy.cli.options import DIRECTORY, common_options, emit, output_options
from vacc_deploy.layouts import FORMATS


@click.command("quantize")
@click.argument("checkpoint_dir", metavar="DIR", type=DIRECTORY)
@click.option(
    "--output",
    type=DIRECTORY,
    metavar="DIR",
    help="Default: <DIR>-<format>, with several formats <DIR>-quantized",
)
@click.option(
    "--method",
    type=click.Choice(["gptq", "rtn"]),
    help="Calibrated, or rounding to nearest.  [default: gptq with --calibration, else rtn]",
)
@click.option(
    "--calibration",
    "calibrations",
    multiple=True,
    metavar="NAME=PATH[:WEIGHT]",
    help="Calibration text: c4, ceval, alpaca, text or traces. Repeat to mix.",
)
@click.option(
    "--answers",
    type=click.Choice(["data", "own"]),
    default="data",
    help="Calibrate on the data sets' answers, or on the model's own, written once.",
)
@click.option(
    "--max-answer-tokens",
    type=click.IntRange(1, 32768),
    default=512,
    help="Where an own answer is cut off.",
)
@click.option(
    "--answers-cache",
    type=DIRECTORY,
    metavar="DIR",
    help="Keeps own answers.  [default: vacc-deploy/answers in the user's cache]",
)
@click.option(
    "--evaluation-share",
    type=click.FloatRange(0, 0.9),
    default=0.0,
    help="Documents to keep from calibration, for judging afterwards.",
)
@click.option("--num-samples", type=click.IntRange(1), default=128, help="Calibration rows.")
@click.option("--seq-len", type=click.IntRange(16), default=2048, help="Tokens of a row.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the sampling.")
@click.option(
    "--act-order/--no-act-order",
    default=True,
    help="Settle the columns with the largest inputs first.",
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(FORMATS),
    multiple=True,
    default=("int8",),
    help="Layout of the weights. Repeat for several: a directory each, the same integers in all.",
)
@click.option(
    "--effort",
    type=click.Choice(["fast", "full"]),
    default="full",
    help="fast rounds down_proj, whose inputs are the widest, and compares with no float stream.",
)
@click.option(
    "--shrinkage",
    type=click.FloatRange(0, 1),
    default=0.3,
    help="Of the input correlations, to hold on text unlike the calibration's.",
)
@click.option(
    "--dampening",
    "dampening_frac",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.1,
    help="First damping of the Hessian to try, a fraction of its mean diagonal.",
)
@click.option(
    "--scale-search/--no-scale-search",
    default=True,
    help="Choose each row's scale by its expected error; else absmax / 127.",
)
@click.option("--device", default="cpu", help="Where to compute: cpu, cuda or cuda:N.")
@click.option(
    "--compute-dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    help="Of the factors of large products; auto is bfloat16 where it is fast.",
)
@click.option(
    "--profile",
    is_flag=True,
    help="Give every phase its own seconds in quantize_timing.json, at some cost on CUDA.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on where an interrupted run of the same command stopped.",
)
@output_options
@common_options
def quantize_command(
    checkpoint_dir: Path,
    output: Path | None,
    method: str | None,
    calibrations: tuple[str, ...],
    answers: str,
    max_answer_tokens: int,
    answers_cache: Path | None,
    evaluation_share: float,
    num_samples: int,
    seq_len: int,
    seed: int,
    act_order: bool,
    formats: tuple[str, ...],
    effort: str,
    shrinkage: float,
    dampening_frac: float,
    scale_search: bool,
    device: str,
    compute_dtype: str,
    profile: bool,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Write per-channel symmetric int8 weights of the checkpoint in DIR.

    Without --calibration the weights are rounded to nearest. With it every linear is quantized both
    by GPTQ and by rounding, and the one with the smaller error on held-out text is kept.

    A run that was killed or failed after its first layer goes on with the same command and
    --resume. Ctrl-C finishes the current layer; a second one stops at once.

    \b
    Examples:
      vacc-deploy quantize DeepSeek-R1-Distill-Qwen-7B-vacc
      vacc-deploy quantize DeepSeek-R1-Distill-Qwen-7B-vacc \\
          --calibration c4=c4-train.00000-of-01024.json.gz --calibration ceval=ceval-exam.zip
    """
    from vacc_deploy.calibration.sources import parse_source
    from vacc_deploy.cli.progress import terminal_progress
    from vacc_deploy.cli.ranks import join_ranks
    from vacc_deploy.quantize.assist import assist
    from vacc_deploy.quantize.pipeline import QuantizeOptions, quantize

    with join_ranks(os.environ, device) as seat:
        options = QuantizeOptions(
            method=method or ("gptq" if calibrations else "rtn"),
            sources=tuple(parse_source(text) for text in calibrations),
            num_samples=num_samples,
            sequence_length=seq_len,
            seed=seed,
            act_order=act_order,
            answers=answers,
            max_answer_tokens=max_answer_tokens,
            answers_cache=answers_cache,
            evaluation_share=evaluation_share,
            formats=tuple(dict.fromkeys(formats)),
            effort=effort,
            shrinkage=shrinkage,
            dampening_frac=dampening_frac,
            scale_search=scale_search,
            device=seat.device,
            compute_dtype=compute_dtype,
            profile=profile,
        )
        if seat.ranks.rank:
            assist(checkpoint_dir, options=options, ranks=seat.ranks, control=seat.control)
            return
        result = quantize(
            checkpoint_dir,
            options=options,
            output=output,
            overwrite=overwrite,
            dry_run=dry_run,
            resume=resume,
            progress=terminal_progress(),
            control=seat.control,
            ranks=seat.ranks,
        )
    emit(result)
