"""HTML and SVG as text. What is no markup yet is escaped, whoever it comes from."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import NewType

from vacc_deploy.results import escape_controls

# Only the functions of this module make it; a checker of types tells it from text.
Markup = NewType("Markup", str)

_EMPTY_ELEMENTS = {"meta", "circle", "rect", "line", "path", "polyline"}


def text(value: object) -> Markup:
    """Return a text as markup: escaped, with control characters and turning marks written out."""
    return Markup(html.escape(escape_controls(str(value))))


def element(name: str, /, *inner: Markup, **attributes: object) -> Markup:
    """Return one element.

    Args:
        name: of the element.
        inner: what stands in it.
        attributes: ``data_from`` is written as ``data-from``, ``class_`` as ``class``; None and
            False leave one out, True writes its name alone.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _EMPTY_ELEMENTS and not inner:
        # Also valid inside SVG, where an element has to be closed.
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{''.join(inner)}</{name}>")


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{text(value)}"'


def join(parts: Iterable[Markup], between: str = "") -> Markup:
    """Return pieces of markup in a row; ``between`` is text."""
    return Markup(text(between).join(parts))


def table(
    headers: Sequence[Markup], rows: Iterable[Sequence[Markup]], *, label: str, class_: str = ""
) -> Markup:
    """Return a table that scrolls sideways where the screen is narrow.

    Args:
        headers: of the columns.
        rows: cells; the first of each row is its header.
        label: what the table shows, for screen readers.
        class_: of the table.
    """
    head = element("tr", *(element("th", cell, scope="col") for cell in headers))
    body = [
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in others))
        for first, *others in rows
    ]
    inner = element("table", element("thead", head), element("tbody", *body), class_=class_ or None)
    # Reached with the keyboard, since it may scroll.
    return element("div", inner, class_="scroll", role="region", aria_label=label, tabindex=0)


def pairs(rows: Iterable[tuple[Markup, Markup]]) -> Markup:
    """Return a list of names and values."""
    inner = [
        element("div", element("dt", name), element("dd", value), class_="pair")
        for name, value in rows
    ]
    return element("dl", *inner)


def folded(summary: Markup, *inner: Markup) -> Markup:
    """Return something that opens with a click or a key, without a script."""
    return element("details", element("summary", summary), *inner)
