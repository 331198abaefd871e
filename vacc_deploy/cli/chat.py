"""A conversation on the terminal: ``vacc-deploy generate --interactive``."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from vacc_deploy.cli.telling import tell
from vacc_deploy.errors import UsageError

if TYPE_CHECKING:
    from vacc_deploy.reference.generate import Responder

EXIT_WORD, CLEAR_WORD = "/exit", "/clear"
_WELCOME = f"{CLEAR_WORD} begins a new conversation; {EXIT_WORD}, Ctrl-D or Ctrl-C ends it."
_NO_SPACE = f"Type {CLEAR_WORD} to begin a new conversation, or {EXIT_WORD}."


def chat(
    responder: Responder,
    *,
    show: Callable[[str], None],
    read_line: Callable[[str], str] = input,
) -> None:
    """Ask for a line, answer it, and so on, until the user ends the conversation.

    Args:
        responder: answers.
        show: takes text to print while it is written.
        read_line: prints a mark and returns a line; raises EOFError at the end.
    """
    with suppress(ImportError):
        # Importing it gives `input` its line editing.
        import readline  # noqa: F401
    if isinstance(sys.stdin, io.TextIOWrapper):
        # A key that is no UTF-8 makes a strange letter, not a traceback.
        sys.stdin.reconfigure(errors="replace")
    history: list[dict[str, str]] = []
    click.echo(_WELCOME, err=True)
    # Ctrl-C ends the chat as Ctrl-D does, also in the middle of an answer.
    with suppress(EOFError, KeyboardInterrupt):
        while (line := read_line(">>> ").strip()) != EXIT_WORD:
            if line == CLEAR_WORD:
                history.clear()
            elif line:
                _take_turn(responder, history, line, show)
        return
    click.echo()  # the shell's prompt goes on a line of its own


def _take_turn(
    responder: Responder, history: list[dict[str, str]], line: str, show: Callable[[str], None]
) -> None:
    """Answer a line and add the turn to the history; a line that is refused is no turn."""
    try:
        answer = responder.answer(line, history=history, on_text=show, advice=_NO_SPACE)
    except UsageError as err:
        tell(str(err))
        return
    show(f"\n\n{answer.figures()}\n")
    history += [
        {"role": "user", "content": line},
        {"role": "assistant", "content": answer.text},
    ]
