"""How a process is started in which a stranger's file is worked on: alone, and with little.

It gets no variable of ours, no path of ours, and no signal of the terminal; what it may import lies
in the folders that it is given. What it does and how it is spoken to is for those who start it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

# A child waits for a core at times; one that is stopped waits for ever.
WALL_SECONDS, WALL_PER_SECOND = 60.0, 20.0
# One that ends at all is gone within it.
GRACE_SECONDS = 0.5
# The only variable of ours that a Python may need, to find its own library.
_KEPT_VARIABLE = "LD_LIBRARY_PATH"
_ENVIRONMENT = {"TZ": "UTC0", "MALLOC_ARENA_MAX": "1"}


def start_child(
    script: Path,
    arguments: Iterable[str],
    *,
    libraries: Iterable[str],
    environment: Mapping[str, str],
    stderr: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a program with pipes for stdin and stdout.

    Args:
        script: a file of Python that imports nothing of this package.
        arguments: for it; behind them come the folders of the libraries.
        libraries: what it imports beside the standard library; one that is missing is left out.
        environment: variables for the libraries.
        stderr: as ``subprocess`` takes it.

    Raises:
        OSError: it cannot be started.
    """
    kept = {name: value for name, value in os.environ.items() if name == _KEPT_VARIABLE}
    folders = dict.fromkeys(filter(None, map(folder_of, libraries)))
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(script), *arguments, *folders],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        bufsize=0,
        cwd="/",
        env={**kept, **_ENVIRONMENT, **environment},
        # Signals of the terminal are for this process, which ends the other.
        start_new_session=True,
    )


def folder_of(library: str) -> str | None:
    """Return the directory from which a library is imported, None where it is missing."""
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        return None
    return str(Path(spec.origin).resolve().parents[1])
