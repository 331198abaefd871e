"""The process in which a stranger's template or tokenizer runs: a program, started by ``worker``.

Run as ``python -I -S child.py JOB LIBRARY...``. It imports nothing of this package: the job is
another file beside this one, and its function ``handle`` does one request. The libraries lie in
the directories named behind it. Frames go over stdin and stdout: see ``worker``. A byte goes
ahead of them when it is ready; until then stderr is read.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from io import RawIOBase
from typing import Any

# Without a request for so long the process ends and gives its memory back.
IDLE_SECONDS = 60.0
_FRAME = struct.Struct("<IQ")
_OPEN_FILES = 32
_PAGE = os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Serve requests until stdin ends."""
    job_file, *libraries = sys.argv[1:]
    # Nothing of what follows writes a file, or leaves an image of memory.
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)
    # Behind the standard library: nothing there can be replaced.
    sys.path += libraries
    spec = importlib.util.spec_from_file_location("job", job_file)
    assert spec is not None and spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    requests, replies = open(0, "rb", buffering=0), open(1, "wb", buffering=0)  # noqa: SIM115
    # Before the byte: if the parent is gone by now, the byte cannot be written.
    _end_with_parent()
    _write(replies, b"\0")
    while select.select([requests], [], [], IDLE_SECONDS)[0]:
        frame = _read(requests, _FRAME.size)
        if frame is None:
            return
        head, body = (_read(requests, size) for size in _FRAME.unpack(frame))
        if head is None or body is None:
            return
        reply, data = _serve(job.handle, json.loads(head), body)
        # What is left of a request without memory is nobody's to guess.
        is_last = reply["is_last"] = reply.get("failed") == "memory"
        # Escapes only: an error may quote half of a surrogate pair.
        told = json.dumps(reply).encode("ascii")
        _write(replies, _FRAME.pack(len(told), len(data)) + told)
        _write(replies, data)
        if is_last:
            return


def _serve(
    handle: Callable[..., tuple[dict[str, Any], bytes]], request: dict[str, Any], body: bytes
) -> tuple[dict[str, Any], bytes]:
    """Return the reply to one request, and its data."""
    used = time.process_time()
    seconds, num_bytes, most = (request.pop(name) for name in ("seconds", "bytes", "most"))
    # The kernel ends the process when the time is over; its clock counts whole seconds.
    _lower(resource.RLIMIT_CPU, int(used + seconds) + 1)
    _lower(resource.RLIMIT_AS, min(_mapped() + num_bytes, most))
    try:
        reply, data = handle(request, body)
    except MemoryError:
        reply, data = {"failed": "memory"}, b""
    except RecursionError:
        reply, data = {"failed": "depth"}, b""
    # The panic of a Rust library is a BaseException only.
    except BaseException as err:
        reply = {"failed": "error", "text": str(err)[:500], "line": getattr(err, "line", None)}
        data = b""
    # For the reply itself: what it holds is bounded by the job.
    _lower(resource.RLIMIT_AS, None)
    reply["used"] = time.process_time() - used
    return reply, data


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


def _mapped() -> int:
    """Return the bytes of memory that the process has mapped, 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * _PAGE
    except OSError:
        return 0


def _read(stream: RawIOBase, size: int) -> bytes | None:
    """Return ``size`` bytes, None where the stream ends before."""
    data = bytearray()
    while len(data) < size:
        piece = stream.read(min(size - len(data), 1 << 20))
        if not piece:
            return None
        data += piece
    return bytes(data)


def _write(stream: RawIOBase, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


if __name__ == "__main__":
    main()
