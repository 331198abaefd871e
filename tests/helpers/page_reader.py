"""Reads a page of ``--report`` as a browser would, for tests of what stands on it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from html.parser import HTMLParser
from typing import Any

_VOID = {"meta", "br", "img", "link", "input", "hr"}
_UNITS = {"%": Decimal("0.01"), "KiB": Decimal(1 << 10), "MiB": Decimal(1 << 20)}
_UNITS["GiB"] = Decimal(1 << 30)
_NUMBER = re.compile(r"([-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?)\s*(%|[KMG]iB)?")


@dataclass(frozen=True)
class Figure:
    """A number on the page: its text (that of a mark is its title), its value, its origin."""

    text: str
    value: str
    origin: str
    is_mark: bool

    def shows(self, value: float) -> bool:
        """Return whether the text is ``value``, rounded to the digits that it has."""
        # A mark's title ends with its value, "layer 3: 0.7 %"; that of a bar begins with it.
        is_last = self.is_mark and not self.origin.startswith("histogram")
        shown, unit = _NUMBER.findall(self.text)[-1 if is_last else 0]
        shown = Decimal(shown.replace(",", ""))
        exact = Decimal(repr(value)) / _UNITS.get(unit, Decimal(1))
        step = Decimal(1).scaleb(shown.as_tuple().exponent)
        return abs(exact - shown) <= step * Decimal("0.501")


@dataclass
class Page(HTMLParser):
    """What was found on a page.

    Attributes:
        figures: every number that tells its origin.
        tags: name and attributes of every element.
        words: all visible text, and that of titles.
    """

    figures: list[Figure] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    words: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append((tag, dict(attrs), []))

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] != "style":
            self.words += data
            for _, _, texts in self._open:
                texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        name, attributes, texts = self._open.pop()
        assert name == tag, f"<{name}> is closed by </{tag}>"
        if origin := attributes.get("data-from"):
            value = attributes.get("value") or attributes.get("data-value")
            self.figures.append(Figure("".join(texts), value or "", origin, tag != "data"))


def read_page(text: str) -> Page:
    """Return what stands on a page; every element has to be closed."""
    page = Page()
    page.feed(text)
    page.close()
    assert not page._open, page._open
    return page


def expected(origin: str, roots: dict[str, Any], token_kl: Any = None) -> float:
    """Return the number that an origin names, reckoned here once more.

    Args:
        origin: ``verify.mean_kl``, ``sum report.linears num_saturated q_proj`` and so on.
        roots: the JSON objects by their names.
        token_kl: KL of every token, float64 [tokens].
    """
    how, _, rest = origin.partition(" ")
    if not rest:
        return look_up(origin, roots)
    if how == "item":
        return token_kl[int(rest.split()[0])].item()
    if how == "quantile":
        return float(token_kl.quantile(float(rest.split()[0])))
    if how == "histogram":
        return histogram_count(int(rest.split()[0]), token_kl)
    path, what, *kind = rest.split()
    records = look_up(path, roots)
    if kind:
        records = [one for one in records if one["name"].endswith(f".{kind[0]}")]
    if how == "count":
        key, _, wanted = what.partition("=")
        return sum(one[key] == wanted for one in records)
    values = [one[what] for one in records]
    return sum(values) / (len(values) if how == "mean" else 1)


def histogram_count(index: int, token_kl: Any) -> int:
    """Return how many values lie in a quarter of a power of ten from 1e-7 on."""
    low, high = 10 ** (-7 + index / 4), 10 ** (-7 + (index + 1) / 4)
    return sum((not index or low <= value) and value < high for value in token_kl.tolist())


def look_up(path: str, roots: dict[str, Any]) -> Any:
    """Return the value at ``root.key.0.key``; ``files[a.b]`` has a key with dots."""
    value: Any = roots
    for key, name in re.findall(r"([^.\[\]]+)|\[([^\]]+)\]", path):
        value = value[int(key)] if isinstance(value, list) else value[key or name]
    return value
