"""Play one case: a sandbox, faults, the judgement, the next run, the judgement again."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from fault import Fault
from judge import NONE, Expected, Snapshot, commands_in, find_problems, take_snapshot
from runs import Command, Outcome, Running, copy_tree, run, work_in
from stage import FIRST_LAYER, RESUME, Base, Stage, remove


@dataclass(frozen=True)
class Case:
    """One thing to try.

    Attributes:
        kind: of the fault, for the table.
        start: ``FRESH``, ``OVERWRITE``, ``RESUME`` or ``READ``.
        faults: those of each disturbed run, one run after the other.
        codes: exit codes that are right beside 0.
        others: arguments of commands that run beside the first one: while it pauses, or from the
            same moment on.
        arrange: changes the sandbox before anything runs; may return what holds during the run.
        change: what somebody does to the inputs meanwhile, given the working directory. The output
            may be that of either inputs then, or none.
        planted: what somebody puts into the output meanwhile, path to content.
        is_stuck: the next run may fail too: what is in its way is not its own.
        is_lenient: a message need not name a file.
    """

    kind: str
    command: Command
    start: str
    faults: tuple[tuple[Fault, ...], ...] = ((),)
    codes: Collection[int] = (1,)
    others: tuple[tuple[str, ...], ...] = ()
    arrange: Callable[[Path], AbstractContextManager[None] | None] | None = None
    change: Callable[[Path], object] | None = None
    planted: tuple[tuple[str, str], ...] = ()
    is_stuck: bool = False
    is_lenient: bool = False
    words: str = ""

    def __str__(self) -> str:
        """Return the line by which a person finds the case again."""
        runs = "; then ".join(", ".join(map(str, faults)) for faults in self.faults)
        beside = f"; beside {len(self.others)} more" if self.others else ""
        return f"{self.command.name} ({self.start}): {self.words}{runs}{beside}"


@dataclass
class Verdict:
    """What became of a case.

    Attributes:
        states: what had the output's name after each disturbed run.
        codes: exit codes of all runs.
        problems: a line for each thing that must not be.
        has_partial: a partial output was left, for the next run to clear or to go on with.
    """

    case: Case
    states: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    has_partial: bool = False
    is_skipped: str = ""

    def to_text(self) -> str:
        """Return the case, its problems and what was said."""
        said = "".join(
            f"\n    | {line}" for text in self.messages for line in text.splitlines()[-12:]
        )
        problems = "".join(f"\n    {problem}" for problem in self.problems)
        return f"{self.case}\n    codes {self.codes}, states {self.states}{problems}{said}"


def play(stage: Stage, case: Case, *, keep: bool = False) -> Verdict:
    """Try a case; return what became of it."""
    base, verdict = stage.base(case.command, case.start), Verdict(case)
    sandbox = copy_tree(base.sandbox, stage.new_place())
    try:
        _play(base, case, sandbox, verdict)
    except Skipped as err:
        verdict.is_skipped = str(err)
    finally:
        if not (keep and verdict.problems):
            remove(sandbox)
    return verdict


class Skipped(Exception):
    """This machine cannot do what a case needs."""


def _play(base: Base, case: Case, sandbox: Path, verdict: Verdict) -> None:
    held = case.arrange(sandbox) if case.arrange is not None else None
    start = take_snapshot(sandbox) if held or case.arrange else base.snapshot
    expected = Expected(
        start,
        base.old,
        base.new,
        codes={*case.codes, *({3} if base.code == 3 else ())},
        is_lenient=case.is_lenient,
    )
    expected.is_refused = case.kind == "write error"
    expected.planted = {
        path: hashlib.sha256(text.encode()).hexdigest() for path, text in case.planted
    }
    if case.change is not None:
        _expect_change(base, case, sandbox, expected)
    with held or nullcontext():
        for number, faults in enumerate(case.faults):
            arguments = base.arguments if number == 0 else next_arguments(base, sandbox)
            outcomes = _run_beside(arguments, case.others, sandbox, faults)
            for outcome in outcomes:
                state, problems = find_problems(
                    base.command, sandbox, _as_read(base, outcome), expected
                )
                _note(verdict, outcome, problems, f"run {number + 1}")
            verdict.states.append(state)
    names = {path.name for path in work_in(sandbox).iterdir()}
    verdict.has_partial = any(re.search(r"(^|\.)out.*\.partial$", name) for name in names)
    is_judged = not base.command.output or verdict.problems or case.is_stuck
    if not is_judged and _is_left(base, case, take_snapshot(sandbox), verdict):
        _recover(base, case, sandbox, expected, verdict)


def _is_left(base: Base, case: Case, after: Snapshot, verdict: Verdict) -> bool:
    """Return whether anything is left of a run that the next one has to deal with.

    Without, the next one is the undisturbed one that has been tried already.
    """
    names = [path.partition("/")[2] for path in after]
    is_beside = any(
        re.match(r"\.?out.*(\.partial|\.replaced-\d+|\.trial-\d+-\d+)$", name) for name in names
    )
    is_as_before = after == base.snapshot and base.start != RESUME and case.change is None
    return is_beside or not (is_as_before or verdict.codes[-1] == 0)


def _as_read(base: Base, outcome: Outcome) -> Outcome:
    """Return the outcome of a check that failed, as it does undisturbed, as that of a success."""
    return replace(outcome, code=0) if outcome.code == base.code == 3 else outcome


def _run_beside(
    arguments: Sequence[str],
    others: Sequence[Sequence[str]],
    sandbox: Path,
    faults: Sequence[Fault],
) -> list[Outcome]:
    first = Running(arguments, sandbox, faults, "a")
    if not others:
        return [first.wait()]
    # Without a fault all begin at once; with one the others run while the first one pauses.
    if faults:
        first.wait_for_pause()
    beside = [Running(words, sandbox, (), f"b{number}") for number, words in enumerate(others)]
    done = [running.wait() for running in beside]
    first.go_on()
    return [*done, first.wait()]


def _note(verdict: Verdict, outcome: Outcome, problems: list[str], where: str) -> None:
    verdict.codes.append(outcome.code)
    verdict.problems += [f"{problem} [{where}]" for problem in problems]
    verdict.messages.append(outcome.stderr)


def _expect_change(base: Base, case: Case, sandbox: Path, expected: Expected) -> None:
    """Add what the inputs, and the output, may be once somebody has changed the inputs."""
    copy = copy_tree(sandbox, base.stage.new_place())
    case.change(work_in(copy))
    changed = take_snapshot(copy)
    remove(copy)
    for path in expected.start.keys() | changed.keys():
        if expected.start.get(path) != changed.get(path):
            expected.changed[path] = {changed.get(path)}
    expected.new = [
        *expected.new,
        *base.stage.outputs_changed(base.command, case.words, case.change),
    ]


def next_arguments(base: Base, sandbox: Path) -> tuple[str, ...]:
    """Return the command line with which a user goes on."""
    command, work = base.command, work_in(sandbox)
    output, partial = work / command.output, work / f"{command.output}.partial"
    if command.is_set:
        return command.arguments
    # Before its first layer is finished a run has nothing to go on with.
    is_begun = (partial / FIRST_LAYER).exists()
    is_whole = output.exists() and not base.old
    if command.is_resumable and (is_begun or is_whole):
        return (*command.arguments, "--resume")
    return (*command.arguments, "--overwrite") if base.old or is_whole else command.arguments


def _recover(base: Base, case: Case, sandbox: Path, expected: Expected, verdict: Verdict) -> None:
    """Do what the message says, then run again undisturbed; the output has to be there."""
    command, work = base.command, work_in(sandbox)
    for message in verdict.messages:
        for line in commands_in(message):
            subprocess.run(line, shell=True, cwd=work, capture_output=True, check=False)
    if case.change is not None:
        # The user puts the right inputs there again.
        for name in ("model", "spare", "prep", "codes", "words.txt"):
            target = work / name
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
            source = work_in(base.sandbox) / name
            copy_tree(source, target) if source.is_dir() else shutil.copy2(source, target)
        expected.changed.clear()
    expected.codes, expected.is_lenient, expected.is_refused = (), False, False
    arguments = next_arguments(base, sandbox)
    outcome = run(arguments, sandbox, tag="next")
    if case.change is not None and outcome.code == 1 and "--resume" in arguments:
        # It was begun, or finished, with other inputs.
        arguments = (*command.arguments, "--overwrite")
        outcome = run(arguments, sandbox, tag="next")
    state, problems = find_problems(command, sandbox, outcome, expected)
    if state == NONE and not problems:
        problems.append("left: no output after an undisturbed run")
    _note(verdict, outcome, problems, "next run")
