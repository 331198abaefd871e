"""What this process holds of the host's memory, from the kernel's own lines."""

from __future__ import annotations

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
