"""The list of codes in ``docs/checks.md``, made from ``vacc_deploy/problems``.

Run as a program it writes the list into the page anew.
"""

import re
from pathlib import Path

from vacc_deploy.cli import cli
from vacc_deploy.problems.catalog import all_rules

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "checks.md"
BEGIN, END = "<!-- checks: begin -->", "<!-- checks: end -->"
_COMMAND = re.compile(rf"(vacc-deploy (?:{'|'.join(cli.commands)})|check --fix)\b")
_GROUPS = {
    "VD1": "Files of a directory",
    "VD2": "Configurations",
    "VD3": "Source files",
    "VD4": "Tokenizer",
    "VD5": "Values of the weights",
    "VD6": "Compile file",
    "VD7": "Compile file and directory",
    "VD8": "Card",
}


def render():
    """Return every rule, in a table for each group."""
    blocks = []
    for prefix, title in _GROUPS.items():
        rules = [rule for code, rule in all_rules().items() if code.startswith(prefix)]
        if not rules:
            continue
        lines = [
            f"## {title}",
            "",
            "| code | severity | what is wrong | why it matters | what to do |",
        ]
        lines.append("|---|---|---|---|---|")
        for rule in rules:
            mended = " *" if rule.is_fixable else ""
            cells = (f"`{rule.code}`{mended}", rule.severity, rule.title, rule.why, rule.fix)
            lines.append(f"| {' | '.join(map(_write_cell, cells))} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _write_cell(text):
    """Return a cell with the commands in it as code."""
    text = _COMMAND.sub(r"`\1`", text)
    return text.replace("|", "\\|")


def put_into(page):
    """Return the text of the page with the list of today."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{render()}\n{END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(put_into(PAGE.read_text("utf-8")), "utf-8")
