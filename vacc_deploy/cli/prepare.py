"""``vacc-deploy prepare``."""

from __future__ import annotations

from typing import Any

import click

from vacc_deploy.cli.options import DIRECTORY, common_options, emit, output_option, output_options

# Kept here, and compared in a test: importing the module that owns it would double the time of
# --help.
LINK_MODES = ("auto", "hardlink", "symlink", "copy")


@click.command("prepare")
@click.option("--model", metavar="NAME", help="Prepare this known model; see vacc-deploy models.")
@click.option(
    "--weights",
    type=DIRECTORY,
    metavar="DIR",
    help="Use this checkpoint directory. Without it: the Hugging Face cache, then a download.",
)
@output_option("Set the output directory. Default: ./<model>-vacc")
@click.option(
    "--link-mode",
    type=click.Choice(LINK_MODES),
    default="auto",
    help="Link or copy the weights; auto makes a hard link where it can, else a copy.",
)
@output_options
@common_options
def prepare_command(**options: Any) -> None:
    """Put the compiler's files beside the weights of a model.

    The result is a new directory: weights (linked, not copied), tokenizer, the three source files
    and config_vacc.json made from the model's own config.json.

    Example: vacc-deploy prepare --model Distill-Qwen-7B --weights ./DeepSeek-R1-Distill-Qwen-7B
    """
    from vacc_deploy.cli.terminal import terminal_progress
    from vacc_deploy.prepare import prepare

    # The options have the names of the function's arguments.
    emit(prepare(**options, progress=terminal_progress()))
