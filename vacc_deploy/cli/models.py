"""``vacc-deploy models``."""

from __future__ import annotations

import click

from vacc_deploy.cli.options import common_options, emit


@click.command("models")
@common_options
def models_command() -> None:
    """List the known models, their sizes and the tensor-parallel sizes they allow.

    Example: vacc-deploy models --json
    """
    from vacc_deploy.models.catalog import CatalogTable

    emit(CatalogTable())
