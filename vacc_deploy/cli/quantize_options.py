"""The options of ``vacc-deploy quantize`` that shape its result, and what they ask for."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import click

from vacc_deploy.cli.options import DIRECTORY, Function, given_options
from vacc_deploy.datasets import list_kinds
from vacc_deploy.errors import UsageError
from vacc_deploy.formats.layouts import FORMATS, GPTQ_ONE_GROUP, GROUP_SIZE
from vacc_deploy.formats.layouts import GPTQ as GPTQ_LAYOUT
from vacc_deploy.quantize.options import (
    DATA,
    FAST,
    FULL,
    GGUF_EMBEDDINGS,
    GGUF_F16,
    OWN,
    PRESETS,
    QuantizeOptions,
)
from vacc_deploy.solver import GPTQ, RTN

_ONLY_8_BITS = (
    "quantize writes 8 bits, per channel, symmetric, and nothing else; see docs/formats.md."
)
_RENAMED = {"fp16": "fp16 is now called vamc."}


class QuantizationChoice(click.Choice):
    """A choice that says what there is to choose from, where somebody looks for 4 bits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value, or raise click's error with one more sentence."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as err:
            message = f"{err.message.rstrip()} {_RENAMED.get(str(value), _ONLY_8_BITS)}"
            raise click.BadParameter(message, ctx, param) from err


class QuantizeCommand(click.Command):
    """Says of options that other quantizers have why they are missing."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, or raise click's error with one more sentence."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as err:
            if not re.search("bit|group|sym", err.option_name):
                raise
            message = f"{err.message} {_ONLY_8_BITS}"
            raise click.NoSuchOption(err.option_name, message, err.possibilities, ctx) from err


def _option(
    flag: str, text: str, kind: click.ParamType | None = None, *, name: str = "", **more: Any
) -> Callable[[Function], Function]:
    """Return an option whose default is that of the field of ``QuantizeOptions``.

    Args:
        flag: as on the command line.
        text: help text.
        kind: values that are accepted; None to follow the default.
        name: name of the field, where it is not that of the flag.
        more: other settings of click.
    """
    name = name or flag.partition("/")[0].removeprefix("--").replace("-", "_")
    default = getattr(QuantizeOptions, name)
    return click.option(flag, name, type=kind, default=default, help=text, **more)


# In the order of the help.
_OPTIONS = (
    click.option(
        "--method",
        type=QuantizationChoice([GPTQ, RTN]),
        help="Calibrate (gptq) or round to nearest (rtn).  "
        "[default: gptq with --calibration, else rtn]",
    ),
    click.option(
        "--calibration",
        "calibrations",
        multiple=True,
        metavar="NAME=PATH[:WEIGHT]",
        help=f"Calibrate on this text: {list_kinds()}. Repeat to mix.",
    ),
    _option(
        "--answers",
        "Calibrate on the answers in the data sets, or on answers that the model writes once.",
        click.Choice([DATA, OWN]),
    ),
    _option(
        "--max-answer-tokens",
        "Cut off answers that the model writes at this length.",
        click.IntRange(1, 32768),
    ),
    click.option(
        "--answers-cache",
        type=DIRECTORY,
        metavar="DIR",
        help="Keep the model's answers here.  [default: vacc-deploy/answers in the user's cache]",
    ),
    _option(
        "--evaluation-share",
        "Set aside this fraction of the documents for judging afterwards.",
        click.FloatRange(0, 0.9),  # MAX_EVALUATION_SHARE of calibration.split
    ),
    click.option(
        "--preset",
        type=click.Choice(list(PRESETS)),
        default="full",
        help="Set the amount of work: full for a GPU; light for a CPU (48 rows of 512 tokens, "
        "--effort fast).",
    ),
    _option("--num-samples", "Number of calibration rows.", click.IntRange(1)),
    _option(
        "--seq-len", "Tokens in each calibration row.", click.IntRange(16), name="sequence_length"
    ),
    _option("--seed", "Random seed for choosing calibration documents.", click.IntRange(0)),
    _option("--act-order/--no-act-order", "Solve the columns with the largest inputs first."),
    _option(
        "--format",
        "Store the weights in this layout. Repeat for several: one directory each, the same "
        "integers in all.",
        QuantizationChoice(FORMATS),
        name="formats",
        multiple=True,
    ),
    click.option(
        "--group-size",
        type=QuantizationChoice([str(GROUP_SIZE), "-1"]),
        help="Repeat each row's scale for groups of so many columns in the gptq format, or once "
        f"(-1).  [default: {GROUP_SIZE}]",
    ),
    _option(
        "--effort",
        "fast saves time: it rounds down_proj, whose inputs are the widest, and does not compare "
        "with the float model's states.",
        click.Choice([FAST, FULL]),
    ),
    _option(
        "--shrinkage",
        "Shrink Hessian off-diagonals by this fraction (helps on text unlike the calibration set).",
        click.FloatRange(0, 1),
    ),
    _option(
        "--dampening",
        "First dampening of the Hessian to try, a fraction of its mean diagonal.",
        click.FloatRange(0, 1, min_open=True),
        name="dampening_frac",
    ),
    _option(
        "--scale-search/--no-scale-search",
        "Choose each row's scale by its expected error, or take absmax / 127.",
    ),
    _option("--device", "Compute here: cpu, cuda or cuda:N."),
    _option(
        "--compute-dtype",
        "Round the factors of large products to this dtype; auto is bfloat16 where it is fast.",
        click.Choice(["auto", "float32", "bfloat16"]),
    ),
    click.option(
        "--profile",
        is_flag=True,
        help="Give every phase its own seconds in quantize_timing.json, at some cost on CUDA.",
    ),
    click.option(
        "--gguf-embeddings",
        type=click.Choice(list(GGUF_EMBEDDINGS)),
        help=f"Store embedding and head of the format gguf so.  [default: {GGUF_F16}]",
    ),
    click.option(
        "--gguf-pre",
        default="",
        metavar="NAME",
        show_default=False,
        help="Name the pre-tokenizer of the format gguf as llama.cpp does, where it is not found.",
    ),
)
# What rounding has a use for, or no harm from: it draws nothing with the seed, the device gives the
# same integers wherever it is, and the profile is about time.
_FOR_ROUNDING = {
    *("method", "calibrations", "formats", "group_size", "gguf_embeddings", "gguf_pre"),
    *("seed", "device", "profile"),
}


def quantization_options(function: Function) -> Function:
    """Add every option from which ``read_options`` makes the library's."""
    # The decorator that is applied last comes first in the help.
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
    for name, value in PRESETS[values.pop("preset")].items():
        if not given_options(context, [name]):
            values[name] = value
    sources = values.pop("calibrations")
    values["method"] = values["method"] or (GPTQ if sources else RTN)
    if values["method"] == RTN:
        _refuse_calibrated_only(context, given.keys() - _FOR_ROUNDING)
    values["sources"] = tuple(parse_source(text) for text in sources)
    values["formats"] = _read_formats(values["formats"], values.pop("group_size"))
    return QuantizeOptions(**(values | {"device": device}))


