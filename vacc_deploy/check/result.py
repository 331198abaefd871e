"""What ``check`` returns: every finding of every target, as text, as JSON, and counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vacc_deploy.errors import shorten
from vacc_deploy.problems.problem import ERROR, SEVERITIES, WARNING, Problem
from vacc_deploy.results import format_pairs

# Findings of one rule in one target that a text shows; JSON and SARIF have all.
_SHOWN = 5
# Characters of a target and the place in it.
_NAME_SHOWN = 1000


@dataclass(frozen=True)
class Finding:
    """A problem of one target."""

    target: str
    problem: Problem

    @property
    def place(self) -> str:
        """The target, the line where one is known, and the place in it."""
        line = f":{self.problem.line}" if self.problem.line else ""
        inside = f": {self.problem.where}" if self.problem.where else ""
        return _one_line(f"{self.target}{line}{inside}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        problem, rule = self.problem, self.problem.rule
        return {
            "code": rule.code,
            "severity": rule.severity,
            "title": rule.title,
            "target": self.target,
            "where": problem.where,
            "line": problem.line or None,
            "text": str(problem),
            "got": problem.got,
            "expected": problem.expected,
            "why": rule.why,
            "fix": rule.fix,
            "fixable": rule.is_fixable,
        }


@dataclass(frozen=True)
class CheckedTarget:
    """One target, what it was taken for, and what else was learned of it.

    Attributes:
        name: as it was given.
        kind: ``directory`` or ``compile file``.
        problems: what was found.
        figures: name and text of what was computed, for example the memory of a die.
        details: the same and more as plain values, for JSON.
    """

    name: str
    kind: str
    problems: tuple[Problem, ...]
    figures: tuple[tuple[str, str], ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether there is no error."""
        return not any(problem.rule.severity == ERROR for problem in self.problems)


@dataclass(frozen=True)
class CheckResult:
    """The findings of a run of ``check``.

    Attributes:
        targets: in the order in which they were given.
        is_strict: whether a warning fails the check, too.
        fixed: what ``--fix`` wrote; empty without it.
        applied: what was mended there, sentences.
    """

    targets: tuple[CheckedTarget, ...]
    is_strict: bool = False
    fixed: str = ""
    applied: tuple[str, ...] = ()

    def findings(self) -> Iterator[Finding]:
        """Yield every finding, the worst of a target first, then by code."""
        for target in self.targets:
            ordered = sorted(
                target.problems,
                key=lambda p: (SEVERITIES.index(p.rule.severity), p.rule.code, str(p)),
            )
            for problem in ordered:
                yield Finding(target.name, problem)

    def counts(self) -> dict[str, int]:
        """Return the number of findings of each severity."""
        found = [finding.problem.rule.severity for finding in self.findings()]
        return {severity: found.count(severity) for severity in SEVERITIES}

    @property
    def passed(self) -> bool:
        """Whether nothing was found that fails the check."""
        counts = self.counts()
        return not counts[ERROR] and not (self.is_strict and counts[WARNING])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        return {
            "passed": self.passed,
            "counts": self.counts(),
            "targets": [
                {"target": t.name, "kind": t.kind, "passed": t.passed, **t.details}
                for t in self.targets
            ],
            "findings": [finding.to_dict() for finding in self.findings()],
            **({"fixed": self.fixed, "applied": list(self.applied)} if self.fixed else {}),
        }

    def to_text(self) -> str:
        """Return the findings one under the other, then the verdict."""
        lines = [line for finding in self.shown() for line in (*_describe(finding), "")]
        lines += self.to_verdict()
        return "\n".join(lines)

    def shown(self) -> Iterator[Finding]:
        """Yield the findings that a text shows: the first few of a rule in one target.

        The last one of them says how many more there are.
        """
        groups = dict[tuple[str, str], list[Finding]]()
        for finding in self.findings():
            groups.setdefault((finding.target, finding.problem.rule.code), []).append(finding)
        for group in groups.values():
            yield from group[:_SHOWN]
            if len(group) > _SHOWN:
                last = group[_SHOWN - 1]
                text = f"and {len(group) - _SHOWN} more of this kind (--json has all)"
                yield Finding(last.target, last.problem.rule.broken(text))

    def to_verdict(self) -> list[str]:
        """Return the figures of each target, and the last lines: counts and verdict."""
        lines = []
        for target in self.targets:
            if target.figures:
                lines += [_one_line(target.name), format_pairs(target.figures), ""]
        lines += [f"Fixed: {_indent(sentence)}" for sentence in self.applied]
        if self.fixed:
            lines.append(f"Written: {_one_line(self.fixed)}")
        counts = [_count(number, name) for name, number in self.counts().items() if number]
        names = ", ".join(_one_line(target.name) for target in self.targets)
        found = f": {', '.join(counts)}" if counts else ": nothing found"
        lines.append(f"{'Passed' if self.passed else 'Failed'}: {names}{found}.")
        return lines


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _one_line(name: str) -> str:
    """Return a name, which may be a stranger's, as it stands within a line of ours."""
    return shorten(name, _NAME_SHOWN)


def _describe(finding: Finding) -> list[str]:
    """Return one finding as lines; what a stranger wrote begins none of them."""
    problem, rule = finding.problem, finding.problem.rule
    lines = [f"{rule.code} {rule.severity}: {rule.title}", f"  where     {finding.place}"]
    lines.append(f"  found     {_indent(problem)}")
    if problem.expected and problem.got:
        lines.append(f"  got       {_indent(problem.got)}")
        lines.append(f"  expected  {_indent(problem.expected)}")
    return [*lines, f"  why       {rule.why}", f"  fix       {rule.fix}"]


def _indent(text: str) -> str:
    return text.replace("\n", "\n            ")
