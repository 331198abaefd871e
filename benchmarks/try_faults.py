"""Disturb every command that writes, in thousands of ways, and judge what is left.

    python benchmarks/try_faults.py [--seconds 60 | --count N] [--seed 0] [--kind KIND]...
    python benchmarks/try_faults.py --every-full-disk

Each case is drawn by the seed: a kind of fault, a command, what stood there before, a moment. It
runs in a fork of this process, and so does the run after it. Prints each case that breaks a
promise, then a Markdown table; ends with exit code 1 where a promise was broken. ``--case N`` tries
the N-th case of a seed alone and keeps its files.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests/faults", "tests/helpers", "")]

import torch  # noqa: E402
from calls import every_full_disk  # noqa: E402
from kinds import KINDS, is_tried  # noqa: E402
from measured import machine  # noqa: E402
from play import Case, Verdict, play  # noqa: E402
from runs import COMMANDS, Command  # noqa: E402
from stage import FRESH, OVERWRITE, READ, RESUME, Stage  # noqa: E402

# What the columns count: the first word of a problem.
PROBLEMS = ("loss", "half", "stray", "left", "escape", "traceback", "code", "message", "hang")
# A demo takes fifteen seconds: only where it is asked for.
DEFAULT = tuple(name for name in COMMANDS if name != "demo")
COLUMNS = ("tried", "old whole", "new whole", "none", "continued", *PROBLEMS)


def starts_of(command: Command) -> tuple[str, ...]:
    """Return how cases of a command can begin."""
    if not command.output:
        return (READ,)
    return (FRESH, OVERWRITE, RESUME) if command.is_resumable else (FRESH, OVERWRITE)


def draw(stage: Stage, rng: random.Random, kinds: tuple[str, ...], names: tuple[str, ...]) -> Case:
    """Return a case; of a dear command fewer than of a cheap one."""
    commands = [COMMANDS[name] for name in names]
    weights = [1 / command.cost for command in commands]
    while True:
        command = rng.choices(commands, weights)[0]
        kind, start = rng.choice(kinds), rng.choice(starts_of(command))
        base, own = stage.base(command, start), random.Random(rng.random())
        if is_tried(kind, base):
            return KINDS[kind][0](base, own)


def every(stage: Stage, names: tuple[str, ...]) -> Iterator[Case]:
    """Yield a full disk at every call of every command that can meet it, once and for good."""
    for name in names:
        for start in starts_of(COMMANDS[name]):
            for lasts in (True, False) if start != READ else ():
                yield from every_full_disk(stage.base(COMMANDS[name], start), lasts=lasts)


class Table:
    """Counts of verdicts by kind, and by command."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self.skipped: Counter[str] = Counter()

    def add(self, verdict: Verdict) -> None:
        """Count a verdict."""
        if verdict.is_skipped:
            self.skipped[verdict.is_skipped] += 1
            return
        counted = ["tried", *{problem.partition(":")[0] for problem in verdict.problems}]
        state = verdict.states[-1] if verdict.states else ""
        names = {"old": "old whole", "aside": "old whole", "new": "new whole", "some": "new whole"}
        counted.append(names.get(state, "none"))
        counted += ["continued"] if verdict.has_partial and not verdict.problems else []
        case = verdict.case
        for row in (("fault", case.kind), ("command", case.command.name)):
            self._rows[row].update(counted)

    def to_text(self, title: str) -> str:
        """Return one of the two tables in Markdown."""
        lines = [f"| {title} | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
        total: Counter[str] = Counter()
        for (kind, name), counts in sorted(self._rows.items()):
            if kind == title:
                lines.append(f"| {name} | {' | '.join(str(counts[c]) for c in COLUMNS)} |")
                total.update(counts)
        lines.append(f"| all | {' | '.join(str(total[c]) for c in COLUMNS)} |")
        return "\n".join(lines)


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="Stop after this time.")
@click.option("--count", type=int, help="Try this many cases, however long it takes.")
@click.option("--seed", default=0, show_default=True, help="Random seed of the cases.")
@click.option("--kind", "kinds", multiple=True, help="Try this kind of fault only.")
@click.option(
    "--command", "names", multiple=True, help="Disturb this command only.  [default: all but demo]"
)
@click.option("--case", "number", type=int, help="Try one case of the seed; keep its files.")
@click.option("--every-full-disk", "is_every", is_flag=True, help="Try a full disk at every call.")
@click.option("--directory", type=click.Path(path_type=Path), help="Directory to write in.")
def main(
    seconds: float,
    count: int | None,
    seed: int,
    kinds: tuple[str, ...],
    names: tuple[str, ...],
    number: int | None,
    is_every: bool,
    directory: Path | None,
) -> None:
    """Disturb commands and judge what is left."""
    torch.set_num_threads(1)
    if directory is None and os.access("/dev/shm", os.W_OK):
        directory = Path("/dev/shm")
    home = Path(tempfile.mkdtemp(prefix="vacc-deploy-faults-", dir=directory))
    os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=str(home / "hub"))
    stage, table, rng = Stage(home), Table(), random.Random(seed)
    kinds, names = kinds or tuple(KINDS), names or DEFAULT
    cases = every(stage, names) if is_every else None
    began, tried, failed = time.monotonic(), 0, 0
    with suppress(KeyboardInterrupt):  # the table of what was tried until then
        while count is None or tried < count:
            is_over = time.monotonic() - began > seconds
            if is_over and count is None and number is None and not is_every:
                break
            case = draw(stage, rng, kinds, names) if cases is None else next(cases, None)
            if case is None:
                break
            tried += 1
            if number not in (None, tried):
                continue
            verdict = play(stage, case, keep=number is not None)
            table.add(verdict)
            failed += bool(verdict.problems)
            if verdict.problems or tried == number:
                click.echo(f"case {tried} of seed {seed}: {case.kind}, {verdict.to_text()}")
            if tried == number:
                click.echo(f"files in {home}")
                sys.exit(failed)
    shutil.rmtree(home)
    taken = time.monotonic() - began
    click.echo(f"\n{tried} cases of seed {seed} in {taken:.0f} s, {machine()}\n")
    click.echo(f"{table.to_text('fault')}\n\n{table.to_text('command')}")
    for reason, times in table.skipped.items():
        click.echo(f"skipped {times} cases: {reason}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
