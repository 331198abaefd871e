"""What somebody else does meanwhile: to the inputs, in the output, or with the same command."""

from __future__ import annotations

import os
import random
from pathlib import Path

from acts import pause
from calls import Draw, make_case, moment
from fault import CHANGING, LOOKING, Fault, Layer
from play import Case
from stage import Base


def _truncate(path: Path, other: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _append(path: Path, other: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\n  ")


def _replace(path: Path, other: Path) -> None:
    data = other.read_bytes()
    path.unlink()
    path.write_bytes(data)


def _overwrite(path: Path, other: Path) -> None:
    with path.open("r+b") as file:
        file.write(other.read_bytes())


def _remove(path: Path, other: Path) -> None:
    path.unlink()


_CHANGES = {
    "truncated": _truncate,
    "appended to": _append,
    "replaced": _replace,
    "overwritten": _overwrite,
    "removed": _remove,
}
_OTHER = {"model": "other", "spare": "spare-other", "prep": "prep-other", "codes": "codes-other"}


def source_changes(base: Base, rng: random.Random) -> Case:
    """Let somebody change a file of the inputs meanwhile."""
    read = {path for call, path in base.trace if call == "open" and path.count("/") <= 2}
    names = sorted(p[5:] for p in read if p[5:].split("/")[0] in (*_OTHER, "words.txt"))
    # Weights are most of what there is.
    weights = [name for name in names if name.endswith(".safetensors")]
    name = rng.choice(weights if weights and rng.random() < 0.5 else names)
    what = rng.choice(sorted(_CHANGES))
    # What changes in a linked file when all is checked would change it after the run too.
    before = "/vacc_deploy.json" if base.count("link") else ""
    calls = [call for call in (*CHANGING, *LOOKING) if call != "stat"]
    call, number = moment(base, rng, calls, before=before)
    folder, _, file = name.partition("/")
    other = f"{_OTHER[folder]}/{file}" if file else "notes.txt"

    def change(work: Path) -> None:
        _CHANGES[what](work / name, work / other)

    fault = Fault(call, number, lambda layer, *_: change(Path(layer.work)), "it happens")
    return make_case("source changes", base, fault, change=change, words=f"{name} {what}: ")


def user_works_there(base: Base, rng: random.Random) -> Case:
    """Let the user put a file into the output meanwhile, or change one there."""
    call, number = moment(base, rng, (*CHANGING, "list", "lock"))
    output, content = base.command.output, "the user's own"
    listed = [name for name in base.old if name and not name.endswith("_timing.json")]
    name = rng.choice(["thesis.txt", rng.choice(sorted(listed))] if listed else ["thesis.txt"])

    def act(layer: Layer, call: str, path: str) -> None:
        target = Path(layer.work, output)
        # Between two renames there is nothing that the user could open.
        if base.old and not target.exists():
            layer.tell("unplanted", name)
            return
        target.mkdir(exist_ok=True)
        (target / name).unlink(missing_ok=True)
        (target / name).write_text(content, "utf-8")

    fault = Fault(call, number, act, f"the user writes {output}/{name}")
    return make_case("user in the output", base, fault, planted=((name, content),), is_stuck=True)


def other_runs(count: int) -> Draw:
    """Return the kind of several runs for one output."""

    def draw(base: Base, rng: random.Random) -> Case:
        kind = {1: "two processes", 2: "three processes"}[count]
        others = (base.arguments,) * count
        if rng.random() < 0.3:
            return Case(kind, base.command, base.start, others=others)
        call, number = moment(base, rng, (*CHANGING, *LOOKING))
        fault = Fault(call, number, pause, "pause", is_after=rng.random() < 0.5)
        return make_case(kind, base, fault, others=others)

    return draw
