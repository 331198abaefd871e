"""Options that several commands share, and the printing of results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vacc_deploy.results import Result, escape_controls

Function = TypeVar("Function", bound=Callable[..., Any])

DIRECTORY = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


def _remember(name: str) -> Callable[[click.Context, click.Parameter, bool], bool]:
    def callback(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
        ctx.find_root().meta[name] = value
        return value

    return callback


def common_options(function: Function) -> Function:
    """Add ``--json`` and ``--debug``, which every command has."""
    as_json = click.option(
        "--json",
        "as_json",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_remember("json"),
        help="Print one JSON object instead of text.",
    )
    debug = click.option(
        "--debug",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_remember("debug"),
        help="Show the traceback of an error.",
    )
    return as_json(debug(function))


def output_options(function: Function) -> Function:
    """Add ``--overwrite`` and ``--dry-run``, for commands that write a directory."""
    overwrite = click.option(
        "--overwrite", is_flag=True, help="Replace the output if it exists already."
    )
    dry_run = click.option(
        "--dry-run", is_flag=True, help="Check everything, print the plan, write nothing."
    )
    return overwrite(dry_run(function))


def emit(result: Result) -> None:
    """Print a result on stdout: text, or one JSON object under ``--json``."""
    if click.get_current_context().find_root().meta.get("json"):
        emit_json(result.to_dict())
    else:
        click.echo(escape_controls(result.to_text()))


def emit_json(values: dict[str, Any]) -> None:
    """Print one JSON object on stdout; it reads back as ``values`` to the letter."""
    text = json.dumps(values, ensure_ascii=False, indent=2)
    click.echo(escape_controls(text, escape=lambda char: json.dumps(char)[1:-1]))
