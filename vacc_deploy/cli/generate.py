"""``vacc-deploy generate``."""

from __future__ import annotations

from functools import partial

import click

from vacc_deploy.cli.options import CHECKPOINT, again_with, common_options, emit


@click.command("generate")
@click.argument("directory", metavar="DIR", type=CHECKPOINT)
@click.option("--prompt", required=True, help="Ask this; the chat template is applied.")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=256, help="Limit the number of new tokens."
)
@common_options
def generate_command(directory: str, prompt: str, max_new_tokens: int) -> None:
    """Answer one chat turn with the model in DIR, greedily, on this CPU.

    Example: vacc-deploy generate DeepSeek-R1-Distill-Qwen-1.5B-vacc-int8 --prompt "What is 7 x 8?"
    """
    from vacc_deploy.checkpoint.locate import locate
    from vacc_deploy.cli.terminal import quiet_transformers
    from vacc_deploy.reference.generate import generate

    quiet_transformers()
    source = locate(directory, again=partial(again_with, "directory"))
    emit(generate(source.directory, prompt=prompt, max_new_tokens=max_new_tokens))
