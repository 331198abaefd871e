"""Errors by layer and by linear, as charts and tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vacc_deploy.bounds import NUM_LAYERS
from vacc_deploy.pages.charts import Axes, Point, Series, by_layer, even_ticks, legend
from vacc_deploy.pages.evidence import KINDS, Evidence, Linear, find_linears
from vacc_deploy.pages.figures import (
    Source,
    as_number,
    count,
    decibels,
    digits,
    error,
    figure,
    share,
)
from vacc_deploy.pages.markup import Markup, element, folded, join, table, text
from vacc_deploy.pages.page import Section, Writer, paragraph


def layers_section(say: Writer, verify: Source) -> Section | None:
    """Return the error of the hidden states after each layer."""
    layers = verify.records("layers", NUM_LAYERS)
    if not layers:
        return None
    origin = f"{verify.name}.layers"
    points = []
    for index, entry in enumerate(layers):
        value = as_number(entry.get("relative_error"))
        if value is not None:
            label = say.plain("point-layer", layer=index, error=error(value))
            points.append(Point(index, value, label, f"{origin}.{index}.relative_error"))
    # An error without a number is that of a damaged model, and no equal one.
    if len(points) == len(layers) and not any(point.value for point in points):
        return Section("layers", paragraph(say("equal-layers")))
    rows = (
        (
            text(index),
            verify.figure(f"layers.{index}.relative_error", error),
            verify.figure(f"layers.{index}.sqnr_db", decibels),
        )
        for index in range(len(layers))
    )
    listed = table(
        (say("layer"), say("relative-error"), say("sqnr")),
        rows,
        label=say.plain("chart-layers"),
        class_="numbers",
    )
    parts = []
    if len(points) < len(layers):
        number = text(len(layers) - len(points))
        parts.append(paragraph(say("layers-without-number", number=number), "note"))
    if points:
        drawn = [_error_chart(say, points, len(layers)), _sqnr_chart(say, verify, len(layers))]
        parts.append(element("div", *drawn, class_="charts"))
    return Section("layers", join([*parts, folded(say("table"), listed)]))


def _error_chart(say: Writer, points: Sequence[Point], num_layers: int) -> Markup:
    worst = max(points, key=lambda point: point.value)
    description = say.plain(
        "about-layers", layers=num_layers, largest=error(worst.value), layer=int(worst.at)
    )
    title = say.plain("chart-layers")
    axes = _error_axes(say, title, "relative-error", description, worst.value)
    series = Series(say.plain("deployed"), "kept", tuple(points), is_joined=True)
    drawn = by_layer("layer-chart", axes, [series], num_layers)
    return element("figure", element("figcaption", text(title)), drawn)


def _sqnr_chart(say: Writer, verify: Source, num_layers: int) -> Markup:
    """Return the same errors in decibels; equal states have none."""
    points = []
    for index in range(num_layers):
        path = f"layers.{index}.sqnr_db"
        value = verify.number(path)
        if value is not None and value >= 0:
            label = say.plain("point-layer", layer=index, error=decibels(value))
            points.append(Point(index, value, label, f"{verify.name}.{path}"))
    title = say.plain("chart-sqnr")
    largest = max((point.value for point in points), default=0.0)
    axes = Axes(
        title=title,
        description=say.plain("about-sqnr", layers=num_layers),
        across=say.plain("layer"),
        up="dB",
        ticks=tuple((tick, f"{tick:g}") for tick in even_ticks(largest)),
    )
    series = Series(say.plain("deployed"), "kept", tuple(points), is_joined=True)
    drawn = by_layer("sqnr-chart", axes, [series], num_layers)
    return element("figure", element("figcaption", text(title)), drawn)


def rounding_section(say: Writer, verify: Source) -> Section | None:
    """Return what rounding the inputs changes in each linear; None where none was rounded."""
    linears = find_linears(verify, "rounding", "linear")
    values = {
        linear.index: verify.number(f"rounding.{linear.index}.relative_error") for linear in linears
    }
    if not linears:
        return None

    def series(of_kind: Sequence[Linear]) -> list[Series]:
        points = []
        for linear in of_kind:
            value = values[linear.index]
            if value is not None:
                label = say.plain("point-layer", layer=linear.layer, error=error(value))
                origin = f"{verify.name}.rounding.{linear.index}.relative_error"
                points.append(Point(linear.layer, value, label, origin))
        return [Series(say.plain("deployed"), "kept", tuple(points))]

    about = "about-rounded-inputs"
    return Section("rounding", _charts(say, about, linears, series))


def linears_section(say: Writer, evidence: Evidence) -> Section | None:
    """Return the output error of each linear: rounding, and what was kept."""
    report, linears = evidence.report, evidence.linears()
    if not linears:
        return None
    measured = [one for one in linears if report.number(f"linears.{one.index}.error_rtn")]
    if not measured:
        return Section("linears", paragraph(say("no-linears")))

    def series(of_kind: Sequence[Linear]) -> list[Series]:
        rounding, kept = [], []
        for linear in of_kind:
            by_rounding = _point(say, report, linear, "error_rtn")
            by_gptq = _point(say, report, linear, "error_gptq")
            is_gptq = report.get(f"linears.{linear.index}.method") == "gptq"
            rounding += by_rounding
            kept += by_gptq if is_gptq else _point(say, report, linear, "error_rtn", is_kept=True)
        return [
            Series(say.plain("rounding"), "rounding", tuple(rounding)),
            Series(say.plain("kept"), "kept", tuple(kept)),
        ]

    marks = legend([("kept", say.plain("kept")), ("rounding", say.plain("rounding"))])
    drawn = _charts(say, "about-linear", measured, series)
    return Section(
        "linears", join([marks, drawn, folded(say("table"), _table(say, report, linears))])
    )


def scales_section(say: Writer, evidence: Evidence) -> Section | None:
    """Return what was counted of scales and codes, by kind of linear."""
    report, linears = evidence.report, evidence.linears()
    if not linears:
        return None
    rows = []
    for kind in _kinds(linears):
        of_kind = [one for one in linears if one.kind == kind]
        methods = [report.get(f"linears.{one.index}.method") for one in of_kind]
        shrink = _values(report, of_kind, "scale_shrink")
        mean = sum(shrink) / len(shrink) if shrink else None
        cells = [
            figure(methods.count("gptq"), f"count report.linears method=gptq {kind}", count),
            figure(methods.count("rtn"), f"count report.linears method=rtn {kind}", count),
            _sum(report, of_kind, "num_saturated", kind),
            _sum(report, of_kind, "num_pinned", kind),
            figure(mean, f"mean report.linears scale_shrink {kind}", share),
        ]
        rows.append((text(kind), *cells))
    headers = [
        say(key) for key in ("linear", "by-gptq", "by-rounding", "saturated", "pinned", "shrink")
    ]
    listed = table(headers, rows, label=say.plain("section-scales"), class_="numbers")
    note = [] if evidence.is_calibrated else [paragraph(say("not-counted"), "note")]
    return Section("scales", join([listed, *note]))


def _point(
    say: Writer, report: Source, linear: Linear, field: str, *, is_kept: bool = False
) -> list[Point]:
    """Return the point of one error, or nothing where it is none."""
    path = f"linears.{linear.index}.{field}"
    value = report.number(path)
    if value is None:
        return []
    if field == "error_rtn" and not is_kept:
        label = say.plain("point-rounding", layer=linear.layer, error=error(value))
    else:
        method = str(report.get(f"linears.{linear.index}.method"))
        label = say.plain("point-kept", layer=linear.layer, method=method, error=error(value))
    return [Point(linear.layer, value, label, f"{report.name}.{path}")]


def _charts(
    say: Writer,
    about: str,
    linears: Sequence[Linear],
    make_series: Callable[[Sequence[Linear]], list[Series]],
) -> Markup:
    """Return a chart for each kind of linear, all with the same vertical axis.

    Args:
        say: the texts.
        about: key of the charts' description.
        linears: all of them.
        make_series: gives the series of the linears of one kind.
    """
    drawn = {
        kind: make_series([one for one in linears if one.kind == kind]) for kind in _kinds(linears)
    }
    values = [point.value for series in drawn.values() for one in series for point in one.points]
    num_layers = max(linear.layer for linear in linears) + 1
    figures = []
    for number, (kind, series) in enumerate(drawn.items()):
        description = say.plain(about, linear=kind, layers=num_layers)
        axes = _error_axes(say, kind, "output-error", description, max(values, default=0.0))
        chart = by_layer(f"{about}-{number}", axes, series, num_layers)
        figures.append(element("figure", element("figcaption", text(kind)), chart))
    return element("div", *figures, class_="charts")


def _kinds(linears: Sequence[Linear]) -> list[str]:
    """Return the kinds of linears, those that are known first."""
    found = dict.fromkeys(linear.kind for linear in linears)
    known = [kind for kind in KINDS if kind in found]
    # Of a strange report not all.
    return [*known, *[kind for kind in found if kind not in KINDS]][:20]


def _table(say: Writer, report: Source, linears: Sequence[Linear]) -> Markup:
    """Return every figure of every linear."""
    shows = {
        "error_rtn": error,
        "error_gptq": error,
        "num_saturated": count,
        "num_pinned": count,
        "scale_shrink": share,
        "dampening_frac": digits,
    }
    headers = ["linear", "method", "error-rounding", "error-gptq", "saturated", "pinned"]
    headers += ["shrink", "dampening"]
    rows = (
        (
            text(linear.name.removeprefix("model.layers.")),
            text(report.get(f"linears.{linear.index}.method")),
            *(report.figure(f"linears.{linear.index}.{key}", show) for key, show in shows.items()),
        )
        for linear in linears
    )
    label = say.plain("section-linears")
    return table([say(key) for key in headers], rows, label=label, class_="numbers")


def _values(report: Source, linears: Sequence[Linear], field: str) -> list[float]:
    found = [report.number(f"linears.{linear.index}.{field}") for linear in linears]
    return [value for value in found if value is not None]


def _sum(report: Source, linears: Sequence[Linear], field: str, kind: str) -> Markup:
    total = sum(_values(report, linears, field))
    return figure(total, f"sum report.linears {field} {kind}", count)


def _error_axes(say: Writer, title: str, up: str, description: str, largest: float) -> Axes:
    """Return the axes of errors; ``title`` is a text, ``up`` the key of one."""
    ticks = even_ticks(largest)
    return Axes(
        title=title,
        description=description,
        across=say.plain("layer"),
        up=say.plain(up),
        ticks=tuple((tick, f"{100 * tick:.4g} %") for tick in ticks),
        baseline=say.plain("float-line"),
    )
