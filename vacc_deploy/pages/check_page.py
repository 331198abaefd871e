"""The page of ``check``: findings, the gravest first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vacc_deploy.pages.figures import Source, count, figure
from vacc_deploy.pages.markup import Markup, element, join, pairs, table, text
from vacc_deploy.pages.page import (
    MOST_ROWS,
    Head,
    Section,
    Verdict,
    Writer,
    build_page,
    paragraph,
    tile,
)

_SEVERITIES = ("error", "warning", "note")
# What a finding says, in this order, each a text.
_FIELDS = ("target", "where", "got", "expected", "why", "fix")


def check_page(result: Mapping[str, Any], *, language: str, command_line: str) -> str:
    """Return the page of a check, one whole HTML file.

    Args:
        result: ``passed``; ``findings``, a list of objects with ``code``, ``severity``
            (``error``, ``warning`` or ``note``), ``title``, ``target``, ``where``, ``text``,
            ``got``, ``expected``, ``why`` and ``fix``; and ``targets``, objects with ``target``,
            ``kind`` and ``passed``. See ``check.result.CheckResult.to_dict``.
        language: one of ``texts.LANGUAGES``.
        command_line: what writes this page again.
    """
    say, source = Writer(language), Source("check", result)
    findings = source.records("findings", len(result.get("findings") or ()))
    counts = {name: sum(_severity(one) == name for one in findings) for name in _SEVERITIES}
    verdict = _verdict(say, result.get("passed") is True, counts)
    tiles = [
        tile(say(f"{name}s"), figure(number, f"count check.findings severity={name}", count))
        for name, number in counts.items()
    ]
    targets = source.records("targets", MOST_ROWS)
    names = [str(target.get("target"))[:2000] for target in targets]
    name = ", ".join(names[:3]) + ("…" if len(names) > 3 else "")
    head = Head("check", name or "vacc-deploy check", verdict, tiles)
    sections = [
        _findings(say, findings),
        _targets(say, targets),
        _commands(say, command_line),
    ]
    return build_page(say, head, sections)


def _severity(finding: Mapping[str, Any]) -> str:
    value = finding.get("severity")
    return value if value in _SEVERITIES else "error"


def _verdict(say: Writer, passed: bool, counts: Mapping[str, int]) -> Verdict:
    """Return the verdict; with ``--strict`` a check fails on warnings alone."""
    if passed:
        return Verdict("good", say("passed"), say("check-passed"))
    sentence = "check-failed" if counts["error"] else "check-strict"
    return Verdict("bad", say("failed"), say(sentence))


def _targets(say: Writer, targets: list[Mapping[str, Any]]) -> Section | None:
    if not targets:
        return None
    rows = [
        (
            text(str(target.get("target"))[:2000]),
            element("span", text(str(target.get("kind"))[:200]), lang="en"),
            say("passed" if target.get("passed") is True else "failed"),
        )
        for target in targets
    ]
    headers = [say(key) for key in ("file", "kind", "verdict")]
    listed = table(headers, rows, label=say.plain("section-targets"), class_="files")
    return Section("targets", listed)


def _findings(say: Writer, findings: list[Mapping[str, Any]]) -> Section:
    """Return the most serious findings, and how many more there are."""
    if not findings:
        return Section("findings", paragraph(say("no-findings")))
    gravest = sorted(findings, key=lambda one: _SEVERITIES.index(_severity(one)))
    parts = [_finding(say, one) for one in gravest[:MOST_ROWS]]
    if rest := gravest[MOST_ROWS:]:
        parts.append(paragraph(say("more", number=text(f"{len(rest):,}"))))
    return Section("findings", join(parts))


def _finding(say: Writer, finding: Mapping[str, Any]) -> Markup:
    severity = _severity(finding)
    head = element(
        "h3",
        element("span", say(f"severity-{severity}"), class_=f"severity {severity}"),
        text(f" {finding.get('code', '')} {finding.get('title', '')}"),
    )
    parts = [head]
    if finding.get("text"):
        parts.append(element("p", text(finding["text"]), lang="en"))
    rows = [
        (say(name), element("span", text(finding[name]), lang="en"))
        for name in _FIELDS
        if finding.get(name) not in (None, "")
    ]
    return element("article", *parts, pairs(rows))


def _commands(say: Writer, command_line: str) -> Section:
    line = element("pre", element("code", text(command_line)), lang="en")
    return Section("commands", join([paragraph(say("command-page")), line]))
