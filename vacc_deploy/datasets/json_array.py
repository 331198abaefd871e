"""The elements of a JSON array one by one: never more than one of them is in memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from vacc_deploy.bounds import BLANK_BYTES, RECORD_BYTES
from vacc_deploy.json_files import (
    PLAIN_DECODER,
    BeyondBoundError,
    check_json_depth,
    check_json_memory,
)

_BLOCK_BYTES = 1 << 16
_BLANKS = re.compile(r"[ \t\n\r]*")
# An error so near to the end of what was read may only say that a word is cut, such as "fals".
_LONGEST_WORD = len("-Infinity") + len("\\uD83D")


def read_array(file: IO[bytes]) -> Iterator[Any]:
    """Yield the elements of the JSON array that a file holds.

    Raises:
        BeyondBoundError: an element is over a bound; says which in a clause.
        ValueError: it is no array or is damaged; says why in a clause.
    """
    text = _Text(file)
    if text.next_mark() != "[":
        raise ValueError("it is no array")
    text.position += 1
    is_open = text.next_mark() != "]"
    while is_open:
        yield text.read_value()
        mark = text.next_mark()
        if mark not in (",", "]"):
            raise ValueError("it ends before its array does" if not mark else "a comma is missing")
        is_open = mark == ","
        text.position += is_open
    text.position += 1
    if text.next_mark():
        raise ValueError("something follows its array")


class _Text:
    """The text of a file from a position on; more of it is read when it is needed.

    Attributes:
        position: what stands before it is done with.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self.position, self._is_end = "", 0, False

    def next_mark(self) -> str:
        """Return the next character that is no blank, nothing at the end."""
        num_blanks = 0
        while True:
            match = _BLANKS.match(self._text, self.position)
            assert match is not None, "the pattern matches nothing too"
            num_blanks += match.end() - self.position
            self.position = match.end()
            if self.position < len(self._text):
                return self._text[self.position]
            if num_blanks > BLANK_BYTES:
                raise BeyondBoundError(f"more than {BLANK_BYTES:,} blanks stand in a row")
            if not self._read_more():
                return ""

    def read_value(self) -> Any:
        """Return the value that begins at the position."""
        self.next_mark()
        while True:
            problem = None
            try:
                value, end = PLAIN_DECODER.raw_decode(self._text, self.position)
            except json.JSONDecodeError as err:
                problem = err
                is_cut = err.pos >= len(self._text) - _LONGEST_WORD
                if not is_cut and not err.msg.startswith("Unterminated string"):
                    raise ValueError(err.msg) from err
            except RecursionError as err:
                raise BeyondBoundError("it is nested too deep") from err
            # A number may go on behind what was read: of 1e-7 the reader takes the 1 where the text
            # is cut behind the minus.
            if problem is None and (end + len("e-") < len(self._text) or self._is_end):
                self.position = end
                check_json_depth(value)
                return value
            if not self._read_more() and problem is not None:
                raise ValueError(problem.msg) from problem
            check_json_memory(self._text)

    def _read_more(self) -> bool:
        """Read as much as is not done with; return whether there was something left."""
        rest = self._text[self.position :]
        if len(rest) > RECORD_BYTES:
            raise BeyondBoundError(f"it is longer than {RECORD_BYTES:,} characters")
        data = self._file.read(max(_BLOCK_BYTES, len(rest)))
        self._is_end = not data
        self._text = rest + self._decoder.decode(data, final=self._is_end)
        self.position = 0
        return not self._is_end
