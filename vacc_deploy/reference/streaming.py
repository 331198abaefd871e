"""Text while it is written: from token to token, in whole characters."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from vacc_deploy.text.tokenizer import Tokenizer

_BROKEN = "\ufffd"  # what the tokenizer writes for the bytes of half a character


class TextStream:
    """Passes the text of an answer on as its tokens arrive.

    The pieces together are the text of all tokens. A character that several tokens make waits for
    the last of them; the text of one token, a special one too, is never cut.
    """

    def __init__(
        self, tokenizer: Tokenizer, ends: Collection[int], write: Callable[[str], None]
    ) -> None:
        """Begin an answer.

        Args:
            tokenizer: of the model that answers.
            ends: ids that end an answer; they are not shown.
            write: takes each piece of text.
        """
        self._tokenizer, self._ends, self._write = tokenizer, ends, write
        self._ids: list[int] = []
        # Text up to `_shown` is written. What follows is decoded from `_before` on: some
        # tokenizers write a word in another way at the beginning of a text.
        self._before = self._shown = 0

    def add(self, token: int) -> None:
        """Take the next token."""
        if token not in self._ends:
            self._ids.append(token)
            self._pass_on(is_last=False)

    def finish(self) -> None:
        """Write what waited for more tokens."""
        self._pass_on(is_last=True)

    def _pass_on(self, *, is_last: bool) -> None:
        shown = self._tokenizer.decode(self._ids[self._before : self._shown])
        text = self._tokenizer.decode(self._ids[self._before :])
        if len(text) <= len(shown) or (text.endswith(_BROKEN) and not is_last):
            return
        self._write(text[len(shown) :])
        self._before, self._shown = self._shown, len(self._ids)


class TokenStreamer:
    """What transformers calls with the ids of the prompt, and then with each new token."""

    def __init__(self, on_token: Callable[[int], None]) -> None:
        self._on_token, self._is_prompt = on_token, True

    def put(self, ids: Any) -> None:
        """Take the prompt, int64 [1, seq], or the next token, int64 [1]."""
        if not self._is_prompt:
            self._on_token(int(ids.item()))
        self._is_prompt = False

    def end(self) -> None:
        """Learn that the answer has ended."""
