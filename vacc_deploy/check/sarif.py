"""Findings in SARIF 2.1.0, the form in which systems of continuous integration show them.

Source: OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vacc_deploy import __version__
from vacc_deploy.check.result import CheckResult, Finding
from vacc_deploy.problems.catalog import all_rules
from vacc_deploy.problems.problem import Rule

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def to_sarif(result: CheckResult) -> dict[str, Any]:
    """Return the log of one run: every rule, and every finding with its place."""
    rules = list(all_rules().values())
    numbers = {rule.code: number for number, rule in enumerate(rules)}
    driver = {
        "name": "vacc-deploy check",
        "version": __version__,
        "rules": [_describe_rule(rule) for rule in rules],
    }
    results = [
        _describe_finding(finding, numbers[finding.problem.rule.code])
        for finding in result.findings()
    ]
    run = {"tool": {"driver": driver}, "results": results, "columnKind": "unicodeCodePoints"}
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _describe_rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.code,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.why},
        "help": {"text": rule.fix},
        "defaultConfiguration": {"level": rule.severity},
    }


def _describe_finding(finding: Finding, rule_index: int) -> dict[str, Any]:
    problem, rule = finding.problem, finding.problem.rule
    file, _, inside = problem.where.partition(": ")
    target = Path(finding.target)
    # A compile file is its own place; of a directory the file is, where one is known.
    path = target / file if target.is_dir() and (target / file).is_file() else target
    location: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": _uri(path)}},
    }
    if line := problem.line:
        location["physicalLocation"]["region"] = {"startLine": line}
    if name := inside or (problem.where if path == target else ""):
        location["logicalLocations"] = [{"fullyQualifiedName": name}]
    message = f"{problem}. {rule.why} {rule.fix}"
    return {
        "ruleId": rule.code,
        "ruleIndex": rule_index,
        "level": rule.severity,
        "message": {"text": message},
        "locations": [location],
    }


def _uri(path: Path) -> str:
    """Return a path as a URI: relative ones stay so, for the system that shows them."""
    return path.resolve().as_uri() if path.is_absolute() else quote(os.fsencode(path.as_posix()))
