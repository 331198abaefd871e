"""``vacc-deploy demo``."""

from __future__ import annotations

from pathlib import Path

import click

from vacc_deploy.cli.options import common_options, emit, output_option


@click.command("demo")
@output_option(default=Path("vacc-demo"))
@click.option("--overwrite", is_flag=True, help="Replace the output of an earlier demo.")
@common_options
def demo_command(output: Path, overwrite: bool) -> None:
    """Run the whole chain on a small trained model that the package carries.

    Needs no download and under a minute on two cores. The model adds numbers step by step in R1
    style; the demo shows how many sums the float and the int8 model answer exactly.

    Example: vacc-deploy demo --output vacc-demo
    """
    from vacc_deploy.cli.terminal import quiet_transformers, terminal_progress
    from vacc_deploy.demo.run import demo

    quiet_transformers()
    result = demo(output=output, overwrite=overwrite, progress=terminal_progress())
    emit(result)
    if result.failures:
        raise click.exceptions.Exit(3)
