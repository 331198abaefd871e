"""Rules for a compile file: alone, against the directory that it names, and against the card."""

from __future__ import annotations

from vacc_deploy.problems.problem import ERROR, Rule

UNREADABLE_YAML = Rule(
    "VD600",
    ERROR,
    "the compile file cannot be read",
    "vamc reads plain YAML; anchors, tags and repeated keys are refused here.",
    "Write the file again with vacc-deploy yaml.",
)
