"""What this machine has: memory of the process and of the host, cores, processor."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
# Instructions that multiply bfloat16 itself; without them float32 is faster.
_BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
_FORGET_PEAK = "5"


def peak_memory_bytes() -> int:
    """Return the largest resident size this process has had, 0 where the kernel does not say.

    What getrusage gives instead is inherited from the parent across exec.
    """
    return _read_bytes("self/status", "VmHWM")


def peak_address_bytes() -> int:
    """Return the most addresses this process has had, 0 where the kernel does not say."""
    return _read_bytes("self/status", "VmPeak")


def reset_peak_memory() -> None:
    """Let the peak begin again at what the process holds now, where the kernel allows that."""
    with suppress(OSError):
        (_PROC / "self" / "clear_refs").write_text(_FORGET_PEAK, "ascii")


def resident_memory_bytes() -> int:
    """Return the resident size of this process now, 0 where the kernel does not say."""
    return _read_bytes("self/status", "VmRSS")


def available_memory_bytes() -> int:
    """Return the memory that the kernel would give without swapping."""
    available = _read_bytes("meminfo", "MemAvailable")
    return available or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_name(proc: Path = _PROC) -> str:
    """Return the kind of processor, as the kernel names it."""
    names = _values(proc / "cpuinfo", "model name")
    return next(names, platform.processor() or platform.machine())


def has_bfloat16_units(proc: Path = _PROC) -> bool:
    """Return whether the processor multiplies bfloat16 itself.

    Args:
        proc: where the kernel's files lie.
    """
    flags = next(_values(proc / "cpuinfo", "flags"), "").split()
    return any(flag in flags for flag in _BFLOAT16_FLAGS)


def _read_bytes(name: str, label: str) -> int:
    """Return a number of KiB that a file below /proc gives, in bytes; 0 where it does not."""
    return 1024 * int(next(_values(_PROC / name, label), "0").split()[0])


def _values(path: Path, label: str) -> Iterator[str]:
    """Yield what a file of lines ``label: value`` gives for a label; nothing without the file."""
    if not path.is_file():
        return
    for line in path.read_text("utf-8", "replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == label:
            yield value.strip()
