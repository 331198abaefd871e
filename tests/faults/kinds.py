"""The kinds of faults, and one of each at random."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fault import (
    CHANGING,
    LOOKING,
    SHORT,
    START,
    Act,
    Fault,
    Layer,
    error,
    fail,
    jump,
    pause,
    strike,
    strike_after,
)
from play import FRESH, OVERWRITE, READ, RESUME, Base, Case, Skipped
from runs import copy_tree, work_in

Draw = Callable[[Base, random.Random], Case]
ALL = (FRESH, OVERWRITE, RESUME, READ)
WRITING = (FRESH, OVERWRITE, RESUME)
_FULL = ("create", "write", "fsync", "close", "mkdir", "link", "symlink", "rename", "reserve")
# Of a call that knows a name, and of those that know something open only.
_WRITE_ERRORS = {
    "": ("EIO", "EROFS", "EACCES"),
    "write": ("EIO", "EFBIG"),
    **dict.fromkeys(("fsync", "close", "reserve"), ("EIO",)),
}
_READ_ERRORS = {
    "": ("EIO", "EIO", "ESTALE", "EACCES"),
    "read": ("EIO", "ESTALE"),
    "lock": ("EIO", "ENOLCK"),
}
_SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGKILL": 137}


def _moment(base: Base, rng: random.Random, calls: Sequence[str]) -> tuple[str, int]:
    """Return one call of an undisturbed run: its kind and number."""
    counts = {call: base.count(call) for call in calls}
    # Kinds that are rare count as much as those that are frequent.
    call = rng.choice([call for call, count in counts.items() if count])
    return call, rng.randint(1, counts[call])


def _case(kind: str, base: Base, *faults: Fault, **more: object) -> Case:
    return Case(kind, base.command, base.start, faults=(faults,), **more)  # type: ignore[arg-type]


def kill(name: str) -> Draw:
    """Return the kind of a signal at a call or at a moment."""

    def draw(base: Base, rng: random.Random) -> Case:
        kind, codes = "kill -9" if name == "SIGKILL" else name, (_SIGNALS[name],)
        if rng.random() < 0.2:
            fault = strike_after(name, rng.uniform(0, base.seconds))
        else:
            calls = CHANGING if rng.random() < 0.7 else LOOKING
            if not base.count(*calls):
                calls = LOOKING
            fault = strike(name, *_moment(base, rng, calls), is_after=rng.random() < 0.5)
        return _case(kind, base, fault, codes=codes)

    return draw


def kill_twice(base: Base, rng: random.Random) -> Case:
    """Kill a run, and the one that goes on."""
    first, second = (
        (strike("SIGKILL", *_moment(base, rng, CHANGING), is_after=rng.random() < 0.5),)
        for _ in range(2)
    )
    return Case("kill -9, twice", base.command, base.start, faults=(first, second), codes=(137,))


def every_full_disk(base: Base, *, lasts: bool = True) -> list[Case]:
    """Return a case for every call at which the disk can be full."""
    return [
        _case("full disk", base, error("ENOSPC", call, number, lasts=lasts))
        for call in _FULL
        for number in range(1, base.count(call) + 1)
    ]


def full_disk(base: Base, rng: random.Random) -> Case:
    """Let the disk be full, or the quota used up, for a moment or from then on."""
    call, number = _moment(base, rng, _FULL)
    name = rng.choice(("ENOSPC", "ENOSPC", "EDQUOT"))
    return _case("full disk", base, error(name, call, number, lasts=rng.random() < 0.7))


def write_error(base: Base, rng: random.Random) -> Case:
    """Let a call that changes something fail."""
    return _failing("write error", base, rng, CHANGING, _WRITE_ERRORS)


def read_error(base: Base, rng: random.Random) -> Case:
    """Let a call that only looks fail."""
    return _failing("read error", base, rng, LOOKING, _READ_ERRORS)


def _failing(
    kind: str,
    base: Base,
    rng: random.Random,
    calls: Sequence[str],
    names: dict[str, tuple[str, ...]],
) -> Case:
    call, number = _moment(base, rng, calls)
    name = rng.choice(names.get(call, names[""]))
    return _case(kind, base, error(name, call, number, lasts=rng.random() < 0.4))


def no_descriptors(base: Base, rng: random.Random) -> Case:
    """Let the process, or the system, have no more descriptors."""
    if rng.random() < 0.5:
        name = rng.choice(("EMFILE", "ENFILE"))
        moment = _moment(base, rng, ("open", "create", "list"))
        return _case("EMFILE", base, error(name, *moment, lasts=rng.random() < 0.5))
    more = rng.randint(0, 24)

    def act(layer: Layer, call: str, path: str) -> None:
        used = max(map(int, os.listdir("/proc/self/fd"))) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, used + more))

    return _case(
        "EMFILE", base, Fault(START, 1, act, f"RLIMIT_NOFILE {more} above"), is_lenient=True
    )


def no_large_files(base: Base, rng: random.Random) -> Case:
    """Let no file be larger than a limit. What a run prints goes to a file too."""
    size = int(4096 * 50 ** rng.random())

    def act(layer: Layer, call: str, path: str) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return _case("RLIMIT_FSIZE", base, Fault(START, 1, act, f"RLIMIT_FSIZE {size}"))


def no_memory(base: Base, rng: random.Random) -> Case:
    """Let the process have little more memory than it has at its start."""
    more = int(65536 * 4096 ** rng.random())

    def act(layer: Layer, call: str, path: str) -> None:
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))

    fault = Fault(START, 1, act, f"RLIMIT_AS {more:,} above")
    return _case("RLIMIT_AS", base, fault, is_lenient=True)


def in_parts(base: Base, rng: random.Random) -> Case:
    """Let calls do a part only, as they may, or be interrupted all the time; nothing may change."""
    if rng.random() < 0.5:
        call = rng.choice([call for call in ("read", "write") if base.count(call)])
        return _case("short calls", base, Fault(call, 1, SHORT, "half", lasts=True), codes=())

    def act(layer: Layer, call: str, path: str) -> None:
        library = ctypes.CDLL(None)
        # A handler that is none of Python's, and does nothing.
        library.signal(signal.SIGALRM, ctypes.cast(library.abs, ctypes.c_void_p))
        signal.siginterrupt(signal.SIGALRM, True)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.002)

    return _case("short calls", base, Fault(START, 1, act, "EINTR every 2 ms"), codes=())


# ---- somebody else --------------------------------------------------------------------------


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
    call, number = _moment(base, rng, [c for c in (*CHANGING, *LOOKING) if c != "stat"])
    folder, _, file = name.partition("/")
    other = f"{_OTHER[folder]}/{file}" if file else "notes.txt"

    def change(work: Path) -> None:
        _CHANGES[what](work / name, work / other)

    fault = Fault(call, number, lambda layer, *_: change(Path(layer.work)), "it happens")
    return _case("source changes", base, fault, change=change, words=f"{name} {what}: ")


def user_works_there(base: Base, rng: random.Random) -> Case:
    """Let the user put a file into the output meanwhile, or change one there."""
    call, number = _moment(base, rng, (*CHANGING, "list", "lock"))
    output, content = base.command.output, "the user's own"
    listed = [name for name in base.old if name and not name.endswith("_timing.json")]
    name = rng.choice(["thesis.txt", rng.choice(sorted(listed))] if listed else ["thesis.txt"])

    def act(layer: Layer, call: str, path: str) -> None:
        target = Path(layer.work, output)
        # Between two renames there is nothing that the user could open.
        if base.old and not target.exists():
            return
        target.mkdir(exist_ok=True)
        (target / name).unlink(missing_ok=True)
        (target / name).write_text(content, "utf-8")
        Path(f"{layer.work}/../../planted").touch()

    fault = Fault(call, number, act, f"the user writes {output}/{name}")
    return _case("user in the output", base, fault, planted=((name, content),), is_stuck=True)


def other_runs(count: int) -> Draw:
    """Return the kind of several runs for one output."""

    def draw(base: Base, rng: random.Random) -> Case:
        kind = {1: "two processes", 2: "three processes"}[count]
        others = (base.arguments,) * count
        if rng.random() < 0.3:
            return Case(kind, base.command, base.start, others=others)
        call, number = _moment(base, rng, (*CHANGING, *LOOKING))
        fault = Fault(call, number, pause, "pause", is_after=rng.random() < 0.5)
        return _case(kind, base, fault, others=others)

    return draw


# ---- the file system, links, the clock --------------------------------------------------------


def _of_directories(number: int) -> Act:
    def act(layer: Layer, call: str, path: str) -> None:
        if os.path.isdir(path):
            fail(number)(layer, call, path)

    return act


_LACKS = {
    "lock": ("ENOSYS", "EOPNOTSUPP", "ENOLCK"),
    "link": ("EPERM", "EXDEV", "EMLINK", "EOPNOTSUPP", "ENOSYS"),
    "symlink": ("EPERM", "EOPNOTSUPP"),
    "rename": ("ENOSYS", "EXDEV", "EINVAL", "EEXIST"),
    "fsync": ("EINVAL", "ENOSYS", "EOPNOTSUPP"),
    "reserve": ("EOPNOTSUPP",),
}


def foreign_system(base: Base, rng: random.Random) -> Case:
    """Let the file system have no call of some kinds."""
    calls = [call for call in _LACKS if base.count(call)]
    chosen = rng.sample(calls, min(len(calls), rng.randint(1, 3)))
    faults = [error(rng.choice(_LACKS[call]), call, 1, lasts=True) for call in chosen]
    if rng.random() < 0.3 and base.count("fsync"):
        faults = [Fault("fsync", 1, _of_directories(22), "EINVAL of directories", lasts=True)]
    return _case("foreign file system", base, *faults)


def _link_partial(work: Path) -> None:
    (work / "out.partial").symlink_to("out-mine")


def _link_empty_partial(work: Path) -> None:
    (work / "empty").mkdir()
    (work / "out.partial").symlink_to("empty")


def _link_marker(work: Path) -> None:
    partial = work / "out.partial"
    partial.mkdir()
    (partial / "thesis.txt").write_text(_THESIS, "utf-8")
    (partial / ".vacc-deploy-partial").unlink(missing_ok=True)
    (partial / ".vacc-deploy-partial").symlink_to("../notes.txt")


def _link_output(work: Path) -> None:
    if (work / "out").exists():
        (work / "out").rename(work / "elsewhere")
    (work / "out").symlink_to("elsewhere" if (work / "elsewhere").exists() else "out-mine")


def _link_replaced(work: Path) -> None:
    (work / ".out.replaced-1").symlink_to("prep")


def _link_in_output(work: Path) -> None:
    (work / "out").mkdir(exist_ok=True)
    (work / "out" / "README.md").unlink(missing_ok=True)
    (work / "out" / "README.md").symlink_to("../notes.txt")


def _link_readme(work: Path) -> None:
    for name in ("model", "spare", "prep", "codes"):
        (work / name / "README.md").unlink(missing_ok=True)
        (work / name / "README.md").symlink_to("../../outside/secret.txt")


def _link_environment(work: Path) -> None:
    for name in ("model", "spare", "prep", "codes"):
        (work / name / "NOTICE").symlink_to("/proc/self/environ")


_THESIS = "in a directory of an unlucky name"
_LINKS = {
    "out.partial is a link": _link_partial,
    "out.partial is a link to an empty directory": _link_empty_partial,
    "a marker in a partial directory is a link": _link_marker,
    "the output is a link": _link_output,
    "an older output aside is a link": _link_replaced,
    "a file in the output is a link": _link_in_output,
    "README.md leads outside": _link_readme,
    "NOTICE leads to the environment": _link_environment,
}


def links(base: Base, rng: random.Random) -> Case:
    """Let something be a link that nobody expects to be one."""
    # Where a run goes on, the partial directory is there, and really its own.
    words = rng.choice([w for w in sorted(_LINKS) if base.start != RESUME or "partial" not in w])
    planted = (("thesis.txt", _THESIS),) if "marker" in words else ()

    def arrange(sandbox: Path) -> None:
        _LINKS[words](work_in(sandbox))

    return _case("links", base, words=words, arrange=arrange, planted=planted, is_stuck=True)


def clock(base: Base, rng: random.Random) -> Case:
    """Let the clock jump, or the times of all files lie elsewhere; nothing may change."""
    seconds = rng.choice((-1, 1)) * 10 ** rng.uniform(1, 9)
    if rng.random() < 0.5:
        call, number = _moment(base, rng, (*CHANGING, *LOOKING))
        fault = Fault(call, number, jump(seconds), f"clock {seconds:+,.0f} s")
        return _case("clock", base, fault, codes=())

    def arrange(sandbox: Path) -> None:
        for path in work_in(sandbox).rglob("*"):
            when = max(path.lstat().st_mtime + seconds, 0)
            os.utime(path, (when, when), follow_symlinks=False)

    return _case("clock", base, words=f"files {seconds:+,.0f} s", arrange=arrange, codes=())


def _mount(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Skipped(f"{' '.join(words[:3])}: {done.stderr.strip()}")


@contextmanager
def _on_tmpfs(sandbox: Path, free_bytes: int, *, is_read_only: bool) -> Iterator[None]:
    """Let the working directory lie on a file system of its own meanwhile."""
    work, kept = work_in(sandbox), sandbox / "kept"
    if shutil.which("mount") is None or os.geteuid() != 0:
        raise Skipped("only root may mount a file system")
    work.rename(kept)
    work.mkdir()
    size = sum(-(-p.lstat().st_size // 4096) * 4096 for p in kept.rglob("*")) + free_bytes
    try:
        _mount("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(work))
    except Skipped:
        work.rmdir()
        kept.rename(work)
        raise
    try:
        shutil.copytree(kept, work, symlinks=True, dirs_exist_ok=True)
        if is_read_only:
            _mount("mount", "-o", "remount,ro", str(work))
        shutil.rmtree(kept)
        yield
        copy_tree(work, sandbox / "kept")
    finally:
        subprocess.run(["umount", "-l", str(work)], capture_output=True, check=False)
    work.rmdir()
    kept.rename(work)


def small_mount(base: Base, rng: random.Random) -> Case:
    """Run on a real file system that is too small, or that can only be read."""
    is_read_only, free = rng.random() < 0.2, int(4096 * 256 ** rng.random())
    words = "a tmpfs to read only" if is_read_only else f"a tmpfs with {free:,} bytes free"
    arrange = partial(_on_tmpfs, free_bytes=free, is_read_only=is_read_only)
    return _case("real file system", base, words=words, arrange=arrange)


KINDS: dict[str, tuple[Draw, Sequence[str]]] = {
    "kill -9": (kill("SIGKILL"), WRITING),
    "kill -9, twice": (kill_twice, WRITING),
    "SIGINT": (kill("SIGINT"), ALL),
    "SIGTERM": (kill("SIGTERM"), ALL),
    "SIGHUP": (kill("SIGHUP"), ALL),
    "full disk": (full_disk, WRITING),
    "real file system": (small_mount, WRITING),
    "write error": (write_error, WRITING),
    "read error": (read_error, ALL),
    "EMFILE": (no_descriptors, ALL),
    "RLIMIT_FSIZE": (no_large_files, WRITING),
    "RLIMIT_AS": (no_memory, ALL),
    "short calls": (in_parts, ALL),
    "source changes": (source_changes, ALL),
    "user in the output": (user_works_there, (FRESH, OVERWRITE)),
    "two processes": (other_runs(1), WRITING),
    "three processes": (other_runs(2), WRITING),
    "foreign file system": (foreign_system, WRITING),
    "links": (links, ALL),
    "clock": (clock, ALL),
}
# Of a command that writes a file, or several files, other things hold.
DIRECTORIES_ONLY = ("user in the output", "links", "three processes")


def is_tried(kind: str, base: Base) -> bool:
    """Return whether cases of a kind can begin there."""
    command = base.command
    if base.start not in KINDS[kind][1]:
        return False
    if kind in DIRECTORIES_ONLY and (command.is_set or not command.output.endswith("out")):
        return False
    # It reads no input, or what the package carries.
    return kind != "source changes" or not (command.is_set or command.name == "demo")
