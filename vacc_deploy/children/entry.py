"""The beginning of each process for a stranger's file: its limits, then the program it is for.

Run as ``python -I -S entry.py PROGRAM ARGUMENT... -- FOLDER...`` by ``process``. It imports nothing
of this package, and neither does the program: a file whose function ``main(host, *arguments)``
imports its libraries from the folders, calls ``host.be_ready()``, and serves requests.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterator

_OPEN_FILES = 32
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Host:
    """What every program needs of its process.

    Attributes:
        idle_seconds: without a request for so long the process ends and gives its memory back.
    """

    idle_seconds = 60.0

    def be_ready(self) -> None:
        """Tell the process that started this one; from now on nothing is told on stderr."""
        # Before the byte: if that process is gone by now, the byte cannot be written.
        _end_with_parent()
        os.write(1, b"\0")

    def has_request(self) -> bool:
        """Wait for a request, or the end of stdin; return False where neither comes for long."""
        return bool(select.select([0], [], [], self.idle_seconds)[0])

    @contextlib.contextmanager
    def limited(self, seconds: float, num_bytes: int, most: int | None = None) -> Iterator[None]:
        """Let what is done take no more.

        Args:
            seconds: of CPU time; the kernel ends the process behind them, and counts whole ones.
            num_bytes: of memory beside what is mapped now.
            most: of memory in all; None for no such limit.
        """
        _lower(resource.RLIMIT_CPU, int(time.process_time() + seconds) + 1)
        limit = self.mapped() + num_bytes
        _lower(resource.RLIMIT_AS, limit if most is None else min(limit, most))
        try:
            yield
        finally:
            # For the reply: what it holds is bounded by the program.
            _lower(resource.RLIMIT_AS, None)

    def mapped(self) -> int:
        """Return the bytes of memory that are mapped, 0 where the system does not say."""
        try:
            with open("/proc/self/statm", "rb") as file:
                return int(file.read().split()[0]) * _PAGE
        except OSError:
            return 0


def main(host: Host) -> None:
    """Lower the limits that hold for all that follows, and run the program."""
    program, *rest = sys.argv[1:]
    end = rest.index("--")
    # Nothing of what follows writes a file, or leaves an image of memory.
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)
    # Behind the standard library: nothing there can be replaced.
    sys.path += rest[end + 1 :]
    spec = importlib.util.spec_from_file_location("program", program)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(host, *rest[:end])


def _end_with_parent() -> None:
    """Let the system end this process when the one that started it is gone, also in the middle.

    That one has the other end of stderr, and from now on reads nothing of it: SIGIO comes when that
    end is closed. A signal for the death of a parent would come with the end of the thread that
    started this process.
    """
    sign, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    for signum in (signal.SIGIO, signal.SIGXCPU):
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Where the system cannot do it, the process ends after the request.
    with contextlib.suppress(OSError):
        fcntl.fcntl(sign, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(sign, fcntl.F_SETFL, fcntl.fcntl(sign, fcntl.F_GETFL) | os.O_ASYNC)


def _lower(kind: int, limit: int | None) -> None:
    """Set a soft limit, None for none; never above what this process was started with."""
    hard = resource.getrlimit(kind)[1]
    if limit is None or (hard != resource.RLIM_INFINITY and limit > hard):
        limit = hard
    # macOS has kinds that it lets nobody set.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(kind, (limit, hard))


if __name__ == "__main__":
    main(Host())
