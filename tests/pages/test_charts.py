"""Charts: marks stand where their values are, and scales hold all of them."""

import math

import pytest
from page_reader import read_page

from vacc_deploy.pages.charts import (
    HEIGHT,
    WIDTH,
    Axes,
    Bar,
    Point,
    Series,
    by_layer,
    even_ticks,
    gauge,
    histogram,
    power,
    powers_of_ten,
)


def axes(ticks, **more):
    labelled = tuple((tick, str(tick)) for tick in ticks)
    return Axes("title", "description", "across", "up", labelled, **more)


def marks(svg, name="circle"):
    return [attributes for tag, attributes in read_page(svg).tags if tag == name]


@pytest.mark.parametrize("largest", [1e-12, 0.0123, 0.1, 0.99, 1.0, 3, 47.5, 232, 1e9])
def test_even_ticks_reach_from_zero_beyond_the_largest_value(largest):
    ticks = even_ticks(largest)
    steps = {round((b - a) / ticks[1], 6) for a, b in zip(ticks, ticks[1:], strict=False)}
    assert ticks[0] == 0 and steps == {1} and 4 <= len(ticks) <= 6
    assert largest <= ticks[-1] * 1.0001 and ticks[-1] <= 2 * largest


@pytest.mark.parametrize("largest", [0, math.inf, math.nan, -1])
def test_even_ticks_of_no_size_are_those_of_one(largest):
    assert even_ticks(largest) == even_ticks(1)


@pytest.mark.parametrize(("low", "high"), [(0.5, 65504), (1e-30, 1e30), (10, 10), (3.0, 4.0)])
def test_powers_of_ten_hold_the_range(low, high):
    ticks = powers_of_ten(low, high)
    assert ticks[0][0] <= low and ticks[-1][0] >= high and 2 <= len(ticks) <= 9
    assert power(-12) == "10⁻¹²"


@pytest.mark.parametrize("is_logarithmic", [False, True])
def test_a_mark_stands_at_its_value(is_logarithmic):
    ticks = (1, 10, 100) if is_logarithmic else (0, 50, 100)
    values = (100, 10, 1) if is_logarithmic else (100, 50, 0)
    points = tuple(Point(at, value, "label", f"x.{at}") for at, value in enumerate(values))
    drawn = by_layer(
        "a", axes(ticks, is_logarithmic=is_logarithmic), [Series("s", "kept", points)], 3
    )
    heights = [float(one["cy"]) for one in marks(drawn)]
    assert heights[1] == pytest.approx((heights[0] + heights[2]) / 2, abs=0.1)
    assert heights[0] < heights[2] < HEIGHT
    assert [one["data-value"] for one in marks(drawn)] == [repr(value) for value in values]


def test_no_mark_leaves_the_chart():
    points = [Point(at, value, "", "") for at, value in ((0, 1e300), (500, -1.0), (999, 0.0))]
    series = [Series("s", kind, tuple(points)) for kind in ("kept", "rounding")]
    drawn = by_layer("a", axes((0, 1)), series, 1000)
    for one in marks(drawn):
        assert 0 < float(one["cx"]) < WIDTH and 0 < float(one["cy"]) < HEIGHT
    squares = [one for one in marks(drawn, "rect")]
    assert len(squares) == 3 and all(0 < float(one["x"]) < WIDTH for one in squares)


def test_two_series_differ_by_shape_and_not_by_colour_alone():
    point = (Point(0, 0.5, "", ""),)
    series = [Series("a", "kept", point), Series("b", "rounding", point)]
    drawn = by_layer("a", axes((0, 1)), series, 1)
    assert len(marks(drawn, "circle")) == len(marks(drawn, "rect")) == 1


def test_bars_are_as_high_as_their_counts():
    bars = [Bar(-2, -1.75, 10, "", ""), Bar(-1.75, -1.5, 40, "", ""), Bar(-1.5, -1.25, 0, "", "")]
    drawn = histogram("a", axes((0, 50), limit_across=(-1.6, "limit")), bars, "less")
    heights = [float(one["height"]) for one in marks(drawn, "rect")]
    assert heights[1] == pytest.approx(4 * heights[0], abs=0.3) and heights[2] == 0
    assert "limit" in read_page(drawn).words


@pytest.mark.parametrize(("value", "filled"), [(0, 0), (0.5, 50), (1, 100), (9, 200)])
def test_a_gauge_is_filled_to_its_value(value, filled):
    drawn = gauge(value, 1, (0, 2), "label")
    assert float(marks(drawn, "rect")[1]["width"]) == filled


def test_texts_of_strangers_are_escaped():
    series = [Series("s", "kept", (Point(0, 1, "<script>", 'a"b'),))]
    drawn = by_layer("a", Axes("<b>", "<i>", "<u>", "&", ((0, "<"), (1, ">"))), series, 1)
    assert {tag for tag, _ in read_page(drawn).tags} == {
        *("svg", "title", "desc", "line", "text", "circle")
    }
