"""Run a command and return its wall time and peak memory, as the operating system counts them.

The peak that ``wait4`` gives is never below what this process held when it forked, so nothing large
is imported here.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Measured:
    """One finished command: seconds of wall time, and the peak resident bytes of the process."""

    seconds: float
    peak_bytes: int


def run_measured(command: list[str]) -> Measured:
    """Run ``command`` with its output thrown away.

    Raises:
        RuntimeError: it failed; with what it wrote to stderr.
    """
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} failed:\n{errors.decode(errors='replace')}")
    return Measured(time.monotonic() - started, usage.ru_maxrss * 1024)


def machine() -> str:
    """Return one line that names the machine."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"{os.cpu_count()} cores of {name}, torch {metadata.version('torch')}"
