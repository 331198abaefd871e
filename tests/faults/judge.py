"""What has to hold after a fault, judged by the bytes of everything in the sandbox."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runs import Command, Outcome, work_in

TIMING_NAME = "quantize_timing.json"  # times differ from run to run
# An output, or what it is: state -> whether that is whole.
OLD, NEW, NONE, ASIDE, HALF, SOME = "old", "new", "none", "aside", "half", "some"
MAX_MESSAGE_BYTES = 6000
KILLED = 128 + signal.SIGKILL
INTERRUPTED = {
    128 + signal.SIGINT: "SIGINT",
    128 + signal.SIGTERM: "SIGTERM",
    128 + signal.SIGHUP: "SIGHUP",
}
# A message says what to do: it has a verb of asking, or a command on a line of its own.
_ADVICE = re.compile(
    r"\b(Free|Choose|choose|Give|give|Run|run|[Rr]erun|Wait|Remove|remove|Restore|Download|download|"
    r"Put|Check|check|Use|Ask|ask|Create|Resume|Move|Copy|Close|Raise|Lower|Start|Try|Replace|Wait|"
    r"Make|Leave|Add|Delete|Prepare)\b|\n  \S"
)

# Of what a run keeps for itself in its directory.
RUN_FILE_PREFIX = ".vacc-deploy-"
# Where a link leads may be told by the name of its sandbox, which every run has anew.
_SANDBOX = re.compile(r"^.*/case-\d+/")
# What a killed run leaves beside a small file.
_PARTIAL = re.compile(r"(^|/)\.[^/]+\.[0-9a-f]+\.\d+\.partial$")

Snapshot = dict[str, str]


def take_snapshot(directory: Path) -> Snapshot:
    """Return every path below a directory with what it is; of a file the hash of its bytes."""
    found: Snapshot = {}
    for folder, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = os.path.join(folder, name)
            found[os.path.relpath(path, directory)] = _describe(path)
    return found


def _describe(path: str) -> str:
    if os.path.islink(path):
        return f"link to {_SANDBOX.sub('', os.readlink(path))}"
    if os.path.isdir(path):
        return "directory"
    with open(path, "rb") as file:
        data = file.read()
    if os.path.basename(path) == TIMING_NAME:
        try:
            json.loads(data)
        except ValueError:
            return "damaged"
        return "times"
    return hashlib.sha256(data).hexdigest()


def below(snapshot: Mapping[str, str], name: str) -> Snapshot:
    """Return what of a snapshot is ``name`` or lies in it, the paths from there on."""
    return {
        path[len(name) :].lstrip("/"): what
        for path, what in snapshot.items()
        if path == name or path.startswith(f"{name}/")
    }


def without_run_files(snapshot: Mapping[str, str]) -> Snapshot:
    """Return a snapshot without what a run keeps for itself."""
    return {
        p: w for p, w in snapshot.items() if not p.rpartition("/")[2].startswith(RUN_FILE_PREFIX)
    }


def _is_own(command: Command, name: str) -> bool:
    """Return whether a name beside the output is one that only its runs give."""
    output = re.escape(command.output)
    names = rf"{output}(\.partial)?|\.{output}\.(replaced|kept)-\d+|\.{output}\.trial-\d+-\d+"
    names += rf"|\.{output}\.[0-9a-f]+\.\d+\.partial"
    return bool(command.output) and re.fullmatch(names, name) is not None


@dataclass
class Expected:
    """What may stand after a run.

    Attributes:
        start: the sandbox before it.
        old: the older output, empty where there was none.
        new: the outputs that a whole run may write, the usual one first.
        changed: paths of inputs that somebody else changes meanwhile, with what they may be then.
        codes: exit codes that are right beside 0.
        is_lenient: the message need not name a file, as where memory is short.
        is_refused: the system refuses calls that change something.
        planted: what somebody else puts into the output meanwhile; none of it may be lost.
        kept: what earlier runs have kept of an older output, for the user.
    """

    start: Snapshot
    old: Snapshot
    new: list[Snapshot]
    changed: dict[str, Collection[str]] = field(default_factory=dict)
    codes: Collection[int] = (1,)
    is_lenient: bool = False
    is_refused: bool = False
    planted: Snapshot = field(default_factory=dict)
    kept: Collection[str] = ()


def state_of(command: Command, work: Snapshot, expected: Expected) -> str:
    """Return in one word what has the output's name."""
    if not command.output:
        return NONE
    found = _without_planted(without_run_files(below(work, command.output)), expected)
    old = _without_planted(expected.old, expected)
    if any(found == _without_planted(new, expected) for new in expected.new):
        return NEW
    # It may have been something else than an output from the beginning.
    if found and found in (old, below(below(expected.start, "work"), command.output)):
        return OLD
    if expected.planted and found.keys() <= {""}:
        return NONE
    if command.is_set:
        found = {path: what for path, what in found.items() if not _PARTIAL.search(path)}
        whole = [{*expected.old.items()}, *({*new.items()} for new in expected.new)]
        return SOME if all(any(item in w for w in whole) for item in found.items()) else HALF
    if found:
        return HALF
    aside = re.compile(r"\.out\.(replaced|kept)-\d+")
    asides = [below(work, name) for name in work if aside.fullmatch(name)]
    # Of a second run the new output of the first one is the older one.
    whole = [output for output in (old, *expected.new) if output]
    is_aside = any(
        _without_planted(without_run_files(aside), expected) in whole for aside in asides
    )
    return ASIDE if is_aside else NONE


def _without_planted(snapshot: Snapshot, expected: Expected) -> Snapshot:
    """Return a snapshot without the paths at which somebody else has put something."""
    return {path: what for path, what in snapshot.items() if path not in expected.planted}


