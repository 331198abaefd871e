"""Faults at a call or a moment, and limits of the system."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
from collections import Counter
from collections.abc import Callable, Sequence

from acts import error, strike, strike_after
from fault import CHANGING, LOOKING, SHORT, START, Fault, Layer
from play import Case
from stage import Base

Draw = Callable[[Base, random.Random], Case]
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


def moment(
    base: Base, rng: random.Random, calls: Sequence[str], *, before: str = ""
) -> tuple[str, int]:
    """Return one call of an undisturbed run: its kind and number.

    ``before``: at the latest when the file of this name is finished.
    """
    trace = base.trace
    ends = [n for n, (call, path) in enumerate(trace) if call == "close" and path.endswith(before)]
    if before and ends:
        trace = trace[: ends[-1] + 1]
    counts = Counter(call for call, _ in trace)
    # Kinds that are rare count as much as those that are frequent.
    call = rng.choice([call for call in calls if counts[call]])
    return call, rng.randint(1, counts[call])


def make_case(kind: str, base: Base, *faults: Fault, **more: object) -> Case:
    """Return a case of one disturbed run."""
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
            fault = strike(name, *moment(base, rng, calls), is_after=rng.random() < 0.5)
        return make_case(kind, base, fault, codes=codes)

    return draw


def kill_twice(base: Base, rng: random.Random) -> Case:
    """Kill a run, and the one that goes on."""
    first, second = (
        (strike("SIGKILL", *moment(base, rng, CHANGING), is_after=rng.random() < 0.5),)
        for _ in range(2)
    )
    return Case("kill -9, twice", base.command, base.start, faults=(first, second), codes=(137,))


def every_full_disk(base: Base, *, lasts: bool = True) -> list[Case]:
    """Return a case for every call at which the disk can be full."""
    return [
        make_case("full disk", base, error("ENOSPC", call, number, lasts=lasts))
        for call in _FULL
        for number in range(1, base.count(call) + 1)
    ]


def full_disk(base: Base, rng: random.Random) -> Case:
    """Let the disk be full, or the quota used up, for a moment or from then on."""
    call, number = moment(base, rng, _FULL)
    name = rng.choice(("ENOSPC", "ENOSPC", "EDQUOT"))
    return make_case("full disk", base, error(name, call, number, lasts=rng.random() < 0.7))


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
    call, number = moment(base, rng, calls)
    name = rng.choice(names.get(call, names[""]))
    # Of several links none or all are refused: a file system can make them or not.
    lasts = call == "link" or rng.random() < 0.4
    return make_case(kind, base, error(name, call, 1 if call == "link" else number, lasts=lasts))


def no_descriptors(base: Base, rng: random.Random) -> Case:
    """Let the process, or the system, have no more descriptors."""
    if rng.random() < 0.5:
        name = rng.choice(("EMFILE", "ENFILE"))
        call, number = moment(base, rng, ("open", "create", "list"))
        return make_case("EMFILE", base, error(name, call, number, lasts=rng.random() < 0.5))
    more = rng.randint(0, 24)

    def act(layer: Layer, call: str, path: str) -> None:
        used = max(map(int, os.listdir("/proc/self/fd"))) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, used + more))

    return make_case(
        "EMFILE", base, Fault(START, 1, act, f"RLIMIT_NOFILE {more} above"), is_lenient=True
    )


def no_large_files(base: Base, rng: random.Random) -> Case:
    """Let no file be larger than a limit. What a run prints goes to a file too."""
    size = int(16384 * 12 ** rng.random())

    def act(layer: Layer, call: str, path: str) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return make_case("RLIMIT_FSIZE", base, Fault(START, 1, act, f"RLIMIT_FSIZE {size}"))


def no_memory(base: Base, rng: random.Random) -> Case:
    """Let the process have little more memory than it has at its start."""
    more = int(65536 * 4096 ** rng.random())

    def act(layer: Layer, call: str, path: str) -> None:
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))

    fault = Fault(START, 1, act, f"RLIMIT_AS {more:,} above")
    return make_case("RLIMIT_AS", base, fault, is_lenient=True)


def in_parts(base: Base, rng: random.Random) -> Case:
    """Let calls do a part only, as they may, or be interrupted all the time; nothing may change."""
    if rng.random() < 0.5:
        call = rng.choice([call for call in ("read", "write") if base.count(call)])
        return make_case("short calls", base, Fault(call, 1, SHORT, "half", lasts=True), codes=())

    def act(layer: Layer, call: str, path: str) -> None:
        library = ctypes.CDLL(None)
        # A handler that is none of Python's, and does nothing.
        library.signal(signal.SIGALRM, ctypes.cast(library.abs, ctypes.c_void_p))
        signal.siginterrupt(signal.SIGALRM, True)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.002)

    return make_case("short calls", base, Fault(START, 1, act, "EINTR every 2 ms"), codes=())
