"""The list of all rules, by code."""

from __future__ import annotations

from vacc_deploy.problems import (
    card,
    compile_directory,
    compile_file,
    configuration,
    files,
    tokens,
    values,
)
from vacc_deploy.problems.problem import Rule


def all_rules() -> dict[str, Rule]:
    """Return every rule by its code, in the order of the codes."""
    modules = (files, configuration, tokens, values, compile_file, compile_directory, card)
    rules = [rule for module in modules for rule in vars(module).values() if type(rule) is Rule]
    return {rule.code: rule for rule in sorted(rules, key=lambda rule: rule.code)}
