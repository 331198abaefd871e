"""What a command returns, printed as text or dumped as JSON, and how text is laid out."""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Protocol

# No letters, but text has them: line, tab, the wide space of Chinese, the joiner of emoji.
_KEPT = "\n\t\u00a0\u3000\u200d"


class Result(Protocol):
    """The outcome of one command."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        ...

    def to_text(self) -> str:
        """Return what a person reads on the terminal."""
        ...


def escape_controls(text: str, escape: Callable[[str], str] = lambda char: repr(char)[1:-1]) -> str:
    """Return ``text`` with its control characters written out.

    Names, notes and generated text may come from a stranger's file: no escape sequence, and no sign
    that turns the direction of writing, may reach a terminal.
    """
    return "".join(c if c.isprintable() or c in _KEPT else escape(c) for c in text)


def display_width(text: str) -> int:
    """Return the terminal columns that ``text`` fills; East Asian wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def format_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return an aligned plain table; columns whose cells are all numbers are set right."""
    cells = [[str(cell) for cell in row] for row in rows]
    columns = list(zip(headers, *cells, strict=True))
    widths = [max(display_width(cell) for cell in column) for column in columns]
    is_right = [bool(column[1:]) and all(_is_number(c) for c in column[1:]) for column in columns]
    lines = [_format_row(headers, widths, is_right), "  ".join("-" * width for width in widths)]
    lines += [_format_row(row, widths, is_right) for row in cells]
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in "+-−" or cell == "–"


def _format_row(row: Sequence[str], widths: Sequence[int], is_right: Sequence[bool]) -> str:
    padded = []
    for cell, width, right in zip(row, widths, is_right, strict=True):
        space = " " * (width - display_width(cell))
        padded.append(space + cell if right else cell + space)
    return "  ".join(padded).rstrip()


def format_pairs(pairs: Sequence[tuple[str, object]]) -> str:
    """Return ``name  value`` lines with the values aligned."""
    width = max((display_width(name) for name, _ in pairs), default=0)
    return "\n".join(
        f"{name}{' ' * (width - display_width(name))}  {value}" for name, value in pairs
    )


def command(*words: object) -> str:
    """Return a command line of this tool as a shell reads it, for example after ``Next:``."""
    return shlex.join(["vacc-deploy", *map(str, words)])


def format_bytes(num_bytes: int | float) -> str:
    """Return a size in the binary unit that reads best, for example ``14.2 GiB``."""
    size, units = float(num_bytes), ["GiB", "MiB", "KiB", "B"]
    while round(abs(size), 1) >= 1024 and len(units) > 1:
        size /= 1024
        units.pop()
    return f"{size:.0f} B" if units[-1] == "B" else f"{size:.1f} {units[-1]}"


def format_seconds(seconds: float) -> str:
    """Return a duration, for example ``3.2 s``, ``4 min 10 s`` or ``2 h 05 min``."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
