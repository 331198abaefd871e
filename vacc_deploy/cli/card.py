"""The options ``--card`` and ``--bandwidth``, and the card that they give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from vacc_deploy.errors import UsageError
from vacc_deploy.vamc.cards import CARDS, Card

Function = TypeVar("Function", bound=Callable[..., Any])


def card_options(text: str) -> Callable[[Function], Function]:
    """Return both options; ``text`` is the help of ``--card``."""
    card = click.option("--card", type=click.Choice(list(CARDS), case_sensitive=False), help=text)
    bandwidth = click.option(
        "--bandwidth",
        type=click.FloatRange(min=0, min_open=True),
        metavar="GB/S",
        help="With --card, bound the tokens a second by this memory bandwidth of one die.",
    )
    return lambda function: card(bandwidth(function))


def choose_card(name: str | None, bandwidth: float | None) -> Card | None:
    """Return the card that was asked for, with the bandwidth that the user knows, or None.

    Raises:
        UsageError: a bandwidth of no card.
    """
    if name is not None:
        return CARDS[name].with_bandwidth(bandwidth)
    if bandwidth is not None:
        raise UsageError("--bandwidth goes with --card only.")
    return None
