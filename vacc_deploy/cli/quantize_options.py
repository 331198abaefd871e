"""The options of ``vacc-deploy quantize`` that shape its result, and what they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from vacc_deploy.cli.options import DIRECTORY, Function
from vacc_deploy.errors import UsageError
from vacc_deploy.formats.layouts import FORMATS

if TYPE_CHECKING:
    from vacc_deploy.quantize.options import QuantizeOptions

# In the order of the help.
_OPTIONS = (
    click.option(
        "--method",
        type=click.Choice(["gptq", "rtn"]),
        help="Calibrated, or rounding to nearest.  [default: gptq with --calibration, else rtn]",
    ),
    click.option(
        "--calibration",
        "calibrations",
        multiple=True,
        metavar="NAME=PATH[:WEIGHT]",
        help="Calibration text: c4, ceval, alpaca, text or traces. Repeat to mix.",
    ),
    click.option(
        "--answers",
        type=click.Choice(["data", "own"]),
        default="data",
        help="Calibrate on the data sets' answers, or on the model's own, written once.",
    ),
    click.option(
        "--max-answer-tokens",
        type=click.IntRange(1, 32768),
        default=512,
        help="Where an own answer is cut off.",
    ),
    click.option(
        "--answers-cache",
        type=DIRECTORY,
        metavar="DIR",
        help="Keeps own answers.  [default: vacc-deploy/answers in the user's cache]",
    ),
    click.option(
        "--evaluation-share",
        type=click.FloatRange(0, 0.9),
        default=0.0,
        help="Documents to keep from calibration, for judging afterwards.",
    ),
    click.option("--num-samples", type=click.IntRange(1), default=128, help="Calibration rows."),
    click.option("--seq-len", type=click.IntRange(16), default=2048, help="Tokens of a row."),
    click.option("--seed", type=click.IntRange(0), default=0, help="Of the sampling."),
    click.option(
        "--act-order/--no-act-order",
        default=True,
        help="Settle the columns with the largest inputs first.",
    ),
    click.option(
        "--format",
        "formats",
        type=click.Choice(FORMATS),
        multiple=True,
        default=("int8",),
        help="Layout of the weights. Repeat for several: a directory each, the same integers in "
        "all.",
    ),
    click.option(
        "--effort",
        type=click.Choice(["fast", "full"]),
        default="full",
        help="fast rounds down_proj, whose inputs are the widest, and compares with no float "
        "stream.",
    ),
    click.option(
        "--shrinkage",
        type=click.FloatRange(0, 1),
        default=0.3,
        help="Of the input correlations, to hold on text unlike the calibration's.",
    ),
    click.option(
        "--dampening",
        "dampening_frac",
        type=click.FloatRange(0, 1, min_open=True),
        default=0.1,
        help="First damping of the Hessian to try, a fraction of its mean diagonal.",
    ),
    click.option(
        "--scale-search/--no-scale-search",
        default=True,
        help="Choose each row's scale by its expected error; else absmax / 127.",
    ),
    click.option("--device", default="cpu", help="Where to compute: cpu, cuda or cuda:N."),
    click.option(
        "--compute-dtype",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default="auto",
        help="Of the factors of large products; auto is bfloat16 where it is fast.",
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
    *("answers", "max_answer_tokens", "answers_cache", "evaluation_share", "num_samples"),
    *("seq_len", "act_order", "effort", "shrinkage", "dampening_frac", "scale_search"),
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
        context: of the command, which knows what the user gave and what is a default.
        given: the values of ``quantization_options`` by their names.
        device: where to compute, in place of the given one.

    Raises:
        UsageError: an option has no effect without calibration; or a source has a wrong form.
    """
    from vacc_deploy.datasets.sources import parse_source
    from vacc_deploy.quantize.options import QuantizeOptions

    values = dict(given)
    sources, length = values.pop("calibrations"), values.pop("seq_len")
    method = values.pop("method") or ("gptq" if sources else "rtn")
    if method == "rtn":
        _refuse_calibrated_only(context)
    return QuantizeOptions(
        method=method,
        sources=tuple(parse_source(text) for text in sources),
        sequence_length=length,
        formats=tuple(dict.fromkeys(values.pop("formats"))),
        **(values | {"device": device}),
    )


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
