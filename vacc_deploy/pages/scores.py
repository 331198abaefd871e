"""What ``verify`` found, in figures: the tiles on top, and KL over the tokens."""

from __future__ import annotations

import math

import torch

from vacc_deploy.pages.charts import Axes, Bar, even_ticks, gauge, histogram
from vacc_deploy.pages.figures import (
    Source,
    change,
    count,
    decimals,
    digits,
    figure,
    share,
)
from vacc_deploy.pages.markup import Markup, element, folded, join, pairs, table, text
from vacc_deploy.pages.page import Section, Writer, small, tile

# Of the histogram, in exponents of ten; four bars to a power of ten.
_LOWEST, _HIGHEST, _PER_POWER = -7, 2, 4
_PERCENTILES = (0.5, 0.9, 0.99, 0.999)


def score_tiles(say: Writer, verify: Source) -> list[Markup]:
    """Return the most important figures of a comparison, with their limits."""
    if verify.number("num_tokens") is None:
        return []
    tokens = verify.figure("num_tokens", count)
    error = verify.figure("kl_standard_error", digits)
    name = text(verify.get("text"))
    both = {
        "float": verify.figure("perplexity_float", decimals),
        "change": verify.figure("perplexity_change", change),
    }
    return [
        tile(
            say("mean-kl"),
            say("nats", value=verify.figure("mean_kl", digits)),
            *_limit(say, verify, "mean_kl", "max_kl"),
            small(say("kl-error", error=error)),
        ),
        tile(
            say("top1"),
            verify.figure("top1", share),
            *_limit(say, verify, "top1", "min_top1"),
            small(say("top1-of", tokens=tokens, text=name)),
        ),
        tile(
            say("perplexity"),
            verify.figure("perplexity_deployed", decimals),
            small(say("perplexity-float", **both)),
        ),
        tile(
            say("max-kl"),
            say("nats", value=verify.figure("max_kl", digits)),
            small(join([say("activations"), say(f"activations-{_activations(verify)}")], ": ")),
        ),
    ]


def _activations(verify: Source) -> str:
    return "int8" if verify.get("activations") == "int8" else "float"


def _limit(say: Writer, verify: Source, name: str, limit_name: str) -> list[Markup]:
    """Return a bar of the value and its limit, and the limit; nothing where nothing is judged."""
    value, limit = verify.number(name), verify.number(f"limits.{limit_name}")
    if not isinstance(verify.get("limits"), dict):
        return []
    if limit is None:
        return [small(say("no-limit"))]
    shown = verify.figure(f"limits.{limit_name}", share if name == "top1" else digits)
    told = small(say("limit", limit=shown))
    if value is None:
        return [told]
    is_top1 = name == "top1"
    label = say.plain("gauge-top1" if is_top1 else "gauge-kl")
    # The limit is in the middle; a share ends at 1, also where that is the limit.
    low = 2 * limit - 1 if limit < 1 else 0.0
    ends = (low, 1.0) if is_top1 else (0.0, 2 * limit or 1.0)
    return [gauge(value, limit, ends, label), told]


def kl_section(say: Writer, verify: Source, token_kl: torch.Tensor | None) -> Section | None:
    """Return the distribution of KL over the tokens.

    Args:
        say: the texts.
        verify: the result.
        token_kl: KL of every prediction, float64 [predictions], in nats.
    """
    if token_kl is None or not len(token_kl):
        return None
    finite = token_kl[torch.isfinite(token_kl)]
    if not len(finite):
        return None
    limit = _exponent(verify.number("limits.max_kl"), say)
    bars = _bars(say, finite, limit[0] if limit else _LOWEST)
    levels = torch.quantile(finite, torch.tensor(_PERCENTILES, dtype=finite.dtype)).tolist()
    axes = Axes(
        title=say.plain("chart-kl"),
        description=say.plain(
            "about-kl",
            tokens=count(len(finite)),
            median=f"{levels[0]:.3g}",
            high=f"{levels[2]:.3g}",
        ),
        across=say.plain("axis-kl"),
        up=say.plain("axis-tokens"),
        ticks=tuple((tick, count(tick)) for tick in even_ticks(max(bar.value for bar in bars))),
        limit_across=limit if limit and limit[0] < bars[-1].high else None,
    )
    drawn = element(
        "figure",
        element("figcaption", say("chart-kl")),
        histogram("kl-chart", axes, bars, say.plain("smaller")),
    )
    rows = [
        (
            say("percentile", share=text(f"{level:.1%}".replace(".0%", "%").replace("%", " %"))),
            figure(value, f"quantile {level} verify.token_kl", digits),
        )
        for level, value in zip(_PERCENTILES, levels, strict=True)
    ]
    listed = table(
        (say("axis-kl"), say("axis-tokens")),
        [(_range(say, bar), figure(bar.value, bar.origin, count)) for bar in bars],
        label=say.plain("chart-kl"),
        class_="numbers",
    )
    inner = element("div", drawn, element("div", pairs(rows)), class_="charts")
    return Section("kl", join([inner, folded(say("table"), listed)]))


def _exponent(limit: float | None, say: Writer) -> tuple[float, str] | None:
    if not limit:
        return None
    return math.log10(limit), say.plain("limit-mean", limit=f"{limit:g}")


def _range(say: Writer, bar: Bar) -> Markup:
    low, high = (text(f"{10**edge:.2g}") for edge in (bar.low, bar.high))
    return say("heat-0", high=high) if bar.low == _LOWEST else say("heat", low=low, high=high)


def _bars(say: Writer, token_kl: torch.Tensor, reach: float) -> list[Bar]:
    """Return how many values lie in each quarter of a power of ten.

    Equal predictions give 0, or a rounding below it: the first bar holds them too.

    Args:
        say: the texts.
        token_kl: finite values, in nats.
        reach: an exponent of ten that the bars should reach beyond.
    """
    edges = [
        exponent / _PER_POWER for exponent in range(_LOWEST * _PER_POWER, _HIGHEST * _PER_POWER + 1)
    ]
    bounds = torch.tensor([10.0**edge for edge in edges[1:-1]], dtype=token_kl.dtype)
    places = torch.bucketize(token_kl, bounds, right=True)
    counts = torch.bincount(places, minlength=len(edges) - 1).tolist()
    # The empty bars at the right end say nothing.
    last = max(index for index, number in enumerate(counts) if number)
    last = max(last, math.floor((reach - _LOWEST) * _PER_POWER))
    # On a whole power of ten.
    stop = min(len(counts), (last // _PER_POWER + 1) * _PER_POWER)
    bars = []
    for index, number in enumerate(counts[:stop]):
        low, high = edges[index], edges[index + 1]
        key = "bar-kl" if index else "bar-kl-first"
        label = say.plain(key, number=count(number), low=f"{10**low:.2g}", high=f"{10**high:.2g}")
        bars.append(Bar(low, high, number, label, f"histogram {index} verify.token_kl"))
    return bars
