"""The table of bounds in ``docs/security.md``, made from ``vacc_deploy/bounds.py``.

Run as a program it writes the table into the page anew.
"""

import re
from pathlib import Path

from vacc_deploy import bounds

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "security.md"
BEGIN, END = "<!-- bounds: begin -->", "<!-- bounds: end -->"
_HEADING = re.compile(r"# ---- (.+?) -+\n")
_NAME = re.compile(r"^([A-Z0-9_]+) = Bound\(", re.MULTILINE)


def all_bounds():
    """Return every bound of the module by its name."""
    return {name: value for name, value in vars(bounds).items() if isinstance(value, bounds.Bound)}


def write_limit(bound):
    """Return a limit as a person reads it."""
    number = int(bound)
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if bound.unit == "bytes" and number % (1 << power) == 0 and number >> power:
            return f"{number >> power:,} {unit}"
    return f"{number:,} {bound.unit}".rstrip()


def render():
    """Return the sections of the module as tables, in its order."""
    source = Path(bounds.__file__).read_text("utf-8")
    _, *parts = _HEADING.split(source)
    blocks = []
    for heading, body in zip(parts[::2], parts[1::2], strict=True):
        names = _NAME.findall(body)
        rows = [getattr(bounds, name) for name in names]
        if rows:
            lines = [f"| {heading} | at most | published files | name |", "|---|---|---|---|"]
            lines += [
                f"| {bound.what} | {write_limit(bound)} | {bound.usual} | `{name}` |"
                for name, bound in zip(names, rows, strict=True)
            ]
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def put_into(page):
    """Return the text of the page with the table of today."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{render()}\n{END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(put_into(PAGE.read_text("utf-8")), "utf-8")
