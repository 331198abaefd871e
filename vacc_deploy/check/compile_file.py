"""Check a compile file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vacc_deploy.problems.problem import Problem
from vacc_deploy.vamc.cards import Card, MemoryPlan


@dataclass
class CheckedCompileFile:
    """A compile file that was checked."""

    problems: list[Problem] = field(default_factory=list)
    directory: Path | None = None
    memory: MemoryPlan | None = None


def check_compile_file(path: Path, card: Card | None = None) -> CheckedCompileFile:
    """Return what is wrong with a compile file."""
    del path, card
    return CheckedCompileFile()
