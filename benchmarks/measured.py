"""Run a command and return its wall time and peak memory, as the operating system counts them.

The peak that ``wait4`` gives is never below what this process held when it forked, so nothing large
is imported here.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO

_DEVICE_SAMPLE_MS = 50
_FIRST_SAMPLE_SECONDS = 10


@dataclass(frozen=True)
class Measured:
    """One finished command.

    Attributes:
        seconds: wall time of the whole process.
        peak_bytes: peak resident memory of the process.
        cpu_seconds: user and system time.
        device_bytes: peak of the GPU's used memory beyond what was used before, sampled every
            50 ms, the CUDA context included; None where none was watched.
    """

    seconds: float
    peak_bytes: int
    cpu_seconds: float = 0.0
    device_bytes: int | None = None


def run_measured(
    command: list[str],
    *,
    env: Mapping[str, str] | None = None,
    device: str = "cpu",
    accepted: tuple[int, ...] = (0,),
) -> Measured:
    """Run ``command``; its output is discarded.

    Args:
        command: the program and its arguments.
        env: its environment; default this process's own.
        device: a ``cuda`` device whose memory is watched by nvidia-smi meanwhile.
        accepted: exit codes of a run that did its work.

    Raises:
        RuntimeError: the command failed; the message has the end of its stderr.
    """
    with _device_samples(device) as samples:
        started = time.monotonic()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env
        )
        assert process.stderr is not None
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in accepted:
        raise RuntimeError(f"{command} failed:\n{errors.decode(errors='replace')[-4000:]}")
    return Measured(
        seconds,
        usage.ru_maxrss * 1024,
        usage.ru_utime + usage.ru_stime,
        (max(samples) - samples[0]) << 20 if samples else None,
    )


@contextmanager
def _device_samples(device: str) -> Iterator[list[int]]:
    """Fill the list with samples of the GPU's used MiB, the first from before the block."""
    samples: list[int] = []
    if not device.startswith("cuda") or shutil.which("nvidia-smi") is None:
        yield samples
        return
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    command += ["-lms", str(_DEVICE_SAMPLE_MS), "-i", device.partition(":")[2] or "0"]
    with tempfile.TemporaryFile("w+") as out:
        watcher = subprocess.Popen(command, stdout=out)
        try:
            _wait_for_output(out)
            yield samples
        finally:
            watcher.terminate()
            watcher.wait()
            out.seek(0)
            samples += [int(line) for line in out.read().splitlines()[:-1] if line.isdigit()]


def _wait_for_output(file: IO[str]) -> None:
    deadline = time.monotonic() + _FIRST_SAMPLE_SECONDS
    while not os.fstat(file.fileno()).st_size and time.monotonic() < deadline:
        time.sleep(0.02)


def machine(device: str = "cpu") -> str:
    """Return one line that names the machine's processor, and its GPU where ``device`` is one."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    line = f"{os.cpu_count()} cores of {name}, torch {metadata.version('torch')}"
    if not device.startswith("cuda") or shutil.which("nvidia-smi") is None:
        return line
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    command += ["-i", device.partition(":")[2] or "0"]
    gpu = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return f"{gpu}, {line}"
