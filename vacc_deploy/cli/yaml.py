"""``vacc-deploy yaml``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from vacc_deploy.cli.card import card_options, choose_card
from vacc_deploy.cli.options import (
    DIRECTORY,
    again_with,
    common_options,
    emit,
    given_options,
    is_json,
)
from vacc_deploy.cli.telling import tell
from vacc_deploy.errors import UsageError
from vacc_deploy.vamc.options import CALIBRATION_LENGTHS, DTYPES, OPTIMIZE_FOR, CompileOptions


@click.command("yaml")
@click.argument("target", required=False)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="Set the precision of the weights.  [default: int8 for a quantized directory, else fp16]",
)
@click.option(
    "--tp",
    "tensor_parallel_size",
    default=CompileOptions.tensor_parallel_size,
    help="Share the model among this many dies.",
)
@click.option(
    "--seq-len",
    "prefill",
    default=CompileOptions.prefill,
    help="Allow prompts of up to this many tokens.",
)
@click.option(
    "--max-seq-len",
    "total",
    default=CompileOptions.total,
    help="Allow up to this many tokens for a prompt together with its answer.",
)
@click.option(
    "--optimize",
    type=click.Choice(OPTIMIZE_FOR),
    default=CompileOptions.optimize,
    help="Compile for throughput (b2s on) or for latency (b2s off).",
)
@click.option(
    "--calibration",
    multiple=True,
    metavar="NAME=PATH",
    help="Give vamc's own int8 quantizer this text; NAME is alpaca, c4 or ceval.",
)
@click.option(
    "--experimental",
    is_flag=True,
    help="Accept a directory of int8 codes (quantize --format int8), which is untried with vamc.",
)
@card_options("Calculate the memory of a die of this card; refuse weights that cannot fit.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Write to this file, or to this directory with --all.  [default: print the YAML]",
)
@click.option("--overwrite", is_flag=True, help="Replace the output file if it exists already.")
@click.option("--all", "write_set", is_flag=True, help="Write the files of every official model.")
@click.option(
    "--build-in",
    type=DIRECTORY,
    help="With --all, also write each model's config_vacc.json below this directory.",
)
@common_options
@click.pass_context
def yaml_command(
    ctx: click.Context,
    output: Path | None,
    overwrite: bool,
    write_set: bool,
    build_in: Path | None,
    **options: Any,
) -> None:
    """Write the compile file for vamc.

    TARGET is a directory that prepare or quantize wrote, or the name of a known model.

    Example: vacc-deploy yaml Distill-Qwen-7B --dtype int8
    """
    if not write_set:
        if build_in is not None:
            raise UsageError("--build-in goes with --all only.")
        _write_one(options, output, overwrite)
        return
    # The options shape a single file; the set is fixed.
    if names := given_options(ctx, options):
        raise UsageError(
            f"--all writes a fixed set and takes no {', '.join(names).replace('target', 'TARGET')}."
        )
    if output is None:
        raise UsageError("--all needs --output DIR.")
    from vacc_deploy.vamc.committed import write_all

    emit(write_all(output, build_in=build_in))


def _write_one(options: dict[str, Any], output: Path | None, overwrite: bool) -> None:
    target = options.pop("target")
    card = choose_card(options.pop("card"), options.pop("bandwidth"))
    if target is None:
        raise UsageError("Give a directory or a model name as TARGET, or --all.")
    options["calibration"] = _parse_calibration(options["calibration"])
    from vacc_deploy.vamc.compile_file import add_start, make_compile_file, write_compile_file
    from vacc_deploy.vamc.target import find_target

    result = make_compile_file(
        find_target(target, options["dtype"], partial(again_with, "target")),
        CompileOptions(**options),
        card=card,
    )
    if output is not None:
        result = write_compile_file(result, output, overwrite=overwrite)
    result = add_start(result)
    emit(result)
    if output is None and not is_json():
        for message in result.to_messages():
            tell(message)


def _parse_calibration(given: tuple[str, ...]) -> tuple[str, str] | None:
    if not given:
        return None
    if len(given) > 1:
        raise UsageError("--calibration can be given once: a compile file names one dataset.")
    name, equals, path = given[0].partition("=")
    if not equals or not path or name not in CALIBRATION_LENGTHS:
        raise UsageError(
            f"--calibration got {given[0]!r}, expected NAME=PATH with NAME one of "
            f"{', '.join(CALIBRATION_LENGTHS)}. Other text is for vacc-deploy quantize."
        )
    return name, path
