"""Charts as inline SVG.

Each has an alternative text, one column's width, and a mark for each value that tells its series
by colour and by shape. Colours are classes, which ``style`` gives a value for light and for dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vacc_deploy.pages.markup import Markup, element, join, text

# Of a chart, in pixels where a column is as wide as the chart; letters then have their usual size.
WIDTH, HEIGHT = 380, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 14, 42
# Of an axis: only the figures of a damaged model, or of a damaged report, lie beyond.
_FARTHEST = 1e30
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Point:
    """One value of a series.

    Attributes:
        at: where it stands on the horizontal axis.
        value: its height.
        label: its text, shown where the pointer rests on it.
        origin: which value of which JSON it is, see ``figures``.
    """

    at: float
    value: float
    label: str
    origin: str


@dataclass(frozen=True)
class Series:
    """Values that belong together.

    Attributes:
        name: in the legend.
        kind: ``kept`` (a filled circle) or ``rounding`` (an empty square).
        points: in the order of the axis.
        is_joined: draw a line through them.
    """

    name: str
    kind: str
    points: tuple[Point, ...]
    is_joined: bool = False


@dataclass(frozen=True)
class Axes:
    """What stands around the marks of a chart.

    Attributes:
        title: of the chart.
        description: what it shows, in a sentence, for those who do not see it.
        across: name of the horizontal axis.
        up: name of the vertical axis.
        ticks: values of the vertical axis with their labels; the first and last bound it.
        is_logarithmic: the vertical axis.
        baseline: what the line at zero stands for; nothing for no line.
        limit: a value to draw a line at, with its label.
        limit_across: the same on the horizontal axis.
    """

    title: str
    description: str
    across: str
    up: str
    ticks: tuple[tuple[float, str], ...]
    is_logarithmic: bool = False
    baseline: str = ""
    limit: tuple[float, str] | None = None
    limit_across: tuple[float, str] | None = None


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram, from ``low`` to ``high``; both are exponents of ten."""

    low: float
    high: float
    value: int
    label: str
    origin: str


def even_ticks(largest: float) -> tuple[float, ...]:
    """Return four to six round values from 0 on; the last is not below ``largest``, up to 1e30."""
    if not 0 < largest < math.inf:
        largest = 1.0
    largest = min(max(largest, 1 / _FARTHEST), _FARTHEST)
    rough = largest / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return tuple(step * number for number in range(math.ceil(largest / step * 0.9999) + 1))


def powers_of_ten(smallest: float, largest: float) -> tuple[tuple[float, str], ...]:
    """Return powers of ten around a range, with their labels, at most nine."""
    smallest, largest = max(smallest, 1 / _FARTHEST), min(largest, _FARTHEST)
    low = math.floor(math.log10(min(smallest, largest)))
    high = max(math.ceil(math.log10(largest)), low + 1)
    step = math.ceil((high - low) / 7)
    # The last is not below ``largest``.
    exponents = range(low, high + step, step)
    return tuple((10.0**exponent, power(exponent)) for exponent in exponents)


def power(exponent: int) -> str:
    """Return ``10⁻³``."""
    return f"10{str(exponent).translate(_SUPERSCRIPT)}"


def by_layer(name: str, axes: Axes, series: Sequence[Series], num_layers: int) -> Markup:
    """Return a chart with the layers from left to right.

    Args:
        name: of the chart in this page, for its title's id.
        axes: what stands around the marks.
        series: the values; later ones are drawn over earlier ones.
        num_layers: of the model.
    """
    last = max(num_layers - 1, 1)
    across = _Scale(-0.5, last + 0.5, _LEFT, WIDTH - _RIGHT)
    up = _vertical(axes)
    step = max(1, math.ceil(num_layers / 7 / 5) * 5 if num_layers > 7 else 1)
    marks = [_vertical_axis(axes, up)]
    marks += [
        _label(across(layer), HEIGHT - _BOTTOM + 16, str(layer), "middle")
        for layer in range(0, num_layers, step)
    ]
    # Smaller where many stand side by side.
    size = min(3.4, max(1.6, (WIDTH - _LEFT - _RIGHT) / max(num_layers, 1) * 0.42))
    for one in series:
        places = [(across(point.at), up(point.value), point) for point in one.points]
        if one.is_joined and len(places) > 1:
            way = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
            marks.append(element("polyline", points=way, class_=f"way {one.kind}"))
        marks += [_mark(one.kind, x, y, size, point) for x, y, point in places]
    return _svg(name, axes, marks)


def histogram(name: str, axes: Axes, bars: Sequence[Bar], first_label: str) -> Markup:
    """Return a histogram over powers of ten.

    Args:
        name: of the chart in this page.
        axes: what stands around the bars.
        bars: from left to right, without a gap; the first holds all that is smaller, too.
        first_label: what stands below the first bar.
    """
    across = _Scale(bars[0].low, bars[-1].high, _LEFT, WIDTH - _RIGHT)
    up = _vertical(axes)
    marks = [_vertical_axis(axes, up)]
    for bar in bars:
        x, height = across(bar.low), up(0) - up(bar.value)
        marks.append(
            element(
                "rect",
                element("title", text(bar.label)),
                x=f"{x + 0.5:.1f}",
                y=f"{up(bar.value):.1f}",
                width=f"{across(bar.high) - x - 1:.1f}",
                height=f"{height:.1f}",
                class_="bar kept",
                data_value=bar.value,
                data_from=bar.origin,
            )
        )
    whole = [bar.low for bar in bars[1:] if bar.low == int(bar.low)]
    for exponent in whole[:: max(1, math.ceil(len(whole) / 7))]:
        x = across(exponent)
        marks.append(element("line", x1=x, x2=x, y1=up(0), y2=up(0) + 4, class_="axis"))
        marks.append(_label(x, HEIGHT - _BOTTOM + 16, power(int(exponent)), "middle"))
    marks.append(_label(across(bars[0].low), HEIGHT - _BOTTOM + 16, first_label, "start"))
    if axes.limit_across:
        at, label = axes.limit_across
        x = across(at)
        marks.append(element("line", x1=x, x2=x, y1=_TOP, y2=up(0), class_="limit"))
        is_left = x > WIDTH / 2
        marks.append(
            _label(x - 5 if is_left else x + 5, _TOP + 8, label, "end" if is_left else "start")
        )
    return _svg(name, axes, marks)


