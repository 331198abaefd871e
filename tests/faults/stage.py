"""Where cases begin: sandboxes that are made once, and the outputs of whole runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path

from acts import error, strike
from fault import Fault
from judge import KILLED, Snapshot, below, take_snapshot, without_run_files
from runs import Command, Outcome, build_inputs, copy_tree, load, run, work_in

# How a case begins: no output; an older one to be replaced; a partial directory to go on with.
FRESH, OVERWRITE, RESUME = "fresh", "overwrite", "resume"
# One that only reads.
READ = "read"
# The record of shard 1, which holds layer 0; the names count from one.
FIRST_LAYER = ".vacc-deploy-shard-00002.json"


class Stage:
    """What a command is tried on: the sandboxes that cases begin with, and the whole outputs."""

    def __init__(self, home: Path) -> None:
        self.home, self._count = home, 0
        self._bases = dict[tuple[str, str], Base]()
        self._changed = dict[tuple[str, str], list[Snapshot]]()

    @cached_property
    def inputs(self) -> Path:
        """The sandbox with the inputs alone."""
        return build_inputs(self.home / "inputs")

    def base(self, command: Command, start: str) -> Base:
        """Return where cases of a command begin; made once."""
        key = command.name, start
        if key not in self._bases:
            self._bases[key] = Base(self, command, start)
        return self._bases[key]

    def new_place(self) -> Path:
        """Return the name of a new sandbox."""
        self._count += 1
        return self.home / f"case-{self._count}"

    @cache  # noqa: B019
    def whole(self, command: Command) -> tuple[Outcome, list[Snapshot]]:
        """Return how a run without anything before it goes, and what such runs may write."""
        outcome, new = self.run_whole(command, self.inputs)
        assert outcome.code in (0, 3), outcome.stderr
        if not any(call == "link" for call, _ in outcome.trace):
            return outcome, [new]
        # Where nothing can be linked a copy serves, and the manifest tells.
        lack = error("EXDEV", "link", 1, lasts=True)
        return outcome, [new, self.run_whole(command, self.inputs, [lack])[1]]

    def run_whole(
        self,
        command: Command,
        sandbox: Path,
        faults: Sequence[Fault] = (),
        change: Callable[[Path], object] | None = None,
    ) -> tuple[Outcome, Snapshot]:
        """Run a command undisturbed in a copy of a sandbox; return its output too."""
        copy = copy_tree(sandbox, self.new_place())
        if change is not None:
            change(work_in(copy))
        outcome = run(command.arguments, copy, faults)
        if not faults:
            load(outcome)
        output = below(take_snapshot(work_in(copy)), command.output) if command.output else {}
        remove(copy)
        return outcome, output

    def outputs_changed(
        self, command: Command, words: str, change: Callable[[Path], object]
    ) -> list[Snapshot]:
        """Return what a whole run writes of inputs that somebody has changed before, if it does.

        ``words`` say which change it is.
        """
        key = command.name, words
        if key not in self._changed:
            outcome, output = self.run_whole(command, self.inputs, change=change)
            self._changed[key] = [output] if outcome.code == 0 else []
        return self._changed[key]


def remove(sandbox: Path) -> None:
    """Remove a sandbox and what its runs have printed."""
    for path in (sandbox, sandbox.with_name(f"{sandbox.name}.logs")):
        shutil.rmtree(path, ignore_errors=True)


class Base:
    """A sandbox with which cases of a command begin.

    Attributes:
        arguments: of the run that is disturbed.
        trace: the calls of that run.
        seconds: of that run.
        old: the older output; empty where there is none.
        new: what whole runs may write.
    """

    def __init__(self, stage: Stage, command: Command, start: str) -> None:
        self.stage, self.command, self.start = stage, command, start
        self.sandbox = copy_tree(stage.inputs, stage.new_place())
        self.old: Snapshot = {}
        more = {OVERWRITE: ("--overwrite",), RESUME: ("--resume",)}.get(start, ())
        if command.is_set:
            more = ()
        self.arguments = (*command.arguments, *more)
        outcome, self.new = stage.whole(command)
        if start == OVERWRITE:
            done = run(command.older_arguments(), self.sandbox)
            assert done.code == 0, done.stderr
            self.old = without_run_files(
                below(take_snapshot(work_in(self.sandbox)), command.output)
            )
        if start == RESUME:
            self._interrupt(outcome)
        if start in (OVERWRITE, RESUME):
            begun = copy_tree(self.sandbox, stage.new_place())
            outcome = run(self.arguments, begun)
            assert outcome.code == 0, outcome.stderr
            load(outcome)
            remove(begun)
        self.trace, self.seconds, self.code = outcome.trace, outcome.seconds, outcome.code

    def _interrupt(self, whole: Outcome) -> None:
        """Leave the partial directory of a run that was killed after its first layer."""
        renames = [path for call, path in whole.trace if call == "rename"]
        records = [number for number, path in enumerate(renames, 1) if FIRST_LAYER in path]
        assert records, renames
        killed = run(
            self.command.arguments,
            self.sandbox,
            [strike("SIGKILL", "rename", records[0], is_after=True)],
        )
        assert killed.code == KILLED, killed.stderr

    @cached_property
    def snapshot(self) -> Snapshot:
        """What the sandbox holds at the beginning."""
        return take_snapshot(self.sandbox)

    def count(self, *calls: str) -> int:
        """Return how many calls of these kinds an undisturbed run makes."""
        return sum(call in calls for call, _ in self.trace)
