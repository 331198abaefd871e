"""What this machine has: memory of the process and of the host, cores, processor."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_memory_bytes() -> int:
    """Return the largest resident size this process has had, 0 where the kernel does not tell.

    What getrusage gives instead is inherited from the parent across exec.
    """
    return _status_bytes("VmHWM:")


def resident_memory_bytes() -> int:
    """Return the resident size of this process now, 0 where the kernel does not tell."""
    return _status_bytes("VmRSS:")


def _status_bytes(label: str) -> int:
    if not _STATUS.is_file():
        return 0
    for line in _STATUS.read_text("ascii", "replace").splitlines():
        if line.startswith(label):
            return int(line.split()[1]) * 1024
    return 0


_CPU_FLAGS = ("avx512_bf16", "amx_bf16")


def _has_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 itself; else float32 is faster."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return False
    for line in info.read_text("utf-8", "replace").splitlines():
        if line.startswith("flags"):
            return any(flag in line.split() for flag in _CPU_FLAGS)
    return False


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory_bytes() -> int:
    """Return the memory that the kernel would give without swapping."""
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def processor_name() -> str:
    """Return the kind of processor, for example ``Intel(R) Xeon(R) Gold 6330``."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text("utf-8", "replace").splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
