"""A page from its sections: the frame around them, and the verdict on top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vacc_deploy import __version__
from vacc_deploy.outputs.seal import seal_page
from vacc_deploy.pages.markup import Markup, element, join, text
from vacc_deploy.pages.style import STYLE
from vacc_deploy.pages.texts import LANGUAGES, TEXTS

# How a file begins that ``--report`` may replace.
PAGE_HEAD = "<!DOCTYPE html>\n<!-- A report of vacc-deploy. -->\n"
# Of lists in a stranger's file; what is beyond is counted.
MOST_ROWS = 2000
# The browser then loads nothing and runs nothing, whatever a text may have become.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
# A tick, a cross, a sheet, a circle: the verdict is not told by colour alone.
_SIGNS = {
    "good": "M8 21 L17 30 L33 11",
    "bad": "M10 10 L30 30 M30 10 L10 30",
    "written": "M11 6 H24 L30 12 V34 H11 Z M16 19 H25 M16 26 H25",
    "open": "M20 7 A13 13 0 1 0 20.01 7 M13 20 L27 20",
}


@dataclass(frozen=True)
class Section:
    """One part of a page.

    Attributes:
        name: of its texts, ``section-<name>`` and ``lead-<name>``, and the target of its link.
        body: what follows the lead.
    """

    name: str
    body: Markup


@dataclass(frozen=True)
class Writer:
    """The texts of one language."""

    language: str

    def __call__(self, key: str, **values: Markup) -> Markup:
        """Return a text with ``values`` filled in."""
        template = TEXTS[key][LANGUAGES.index(self.language)]
        return Markup(text(template).format(**values))

    def plain(self, key: str, **values: object) -> str:
        """Return a text that is no markup yet, for attributes and charts."""
        return TEXTS[key][LANGUAGES.index(self.language)].format(**values)


@dataclass(frozen=True)
class Verdict:
    """What stands on top of a page.

    Attributes:
        kind: ``good``, ``bad``, ``written`` or ``open``.
        word: the verdict.
        sentence: what it means.
        reasons: lines of the command, in English.
    """

    kind: str
    word: Markup
    sentence: Markup
    reasons: Sequence[str] = ()

    def to_markup(self) -> Markup:
        """Return the box."""
        sign = element(
            "svg", element("path", d=_SIGNS[self.kind]), viewBox="0 0 40 40", aria_hidden="true"
        )
        inner = [element("strong", self.word), element("span", self.sentence)]
        if self.reasons:
            inner.append(lines(self.reasons))
        return element("div", sign, element("div", *inner), class_=f"verdict {self.kind}")


@dataclass(frozen=True)
class Head:
    """What a page begins with.

    Attributes:
        kind: ``verify``, ``quantize`` or ``check``.
        model: the name in the heading.
        verdict: of the page.
        tiles: the most important figures.
    """

    kind: str
    model: str
    verdict: Verdict
    tiles: Sequence[Markup] = ()


def lines(sentences: Sequence[str]) -> Markup:
    """Return sentences of a command as a list; they are in English on every page."""
    entries = (element("li", text(sentence)) for sentence in sentences)
    return element("ul", *entries, class_="plain", lang="en")


def paragraph(inner: Markup, class_: str = "") -> Markup:
    """Return a paragraph."""
    return element("p", inner, class_=class_ or None)


def tile(title: Markup, value: Markup, *more: Markup) -> Markup:
    """Return one important figure, its name, and small print below it."""
    return element(
        "div", element("h3", title), element("p", value, class_="big"), *more, class_="tile"
    )


def small(inner: Markup) -> Markup:
    """Return small print."""
    return element("small", inner)


def notes_section(say: Writer, notes: Sequence[str]) -> Section | None:
    """Return the notes of a command."""
    if not notes:
        return None
    lead = [] if say.language == "en" else [paragraph(say("in-english"), "lead")]
    return Section("notes", join([*lead, lines(notes)]))


def build_page(say: Writer, head: Head, sections: Sequence[Section | None]) -> str:
    """Return the whole file, with its seal."""
    shown = [section for section in sections if section]
    title = say(f"title-{head.kind}", model=text(head.model))
    top = element(
        "header",
        paragraph(say(f"kicker-{head.kind}"), "kicker"),
        element("h1", text(head.model)),
        head.verdict.to_markup(),
        element("div", *head.tiles, class_="tiles") if head.tiles else Markup(""),
        _contents(say, shown),
    )
    body = element(
        "body",
        top,
        element("main", *(_section(say, section) for section in shown)),
        element(
            "footer",
            paragraph(say("made-by", version=text(__version__))),
            paragraph(say("footer")),
        ),
    )
    heads = (
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    language = "zh-CN" if say.language == "zh" else "en"
    return seal_page(
        f"{PAGE_HEAD}{element('html', element('head', *heads), body, lang=language)}\n"
    )


def _contents(say: Writer, sections: Sequence[Section]) -> Markup:
    if len(sections) < 2:
        return Markup("")
    links = (
        element("li", element("a", say(f"section-{section.name}"), href=f"#{section.name}"))
        for section in sections
    )
    return element("nav", element("ul", *links), aria_label=say.plain("contents"))


def _section(say: Writer, section: Section) -> Markup:
    inner = [element("h2", say(f"section-{section.name}"))]
    if (lead := f"lead-{section.name}") in TEXTS:
        inner.append(paragraph(say(lead), "lead"))
    return element("section", *inner, section.body, id=section.name)