def find_problems(
    command: Command, sandbox: Path, outcome: Outcome, expected: Expected
) -> tuple[str, list[str]]:
    """Return the state after one run, and a line for each thing that must not be."""
    after = take_snapshot(sandbox)
    work = below(after, work_in(sandbox).name)
    state = state_of(command, work, expected)
    unplanted = {path for call, path in outcome.trace if call == "unplanted"}
    problems = [
        *_find_losses(command, after, expected, unplanted),
        *_find_misstatements(outcome, expected),
    ]
    if state == HALF:
        problems.append("half: what has the output's name is neither the old one nor the new one")
    if expected.old and state == NONE:
        problems.append("loss: the older output is gone, and no new one stands")
    if outcome.code == 0 and command.output and state != NEW:
        problems.append(f"half: exit code 0, but the output is {state}")
    if outcome.code != KILLED:
        left = sorted(name for name in work if "/" not in name and _is_own(command, name))
        others = [name for name in left if name != command.output]
        # A link there is none of ours.
        others = [n for n in others if not expected.start.get(f"work/{n}", "").startswith("link")]
        others += [
            path for path in below(work, command.output) if command.is_set and _PARTIAL.search(path)
        ]
        said = outcome.stdout + outcome.stderr
        # What an earlier run has kept for the user is said once.
        unsaid = [name for name in others if name not in said and name not in expected.kept]
        if outcome.code == 0 and unsaid:
            problems.append(f"left: exit code 0, but {unsaid} lie beside the output")
        asides = [name for name in others if ".replaced-" in name or ".kept-" in name]
        if state == ASIDE and not any(name in said for name in asides):
            problems.append(
                f"loss: the older output has another name, of which nothing is said: {others}"
            )
        # Of a finished output they do no harm, so a system that refuses to remove them is no error.
        is_clear = expected.is_refused or not _run_files(work, command.output)
        if state in (OLD, NEW) and outcome.code == 0 and not is_clear:
            problems.append("left: files of the run in the output")
    expected.kept = {name for name in work if ".kept-" in name}
    return state, problems


def _run_files(work: Snapshot, output: str) -> list[str]:
    inner = below(work, output)
    return sorted(inner.keys() - without_run_files(inner).keys())


def _find_losses(
    command: Command, after: Snapshot, expected: Expected, unplanted: Collection[str]
) -> list[str]:
    """Return a line for each thing that is nobody's business but was touched.

    ``unplanted`` is what nobody has put into the output after all.
    """
    problems = []
    for path in sorted(after.keys() | expected.start.keys()):
        parts = path.split("/")
        if parts[0] == "work" and len(parts) > 1 and _is_own(command, parts[1]):
            continue
        was, is_now = expected.start.get(path), after.get(path)
        allowed = {was, *expected.changed.get(path, ())}
        if is_now in allowed:
            continue
        where = "escape" if parts[0] == "outside" else "loss" if was else "stray"
        problems.append(f"{where}: {path} is {is_now or 'gone'}, was {was or 'not there'}")
    secret = expected.start.get("outside/secret.txt")
    leaks = [path for path, what in after.items() if what == secret and path.startswith("work/")]
    problems += [f"escape: {path} holds a file from outside" for path in leaks]
    there = {*after.values()}
    lost = [path for path, what in expected.planted.items() if what not in there]
    lost = [path for path in lost if path not in unplanted]
    return [*problems, *(f"loss: {path}, which the user put into the output" for path in lost)]


def _find_misstatements(outcome: Outcome, expected: Expected) -> list[str]:
    """Return a line for each thing that is wrong with how a run ended and what it said."""
    problems, text = [], outcome.stderr
    problems += [f"escape: it opened {path}" for call, path in outcome.trace if call == "escape"]
    if outcome.is_hung:
        return [*problems, f"hang: still running after {outcome.seconds:.0f} s"]
    if "Traceback (most recent call last)" in text:
        problems.append(f"traceback: {text.strip().splitlines()[-1][:200]}")
    if outcome.code not in (0, *expected.codes):
        problems.append(f"code: {outcome.code}, expected 0 or {sorted(expected.codes)}")
    # Before it come the lines of progress.
    size = len(text.rpartition("Error: ")[2]) if "Error: " in text else 0
    if size > MAX_MESSAGE_BYTES:
        problems.append(f"message: {size:,} bytes")
    if outcome.code in INTERRUPTED and "Interrupted." not in text:
        problems.append("message: nothing is said of the interruption")
    if outcome.code == 1 and "Traceback" not in text:
        message = text.rpartition("Error: ")[2].strip()
        if "Error: " not in text:
            problems.append(f"message: no line begins with Error: ({text[-200:]!r})")
        elif not expected.is_lenient and not _names_file(message, expected):
            problems.append(f"message: it names no file: {message[:200]}")
        elif not _ADVICE.search(message):
            problems.append(f"message: it does not say what to do: {message[:200]}")
    return problems


def _names_file(message: str, expected: Expected) -> bool:
    """Return whether a word of a message is a path, or the name of something in the sandbox."""
    names = {path.rpartition("/")[2] for path in expected.start} | {
        "out",
        "out.partial",
        "out.yaml",
    }
    words = (word.strip(".,:;") for word in re.split(r"[\s'\"()]+", message))
    # "model" is also a word.
    is_first = message.startswith("model ")
    return is_first or any("/" in word or word in names - {"model"} for word in words)


def commands_in(message: str) -> list[str]:
    """Return the commands that a message tells to run."""
    return [line.strip() for line in message.splitlines() if re.match(r"  (mv|rm|rmdir) ", line)]
