"""Options of commands that run a model: how it draws tokens, and what its linears are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])

_SAMPLING: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--temperature",
        type=click.FloatRange(0, 5, min_open=True),  # MAX_TEMPERATURE of reference.sampling
        help="Sample with this temperature; for 0 use --greedy.",
    ),
    click.option(
        "--top-p",
        type=click.FloatRange(0, 1, min_open=True),
        help="Sample from the most probable tokens of this share together.",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(0),
        help="Sample from this many most probable tokens; 0 sets no limit.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**63 - 1),
        show_default="0",
        help="Set the random seed of sampling.",
    ),
    click.option("--greedy", is_flag=True, help="Always take the most probable token."),
)


def sampling_options(function: Function) -> Function:
    """Add the options that say how tokens are drawn."""
    for option in reversed(_SAMPLING):
        function = option(function)
    return function


activations_option = click.option(
    "--activations",
    type=click.Choice(["auto", "float", "int8"]),  # ACTIVATIONS of reference.activations
    default="auto",
    help="Round the inputs of the deployed linears to int8, token by token, or not; auto does what "
    "runtimes of the format do.",
)
