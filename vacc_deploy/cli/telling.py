"""Print notes and progress on stderr."""

from __future__ import annotations

import errno

import click

from vacc_deploy.bounds import MESSAGE_CHARACTERS
from vacc_deploy.results import escape_controls


def cut_message(text: str) -> str:
    """Return what a person reads of a message: its begin and its end, where the command stands."""
    if len(text) <= MESSAGE_CHARACTERS:
        return text
    end = MESSAGE_CHARACTERS // 3
    begin = MESSAGE_CHARACTERS - end
    left = len(text) - MESSAGE_CHARACTERS
    return f"{text[:begin]} [... {left:,} characters left out ...] {text[-end:]}"


def tell(text: str) -> None:
    """Print one note or one step on stderr, escaped and cut to what a person reads.

    A stderr that takes no more, such as a log on a full disk, is no reason to end hours of work.
    """
    context = click.get_current_context(silent=True)
    if context is None or not context.meta.get("debug"):
        text = cut_message(text)
    try:
        click.echo(escape_controls(text), err=True)
    except OSError as err:
        # Where the reader of a pipe has gone, the command ends, as others do.
        if err.errno == errno.EPIPE:
            raise
