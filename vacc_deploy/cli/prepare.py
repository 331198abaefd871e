"""``vacc-deploy prepare``."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from vacc_deploy.cli.options import (
    CHECKPOINT,
    again_with,
    attn_factor_option,
    common_options,
    downloading,
    emit,
    output_option,
    output_options,
)

# Kept here, and compared in a test: importing the module that owns it would double the time of
# --help.
LINK_MODES = ("auto", "hardlink", "symlink", "copy")


@click.command("prepare")
@click.argument("source", required=False, type=CHECKPOINT)
@click.option(
    "--model",
    metavar="NAME",
    help="Prepare this known model (see vacc-deploy models); the weights must have its shape.",
)
@click.option(
    "--weights", type=CHECKPOINT, metavar="DIR", help="Use this checkpoint; the same as SOURCE."
)
@output_option("Set the output directory. Default: ./<model>-vacc")
@click.option(
    "--link-mode",
    type=click.Choice(LINK_MODES),
    default="auto",
    help="Link or copy the weights; auto makes a hard link where it can, else a copy.",
)
@attn_factor_option("multiply")
@output_options
@common_options
def prepare_command(**options: Any) -> None:
    """Put the compiler's files beside the weights of a model.

    SOURCE is a checkpoint directory, the id of a repository (owner/name) or the name of a known
    model. A repository is taken from the cache of Hugging Face or ModelScope, else downloaded.

    The result is a new directory: weights (linked, not copied), tokenizer, and for Qwen the three
    source files and config_vacc.json, which is made from the model's own config.json.

    \b
    Examples:
      vacc-deploy prepare Distill-Qwen-7B
      vacc-deploy prepare ./my-fine-tune
    """
    from vacc_deploy.cli.terminal import terminal_progress
    from vacc_deploy.prepare import prepare

    # The options have the names of the function's arguments.
    again = partial(again_with, "source", without=("model", "weights"))
    result = prepare(**options, progress=terminal_progress(), again=again, downloading=downloading)
    emit(result)
