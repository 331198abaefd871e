"""The section that shows the activation audit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vacc_deploy.bounds import NUM_LAYERS
from vacc_deploy.pages.charts import Axes, Point, Series, by_layer, powers_of_ten
from vacc_deploy.pages.figures import Source, as_number, digits
from vacc_deploy.pages.markup import Markup, element, folded, join, table, text
from vacc_deploy.pages.page import MOST_ROWS, Section, Writer, lines, paragraph

FLOAT16_MAX = 65504
# Kinds of activations in a layer, times the layers.
_MOST_ENTRIES = 32 * NUM_LAYERS
_MOST_CHARTS = 24
_FEW_RISKS = 6


def audit_section(say: Writer, source: Source, path: str = "audit") -> Section | None:
    """Return the largest activations; None where there was no audit.

    Args:
        say: the texts.
        source: a result, or a report, with a list at ``path`` and a list ``at_risk`` beside it.
        path: of the list, whose entries have ``layer``, ``stage``, ``tensor``, ``max_abs``,
            ``rms``, ``percent_of_float16`` and ``bfloat16_step``.
    """
    entries = source.records(path, _MOST_ENTRIES)
    if not entries:
        return None
    risks = [_name_risk(risk) for risk in _as_list(source.get("at_risk"))[:MOST_ROWS]]
    parts = [_risks(say, risks) if risks else paragraph(say("audit-safe"))]
    parts.append(_charts(say, source, path, entries))
    parts.append(folded(say("table"), _table(say, source, path, entries)))
    return Section("audit", join(parts))


def _risks(say: Writer, risks: list[str]) -> Markup:
    """Return what is at risk: the first few at once, all on request."""
    parts = [paragraph(say("audit-risk")), lines(risks[:_FEW_RISKS])]
    if rest := risks[_FEW_RISKS:]:
        parts.append(folded(say("more-risks", number=text(len(rest))), lines(rest)))
    return join(parts)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _name_risk(risk: Any) -> str:
    """Return what is at risk as a line: a text, or an entry of the audit."""
    if isinstance(risk, Mapping):
        parts = [f"layer {risk['layer']}"] if risk.get("layer") is not None else []
        parts += [str(risk[key])[:200] for key in ("stage", "tensor") if risk.get(key)]
        largest = as_number(risk.get("max_abs"))
        return " ".join(parts) + ("" if largest is None else f": {digits(largest)}")
    return str(risk)[:2000]


def _name(entry: Mapping[str, Any]) -> str:
    parts = (entry.get("stage"), entry.get("tensor"))
    return ": ".join(str(part)[:80] for part in parts if part)


def _charts(say: Writer, source: Source, path: str, entries: list[Mapping[str, Any]]) -> Markup:
    """Return a chart for each kind of activation, with the layers from left to right."""
    kinds: dict[str, list[Point]] = {}
    for index, entry in enumerate(entries):
        layer, value = entry.get("layer"), as_number(entry.get("max_abs"))
        # The logits of the head belong to no layer: they are in the table.
        if type(layer) is not int or not 0 <= layer < NUM_LAYERS or not value or value < 0:
            continue
        label = say.plain("point-layer", layer=layer, error=digits(value))
        origin = f"{source.name}.{path}.{index}.max_abs"
        kinds.setdefault(_name(entry), []).append(Point(layer, value, label, origin))
    points = [point for one in kinds.values() for point in one]
    if not points:
        return Markup("")
    num_layers = int(max(point.at for point in points)) + 1
    # Room above the line of float16 for its name.
    ticks = powers_of_ten(
        min(point.value for point in points),
        max(2 * FLOAT16_MAX, *(point.value for point in points)),
    )
    figures = []
    for number, (name, one) in enumerate(list(kinds.items())[:_MOST_CHARTS]):
        axes = Axes(
            title=name,
            description=say.plain("about-audit", name=name),
            across=say.plain("layer"),
            up=say.plain("max-abs"),
            ticks=ticks,
            is_logarithmic=True,
            limit=(FLOAT16_MAX, say.plain("float16-end")),
        )
        series = [Series(say.plain("deployed"), "kept", tuple(one))]
        chart = by_layer(f"audit-{number}", axes, series, num_layers)
        figures.append(element("figure", element("figcaption", text(name)), chart))
    return element("div", *figures, class_="charts")


def _table(say: Writer, source: Source, path: str, entries: list[Mapping[str, Any]]) -> Markup:
    keys = ("max_abs", "rms", "percent_of_float16", "bfloat16_step")
    rows = (
        (
            text("–" if entry.get("layer") is None else entry["layer"]),
            text(entry.get("stage") or "–"),
            text(entry.get("tensor") or "–"),
            *(source.figure(f"{path}.{index}.{key}", digits) for key in keys),
        )
        for index, entry in enumerate(entries)
    )
    names = ("layer", "stage", "tensor", "max-abs", "rms", "percent", "bfloat16-step")
    label = say.plain("section-audit")
    return table([say(name) for name in names], rows, label=label, class_="numbers")
