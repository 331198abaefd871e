"""Numbers on a page. Each says which value of which JSON it is, in full precision.

``verify.layers.3.relative_error`` is a value of ``verify --json``; ``report`` is
``quantize_report.json``, ``manifest`` is ``vacc_deploy.json``. A figure that is reckoned from
several values says how: ``sum report.linears num_saturated q_proj``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vacc_deploy.pages.markup import Markup, element, text

Show = Callable[[float], str]
MISSING = "–"
_LARGEST_WHOLE = 1 << 64


def count(value: float) -> str:
    """Return a whole number, ``12,345``."""
    return f"{value:,.0f}"


def digits(value: float) -> str:
    """Return four significant digits."""
    return f"{value:.4g}"


def error(value: float) -> str:
    """Return a relative error in per cent, three significant digits."""
    return f"{100 * value:.3g} %"


def share(value: float) -> str:
    """Return a share in per cent with two decimals."""
    return f"{100 * value:.2f} %"


def change(value: float) -> str:
    """Return a relative change in per cent, with its sign."""
    return f"{100 * value:+.3f} %"


def decimals(value: float) -> str:
    """Return four decimals, as ``verify`` prints a perplexity."""
    return f"{value:,.4f}"


def decibels(value: float) -> str:
    """Return one decimal and the unit."""
    return f"{value:.1f} dB"


@dataclass(frozen=True)
class Source:
    """A JSON object whose numbers a page shows.

    Attributes:
        name: what ``data-from`` calls it.
        values: the object; it may be a stranger's.
    """

    name: str
    values: Mapping[str, Any]

    def get(self, path: str) -> Any:
        """Return the value at a path of keys and indices, ``linears.3.name``; None for none."""
        value: Any = self.values
        for key in path.split("."):
            if isinstance(value, Mapping):
                value = value.get(key)
            elif isinstance(value, (list, tuple)) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            else:
                return None
        return value

    def number(self, path: str) -> float | None:
        """Return a finite number at a path; None where there is none."""
        return as_number(self.get(path))

    def figure(self, path: str, show: Show) -> Markup:
        """Return the number at a path as it is shown; a dash where there is none."""
        return figure(self.number(path), f"{self.name}.{path}", show)

    def records(self, path: str, limit: int) -> list[Mapping[str, Any]]:
        """Return the objects of a list at a path, at most ``limit``; {} in place of others.

        So an index of this list is also one of the JSON.
        """
        value = self.get(path)
        entries = value[:limit] if isinstance(value, (list, tuple)) else []
        return [entry if isinstance(entry, Mapping) else {} for entry in entries]

    def texts(self, path: str, limit: int) -> list[str]:
        """Return the texts of a list at a path, at most ``limit``, each cut at 2,000 characters."""
        value = self.get(path)
        entries = value[:limit] if isinstance(value, (list, tuple)) else []
        return [entry[:2000] for entry in entries if isinstance(entry, str)]


def as_number(value: Any) -> float | None:
    """Return a value that is a finite number; None for everything else, True included.

    A whole number beyond ``_LARGEST_WHOLE`` is None too: what is reckoned from it need not fit a
    float, and no such number is ours.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, int):
        return value if abs(value) <= _LARGEST_WHOLE else None
    return value if math.isfinite(value) else None


def figure(value: float | None, origin: str, show: Show) -> Markup:
    """Return a number as it is shown, with its full precision and where it comes from."""
    if value is None:
        return text(MISSING)
    return element("data", text(show(value)), value=repr(value), data_from=origin)
