"""Answers of R1 models written out with their chat marks: text to conversations.

The marks are taken off again, so that any checkpoint's own chat template can write them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vacc_deploy.datasets.files import Document, Message
from vacc_deploy.errors import CalibrationError

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
_ROLES = {USER: "user", ASSISTANT: "assistant"}
_MARKS = re.compile(f"({re.escape(USER)}|{re.escape(ASSISTANT)})")


def split_traces(text: str, path: Path) -> Iterator[Document]:
    """Yield the conversations of a file, each of one or more questions with their answers.

    A conversation begins at each BOS mark; in a file without any, at each user mark. Text before
    the first user mark of a conversation is its system prompt. A question without an answer at the
    end is left out.

    Raises:
        CalibrationError: there is no answered question, or two marks of one role in a row.
    """
    is_empty = True
    for piece in _split_pieces(text, BOS if BOS in text else USER):
        if turns := _split_turns(piece, path):
            is_empty = False
            yield turns
    if is_empty:
        raise CalibrationError(
            f"{path} holds no trace: expected {USER}question{ASSISTANT}answer, as R1 models write "
            "it. Give plain text as text=PATH."
        )


def _split_pieces(text: str, mark: str) -> Iterator[str]:
    """Yield what stands before, between and behind the marks; a user mark stays in its piece."""
    begin = 0
    for match in re.finditer(re.escape(mark), text):
        yield text[begin : match.start()]
        begin = match.end() if mark == BOS else match.start()
    yield text[begin:]


def _split_turns(piece: str, path: Path) -> tuple[Message, ...]:
    """Return the turns of one conversation, up to its last answer."""
    # The group in the pattern makes split() return the marks: system, mark, text, mark, text.
    system, *rest = _MARKS.split(piece)
    turns: list[Message] = [{"role": "system", "content": system.strip()}] if system.strip() else []
    expected = USER
    for mark, content in zip(rest[::2], rest[1::2], strict=True):
        if mark != expected:
            raise CalibrationError(
                f"{path}: {mark} stands where {expected} is expected, before "
                f"{content.strip()[:40]!r}. Questions and answers must take turns."
            )
        content = content.strip().removesuffix(EOS).strip()
        turns.append({"role": _ROLES[mark], "content": content})
        expected = ASSISTANT if mark == USER else USER
    # The encoders take the last turn for the answer, and the turns before it for the prompt.
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    return tuple(turns)
