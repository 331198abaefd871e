"""The kinds of faults: how a case of each is drawn, and where such cases can begin."""

from __future__ import annotations

from collections.abc import Sequence

import calls
import others
import systems
from calls import Draw
from stage import FRESH, OVERWRITE, READ, RESUME, Base

ALL = (FRESH, OVERWRITE, RESUME, READ)
WRITING = (FRESH, OVERWRITE, RESUME)
KINDS: dict[str, tuple[Draw, Sequence[str]]] = {
    "kill -9": (calls.kill("SIGKILL"), WRITING),
    "kill -9, twice": (calls.kill_twice, WRITING),
    "SIGINT": (calls.kill("SIGINT"), ALL),
    "SIGTERM": (calls.kill("SIGTERM"), ALL),
    "SIGHUP": (calls.kill("SIGHUP"), ALL),
    "full disk": (calls.full_disk, WRITING),
    "real file system": (systems.small_mount, WRITING),
    "write error": (calls.write_error, WRITING),
    "read error": (calls.read_error, ALL),
    "EMFILE": (calls.no_descriptors, ALL),
    "RLIMIT_FSIZE": (calls.no_large_files, WRITING),
    "RLIMIT_AS": (calls.no_memory, ALL),
    "short calls": (calls.in_parts, ALL),
    "source changes": (others.source_changes, ALL),
    "user in the output": (others.user_works_there, (FRESH, OVERWRITE)),
    "two processes": (others.other_runs(1), WRITING),
    "three processes": (others.other_runs(2), WRITING),
    "foreign file system": (systems.foreign_system, WRITING),
    "links": (systems.links, ALL),
    "clock": (systems.clock, ALL),
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