def _read_formats(formats: Sequence[str], group_size: str | None) -> tuple[str, ...]:
    """Return the layouts that ``--format`` and ``--group-size`` ask for together."""
    if group_size is not None and GPTQ_LAYOUT not in formats:
        raise UsageError(
            f"--group-size {group_size} is of the {GPTQ_LAYOUT} format. Add --format "
            f"{GPTQ_LAYOUT}, or leave --group-size out."
        )
    wanted = {GPTQ_LAYOUT: GPTQ_ONE_GROUP} if group_size == "-1" else {}
    # A repeated one counts once.
    return tuple(dict.fromkeys(wanted.get(name, name) for name in formats))


def _refuse_calibrated_only(context: click.Context, calibrated_only: Collection[str]) -> None:
    """Refuse options of the command line that plain rounding would ignore without a word."""
    names = given_options(context, calibrated_only)
    if not names:
        return
    if given_options(context, ["method"]):
        names = given_options(context, ["calibrations"]) + names
        raise UsageError(
            f"--method rtn uses no calibration data. Leave {', '.join(names)} out, or use --method "
            "gptq with --calibration NAME=PATH."
        )
    raise UsageError(
        "Without --calibration the weights are rounded to nearest, with no effect of "
        f"{', '.join(names)}. Give --calibration NAME=PATH ({list_kinds()}), or "
        f"leave {'it' if len(names) == 1 else 'them'} out."
    )
