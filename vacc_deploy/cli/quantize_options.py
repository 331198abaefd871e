"""The options of ``vacc-deploy quantize`` that shape its result, and what they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource

from vacc_deploy.cli.options import DIRECTORY, Function
from vacc_deploy.errors import UsageError
from vacc_deploy.formats.layouts import FORMATS
from vacc_deploy.quantize.options import DATA, FAST, FULL, OWN, QuantizeOptions
from vacc_deploy.solver.records import GPTQ, RTN

# In the order of the help.
_OPTIONS = (
    click.option(
        "--method",
        type=click.Choice([GPTQ, RTN]),
        help="Calibrate (gptq) or round to nearest (rtn).  "
        "[default: gptq with --calibration, else rtn]",
    ),
    click.option(
        "--calibration",
        "calibrations",
        multiple=True,
        metavar="NAME=PATH[:WEIGHT]",
        help="Calibrate on this text: c4, ceval, alpaca, text or traces. Repeat to mix.",
    ),
    click.option(
        "--answers",
        type=click.Choice([DATA, OWN]),
        default=QuantizeOptions.answers,
        help="Calibrate on the answers in the data sets, or on answers that the model writes once.",
    ),
    click.option(
        "--max-answer-tokens",
        type=click.IntRange(1, 32768),
        default=QuantizeOptions.max_answer_tokens,
        help="Cut off answers that the model writes at this length.",
    ),
    click.option(
        "--answers-cache",
        type=DIRECTORY,
        metavar="DIR",
        help="Keep the model's answers here.  [default: vacc-deploy/answers in the user's cache]",
    ),
    click.option(
        "--evaluation-share",
        type=click.FloatRange(0, 0.9),
        default=QuantizeOptions.evaluation_share,
        help="Set aside this fraction of the documents for judging afterwards.",
    ),
    click.option(
        "--num-samples",
        type=click.IntRange(1),
        default=QuantizeOptions.num_samples,
        help="Number of calibration rows.",
    ),
    click.option(
        "--seq-len",
        "sequence_length",
        type=click.IntRange(16),
        default=QuantizeOptions.sequence_length,
        help="Tokens in each calibration row.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=QuantizeOptions.seed,
        help="Random seed for choosing calibration documents.",
    ),
    click.option(
        "--act-order/--no-act-order",
        default=QuantizeOptions.act_order,
        help="Solve the columns with the largest inputs first.",
    ),
    click.option(
        "--format",
        "formats",
        type=click.Choice(FORMATS),
        multiple=True,
        default=QuantizeOptions.formats,
        help="Store the weights in this layout. Repeat for several: one directory each, the same "
        "integers in all.",
    ),
    click.option(
        "--effort",
        type=click.Choice([FAST, FULL]),
        default=QuantizeOptions.effort,
        help="fast saves time: it rounds down_proj, whose inputs are the widest, and does not "
        "compare with the float model's states.",
    ),
    click.option(
        "--shrinkage",
        type=click.FloatRange(0, 1),
        default=QuantizeOptions.shrinkage,
        help="Shrink Hessian off-diagonals by this fraction (helps on text unlike the calibration "
        "set).",
    ),
    click.option(
        "--dampening",
        "dampening_frac",
        type=click.FloatRange(0, 1, min_open=True),
        default=QuantizeOptions.dampening_frac,
        help="First damping of the Hessian to try, a fraction of its mean diagonal.",
    ),
    click.option(
        "--scale-search/--no-scale-search",
        default=QuantizeOptions.scale_search,
        help="Choose each row's scale by its expected error, or take absmax / 127.",
    ),
    click.option(
        "--device",
        default=QuantizeOptions.device,
        help="Compute here: cpu, cuda or cuda:N.",
    ),
    click.option(
        "--compute-dtype",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default=QuantizeOptions.compute_dtype,
        help="Round the factors of large products to this dtype; auto is bfloat16 where it is "
        "fast.",
    ),
    click.option(
        "--profile",
        is_flag=True,
        help="Give every phase its own seconds in quantize_timing.json, at some cost on CUDA.",
    ),
)
# What rounding does not look at. The seed is harmless, since rounding draws nothing; so are the
# device, which gives the same integers wherever it is, and the profile, which is about time.
_CALIBRATED_ONLY = (
    "answers",
    "max_answer_tokens",
    "answers_cache",
    "evaluation_share",
    "num_samples",
    "sequence_length",
    "act_order",
    "effort",
    "shrinkage",
    "dampening_frac",
    "scale_search",
    "compute_dtype",
)


def quantization_options(function: Function) -> Function:
    """Add every option from which ``read_options`` makes the library's."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def read_options(context: click.Context, given: Mapping[str, Any], device: str) -> QuantizeOptions:
    """Return what was asked for.

    Args:
        context: click's context of the command; it knows what the user gave and what is a default.
        given: values of ``quantization_options`` by their names.
        device: device to compute on, in place of the given one.

    Raises:
        UsageError: an option has no effect without calibration; or a source has a wrong form.
    """
    from vacc_deploy.datasets.sources import parse_source

    values = dict(given)
    sources = values.pop("calibrations")
    values["method"] = values["method"] or (GPTQ if sources else RTN)
    if values["method"] == RTN:
        _refuse_calibrated_only(context)
    values["sources"] = tuple(parse_source(text) for text in sources)
    values["formats"] = tuple(dict.fromkeys(values["formats"]))  # a repeated one counts once
    return QuantizeOptions(**(values | {"device": device}))


def _refuse_calibrated_only(context: click.Context) -> None:
    """Refuse options of the command line that plain rounding would ignore without a word.

    Raises:
        UsageError: names them all.
    """
    names = [_spell(context, name) for name in _CALIBRATED_ONLY if _is_given(context, name)]
    if not names:
        return
    if _is_given(context, "method"):
        names = ["--calibration"] * _is_given(context, "calibrations") + names
        raise UsageError(
            f"--method rtn uses no calibration data. Leave {', '.join(names)} out, or use --method "
            "gptq with --calibration NAME=PATH."
        )
    raise UsageError(
        "Without --calibration the weights are rounded to nearest, with no effect of "
        f"{', '.join(names)}. Give --calibration NAME=PATH (c4, ceval, alpaca, text or traces), or "
        f"leave {'it' if len(names) == 1 else 'them'} out."
    )


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) == ParameterSource.COMMANDLINE


def _spell(context: click.Context, name: str) -> str:
    """Return an option as it was given: ``--no-`` forms have names of their own."""
    (option,) = (param for param in context.command.params if param.name == name)
    is_negated = context.params[name] is False and option.secondary_opts
    return (option.secondary_opts if is_negated else option.opts)[0]
