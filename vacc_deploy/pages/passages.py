"""The section on the tokens that two models predict most differently."""

from __future__ import annotations

from collections.abc import Sequence

from vacc_deploy.pages.figures import digits, figure
from vacc_deploy.pages.markup import Markup, element, join, text
from vacc_deploy.pages.page import Section, Writer, paragraph
from vacc_deploy.pages.words import NO_CHARACTER, Passage, Word

# Where a KL begins to have each colour, in nats.
_HEATS = (0.003, 0.01, 0.1, 1.0)
# Stand for what has no sign of its own.
_SIGNS = {"\n": "↵", "\t": "⇥", "\r": "␍"}


def passages_section(say: Writer, passages: Sequence[Passage]) -> Section | None:
    """Return the passages, and what their colours mean."""
    if not passages:
        return None
    shown = element("ol", *(_passage(say, passage) for passage in passages), class_="words")
    return Section("words", join([_scale(say), shown]))


def unreadable_section(say: Writer, reason: str) -> Section:
    """Return why there are no passages."""
    return Section("words", paragraph(say("no-words", reason=text(reason))))


def heat(kl: float | None) -> int:
    """Return the colour of a KL, 0 to 4; NaN has the strongest."""
    if kl is None:
        return 0
    return sum(not kl < start for start in _HEATS)


def _scale(say: Writer) -> Markup:
    entries = [element("li", say("heat-title"))]
    for level in range(len(_HEATS) + 1):
        low = text(f"{_HEATS[level - 1]:g}") if level else Markup("")
        high = text(f"{_HEATS[level]:g}") if level < len(_HEATS) else Markup("")
        key = f"heat-{level}" if level in (0, len(_HEATS)) else "heat"
        name = say(key, low=low, high=high)
        entries.append(element("li", element("span", name, class_=f"heat-{level}")))
    return element("ul", *entries, class_="scale")


def _passage(say: Writer, passage: Passage) -> Markup:
    origin = f"item {passage.prediction} verify.token_kl"
    kl = say("word-kl", kl=figure(passage.kl, origin, digits))
    place = say("word-place", row=text(passage.row), at=text(passage.at))
    first = passage.top_float
    if passage.is_same and first is not None:
        expected = say("word-same", token=_quoted(say, first))
    else:
        expected = say(
            "word-other", float=_quoted(say, first), deployed=_quoted(say, passage.top_deployed)
        )
    return element(
        "li",
        paragraph(join([element("strong", kl), place], " · ")),
        element("p", *(_word(say, word) for word in passage.words), class_="passage", dir="auto"),
        paragraph(expected, "note"),
    )


def _quoted(say: Writer, token: tuple[int, str] | None) -> Markup:
    if token is None:
        return text("NaN")
    number, shown = token
    if NO_CHARACTER in shown or not shown:
        return say("word-part", id=text(number))
    return element("code", text(f"“{_visible(shown)}”"))


def _visible(token: str) -> str:
    return "".join(_SIGNS.get(char, char) for char in token)


def _word(say: Writer, word: Word) -> Markup:
    """Return a word; the space in front of it, which belongs to its token, has no colour."""
    level = heat(word.kl)
    classes = [f"heat-{level}"] if level else []
    if word.is_target:
        classes.append("target")
    if not classes:
        return text(_visible(word.text))
    title = say.plain("word-kl", kl=digits(word.kl)) if word.kl is not None else None
    letters = word.text.lstrip(" ")
    # A token of nothing else has to be seen.
    before, shown = (" " * (len(word.text) - len(letters)), letters) if letters else ("", "␣")
    marked = element("span", text(_visible(shown)), class_=" ".join(classes), title=title)
    return join([text(before), marked])
