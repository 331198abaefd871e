"""What a consumer showed, in words and as lines of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What is expected: all tokens equal; an answer, since the consumer rounds activations; a refusal.
EQUAL, ROUNDS, REFUSES = "equal", "rounds", "refuses"
BEGIN, END = "<!-- consumers: begin -->", "<!-- consumers: end -->"


@dataclass(frozen=True)
class Row:
    """One line of the table: a layout, a consumer with its versions, a model, and the outcome.

    Attributes:
        is_expected: whether the outcome is one that was expected.
    """

    layout: str
    consumer: str
    versions: str
    model: str
    outcome: str
    is_expected: bool = True


def describe(
    expectation: str, expected: list[list[int]], answer: dict[str, Any]
) -> tuple[str, bool]:
    """Return in words what an answer showed, and whether it is what was expected."""
    for word in ("failed", "refused"):
        if word in answer:
            is_expected = word == "refused" and expectation == REFUSES
            return f"{word}: {_one_line(str(answer[word]))}", is_expected
    got = answer["tokens"]
    lengths = [[len(ids) for ids in each] for each in (got, expected)]
    if lengths[0] != lengths[1]:
        return f"answered {lengths[0]} tokens, {lengths[1]} asked", False
    total = sum(map(len, expected))
    first = [_first_difference(*pair) for pair in zip(expected, got, strict=True)]
    differing = [
        f"of text {text} at token {index + 1}"
        for text, index in enumerate(first, 1)
        if index is not None
    ]
    outcome = f"{total} of {total} tokens equal"
    if differing:
        num_equal = sum(
            len(ids) if at is None else at for ids, at in zip(expected, first, strict=True)
        )
        outcome = f"{num_equal} of {total} tokens equal; first difference {', '.join(differing)}"
    if answer.get("note"):
        outcome += f"; {_one_line(str(answer['note']))}"
    if expectation == ROUNDS:
        return f"rounds activations: {outcome}", True
    return outcome, expectation == EQUAL and not differing


def _first_difference(expected: list[int], got: list[int]) -> int | None:
    pairs = enumerate(zip(expected, got, strict=True))
    return next((index for index, (left, right) in pairs if left != right), None)


def _one_line(text: str) -> str:
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= 200 else f"{line[:200]}..."


def name_versions(answer: dict[str, Any]) -> str:
    """Return the version of a consumer, and of what it runs on."""
    others = ", ".join(f"{name} {version}" for name, version in answer.get("versions", {}).items())
    return f"{answer.get('version', '?')}{f' ({others})' if others else ''}"


def to_markdown(rows: Sequence[Row]) -> str:
    """Return the table, layout by layout."""
    lines = ["| layout | consumer | version | model | what it showed |", "|---|---|---|---|---|"]
    order = list(dict.fromkeys(row.layout for row in rows))
    lines += [
        f"| `{row.layout}` | {row.consumer} | {row.versions or '-'} | {row.model} | {row.outcome} |"
        for row in sorted(rows, key=lambda row: (order.index(row.layout), row.consumer))
    ]
    return "\n".join(lines)


def put_table(page: Path, table: str) -> None:
    """Write the table between the two marks of a page."""
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} lacks the lines {BEGIN} and {END}")
    page.write_text(f"{before}{begin}\n{table}\n{end}{after}", "utf-8")
