"""``vacc-deploy export-onnx``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

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


@click.command("export-onnx")
@click.argument("directory", metavar="DIR", type=CHECKPOINT)
@output_option(required=True)
@click.option(
    "--stage",
    type=click.Choice(["prefill", "decode", "both"]),
    default="both",
    help="Export the graph of the prompt, that of one further token, or both.",
)
@click.option(
    "--seq-len", type=click.IntRange(1), default=1024, help="Set the number of prompt tokens."
)
@click.option(
    "--max-seq-len",
    type=click.IntRange(1),
    show_default="twice --seq-len",
    help="Set the number of tokens in prompt and answer together.",
)
@click.option(
    "--opset",
    type=click.IntRange(11, 17),  # MIN_OPSET and MAX_OPSET of graphs.trace, which loads torch
    default=17,
    help="Set the version of the ONNX operators.",
)
@click.option(
    "--strip-functions",
    is_flag=True,
    help="Leave out the function that lets other runtimes run the int8 operator.",
)
@output_options
@common_options
def export_onnx_command(
    directory: str,
    output: Path,
    stage: str,
    seq_len: int,
    max_seq_len: int | None,
    opset: int,
    strip_functions: bool,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Write the graphs that the compiler builds from DIR, run them here and compare with torch.

    Exit code 3 when a graph does not compute what torch computes.

    Example: vacc-deploy export-onnx DeepSeek-R1-Distill-Qwen-1.5B-vacc-int8 --output onnx
    """
    from vacc_deploy.cli.terminal import quiet_transformers, terminal_progress
    from vacc_deploy.graphs.export import check_repository, export_onnx
    from vacc_deploy.graphs.result import ExportOptions
    from vacc_deploy.lookup.locate import locate
    from vacc_deploy.outputs.output import try_output

    quiet_transformers()
    options = ExportOptions(stage, seq_len, max_seq_len, opset, not strip_functions)
    progress = terminal_progress()
    check = partial(try_output, output, overwrite=overwrite, source=None, progress=progress)
    source = locate(
        directory,
        again=partial(again_with, "directory"),
        may_download=not dry_run,
        before_download=lambda name: check(),
        check_config=partial(check_repository, directory, options=options),
        downloading=downloading,
        say=say,
    )
    result = export_onnx(
        source.directory,
        output=output,
        options=options,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=progress,
    )
    emit(result)
    if result.failures:
        raise click.exceptions.Exit(3)