def gauge(value: float, limit: float, ends: tuple[float, float], label: str) -> Markup:
    """Return how a value stands to its limit: a bar with a mark at the limit.

    Args:
        value: beyond an end the bar is empty or full.
        limit: between the ends.
        ends: what the two ends of the bar stand for.
        label: what the bar shows, for those who do not see it.
    """
    across = _Scale(*ends, 0, 200)
    x = across(limit)
    return element(
        "svg",
        element("title", text(label)),
        element("rect", x=0, y=4, width=200, height=8, class_="track"),
        element("rect", x=0, y=4, width=f"{across(value):.1f}", height=8, class_="bar kept"),
        element("line", x1=x, x2=x, y1=0, y2=16, class_="limit"),
        viewBox="0 0 200 16",
        preserveAspectRatio="none",
        class_="gauge",
        role="img",
        aria_label=label,
    )


def legend(series: Sequence[tuple[str, str]]) -> Markup:
    """Return the marks of series with their names: pairs of kind and name."""
    entries = []
    for kind, name in series:
        mark = _mark(kind, 7, 7, 4, None)
        icon = element("svg", mark, viewBox="0 0 14 14", class_="key", aria_hidden="true")
        entries.append(element("li", icon, text(name)))
    return element("ul", *entries, class_="legend")


class _Scale:
    """From a value to a place on the chart; beyond its ends it stays at them."""

    def __init__(
        self, low: float, high: float, start: float, stop: float, is_logarithmic: bool = False
    ) -> None:
        self._is_logarithmic = is_logarithmic
        self._low, self._high = self._plain(low), self._plain(high)
        self._start, self._stop = start, stop

    def __call__(self, value: float) -> float:
        share = (self._plain(value) - self._low) / (self._high - self._low)
        return self._start + min(max(share, 0.0), 1.0) * (self._stop - self._start)

    def _plain(self, value: float) -> float:
        # Zero and less lie below every power of ten.
        return math.log10(max(value, 1e-300)) if self._is_logarithmic else value


def _vertical(axes: Axes) -> _Scale:
    low, high = axes.ticks[0][0], axes.ticks[-1][0]
    return _Scale(low, high, HEIGHT - _BOTTOM, _TOP, axes.is_logarithmic)


def _vertical_axis(axes: Axes, up: _Scale) -> Markup:
    """Return the lines across the chart, their labels, and the names of both axes."""
    right, marks = WIDTH - _RIGHT, []
    for value, label in axes.ticks:
        y = up(value)
        marks.append(element("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="grid"))
        marks.append(_label(_LEFT - 6, y + 4, label, "end"))
    floor = HEIGHT - _BOTTOM
    kind = "zero" if axes.baseline else "axis"
    marks.append(element("line", x1=_LEFT, x2=right, y1=floor, y2=floor, class_=kind))
    if axes.baseline:
        marks.append(_label(right, floor - 5, axes.baseline, "end"))
    if axes.limit:
        y = up(axes.limit[0])
        marks.append(element("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="limit"))
        marks.append(_label(right, y - 4 if y > 2 * _TOP else y + 13, axes.limit[1], "end"))
    marks.append(_label((_LEFT + right) / 2, HEIGHT - 6, axes.across, "middle"))
    middle = (_TOP + floor) / 2
    turned = f"rotate(-90 12 {middle:.1f})"
    marks.append(
        element(
            "text", text(axes.up), x=12, y=f"{middle:.1f}", text_anchor="middle", transform=turned
        )
    )
    return join(marks)


def _label(x: float, y: float, what: str, anchor: str) -> Markup:
    return element("text", text(what), x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _mark(kind: str, x: float, y: float, size: float, point: Point | None) -> Markup:
    """Return the mark of a value: the shape of its series around a place."""
    inner = [element("title", text(point.label))] if point else []
    told = {"data_value": repr(point.value), "data_from": point.origin} if point else {}
    if kind == "rounding":
        side = 2 * size
        place = {"x": f"{x - size:.1f}", "y": f"{y - size:.1f}", "width": side, "height": side}
        return element("rect", *inner, **place, class_="mark rounding", **told)
    return element(
        "circle",
        *inner,
        cx=f"{x:.1f}",
        cy=f"{y:.1f}",
        r=f"{size:.1f}",
        class_=f"mark {kind}",
        **told,
    )


def _svg(name: str, axes: Axes, marks: Sequence[Markup]) -> Markup:
    title, description = f"{name}-title", f"{name}-description"
    return element(
        "svg",
        element("title", text(axes.title), id=title),
        element("desc", text(axes.description), id=description),
        *marks,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        class_="chart",
        role="img",
        aria_labelledby=f"{title} {description}",
    )
