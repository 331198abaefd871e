r"""The result of an answer to a question of mathematics: what the last ``\boxed{...}`` holds.

Numbers are compared as numbers, everything else as text without blanks and without the signs that
only change how it looks. Nothing is computed: ``x+1`` and ``1+x`` are two results.
"""

from __future__ import annotations

import re
from fractions import Fraction

_BOX = re.compile(r"\\f?boxed\s*\{")
# A brace, or a backslash with the sign that it changes: \{ is text, and of \\{ the brace is none.
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_LONGEST = 200  # characters of a number; a longer text is compared as text
# Signs of LaTeX that mean nothing, each with what stands for it.
_PLAIN = (
    *((r"\left", ""), (r"\right", ""), (r"\dfrac", r"\frac"), (r"\tfrac", r"\frac")),
    ("{,}", ","),
    *((r"\!", ""), (r"\,", ""), (r"\;", ""), (r"\ ", ""), ("~", ""), ("$", ""), (r"\%", "%")),
    *((r"^\circ", ""), (r"^{\circ}", ""), ("−", "-"), ("，", ","), ("：", ":")),
)
_WORDS = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\s*\{([^{}]*)\}")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_FRACTION = re.compile(r"([+-]?)\\frac\{([+-]?\d+)\}\{([+-]?\d+)\}")
_SHORT_FRACTION = re.compile(r"([+-]?)\\frac(\d)(\d)")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:/\d+)?")


def last_boxed(text: str) -> str | None:
    r"""Return what the last ``\boxed{...}`` of a text holds, None where there is no whole one."""
    begins = {match.end() for match in _BOX.finditer(text)}
    opened, last = list[int](), (0, -1)
    # One pass: every brace is paired with its own, so that no text takes long.
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            opened.append(match.end())
        elif match[0] == "}" and opened and (begin := opened.pop()) in begins:
            last = max(last, (begin, match.start()))
    return text[slice(*last)] if last[1] >= 0 else None


def is_same_result(expected: str, got: str) -> bool:
    """Return whether two results are the same number, or the same text."""
    left, right = _normalize(expected), _normalize(got)
    if left == right:
        return True
    numbers = _parse_number(left), _parse_number(right)
    return None not in numbers and numbers[0] == numbers[1]


def _normalize(text: str) -> str:
    """Return a result without blanks and without what only changes its looks."""
    for sign, plain in _PLAIN:
        text = text.replace(sign, plain)
    text = "".join(_WORDS.sub(r"\1", text).split()).rstrip(".。")
    # A choice is written with or without parentheses: (B).
    return text[1:-1] if re.fullmatch(r"\([A-Za-z]\)", text) else text


def _parse_number(text: str) -> Fraction | None:
    r"""Return the number that a normalized text is: 1,234  0.5  1/2  \frac{1}{2}  50%."""
    if not text or len(text) > _LONGEST:
        return None
    if text.endswith("%"):
        whole = _parse_number(text[:-1])
        return None if whole is None else whole / 100
    if match := _FRACTION.fullmatch(text) or _SHORT_FRACTION.fullmatch(text):
        sign, over, under = match.groups()
        return None if not int(under) else Fraction(int(over), int(under)) * (-1) ** (sign == "-")
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if not _NUMBER.fullmatch(text):
        return None
    top, _, bottom = text.partition("/")
    return None if bottom and not int(bottom) else Fraction(top) / int(bottom or 1)
