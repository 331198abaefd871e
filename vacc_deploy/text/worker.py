"""A process of limited memory and time, in which the work on a stranger's file is done.

Nothing that a template or a tokenizer does there can end this process, take its memory or hold it
up. The other side is ``child``. A frame is the length of a JSON object, that of the data behind
it, and both. A request names what it works on by a key; a child that does not hold it asks for it,
so that one child serves many files, and may be replaced at any time.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vacc_deploy.errors import CheckpointError

_FRAME = struct.Struct("<IQ")
_PIECE = 1 << 16
# A child waits for a core at times; one that is stopped waits for ever.
_WALL_SECONDS, _WALL_PER_SECOND = 60.0, 20.0
_GRACE_SECONDS = 0.5
_MAX_HEAD_BYTES = 1 << 28
_ENDED_BY_TIME = -signal.SIGXCPU
# The only variable of ours that a Python may need, to find its own library.
_KEPT_VARIABLE = "LD_LIBRARY_PATH"
_ENVIRONMENT = {
    "TZ": "UTC0",
    "RUST_BACKTRACE": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "RAYON_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}


class WorkerError(Exception):
    """A request failed; the text says how, a clause.

    Attributes:
        line: of a template, None where it is not known.
        is_limit: whether it needed more than it may; the text begins with a verb then.
    """

    def __init__(self, text: str, *, line: int | None = None, is_limit: bool = False) -> None:
        super().__init__(text)
        self.line, self.is_limit = line, is_limit


class Worker:
    """The process of one kind of job. It starts at the first request, and again where it ended."""

    def __init__(self, job: str, libraries: tuple[str, ...]) -> None:
        """Prepare for the job of the file ``job`` beside this one, which imports ``libraries``."""
        self._job, self._libraries = Path(__file__).with_name(job), libraries
        self._process: subprocess.Popen[bytes] | None = None
        self._owner, self._lock = 0, threading.Lock()
        atexit.register(self.close)

    def request(
        self, head: Mapping[str, Any], data: bytes, *, seconds: float, num_bytes: int, limit: int
    ) -> tuple[dict[str, Any], bytes]:
        """Return the reply to one request, and its data.

        Args:
            head: what to do, plain values.
            data: what to do it with.
            seconds: CPU time that it may take.
            num_bytes: memory that it may take.
            limit: of the data of the reply, in bytes.

        Raises:
            WorkerError: the request failed, or took more than it may.
            CheckpointError: there is no process to be had.
        """
        values = {**head, "seconds": seconds, "bytes": num_bytes, "limit": limit}
        packed = json.dumps(values).encode("ascii")
        frame = [_FRAME.pack(len(packed), len(data)) + packed, data]
        deadline = time.monotonic() + _WALL_SECONDS + _WALL_PER_SECOND * seconds
        with self._lock:
            try:
                try:
                    reply, answer = self._exchange(frame, deadline, limit)
                except _IdleError:  # it ended before it saw the request
                    reply, answer = self._exchange(frame, deadline, limit)
            except _IdleError:
                raise WorkerError("its process ends before it answers") from None
            except _EndedError as err:
                how = _explain_end(err.code, head.get("allowed", seconds), num_bytes)
                raise WorkerError(how, is_limit=True) from None
        failed = reply.get("failed")
        if failed == "memory":
            raise WorkerError(_too_much_memory(num_bytes), is_limit=True)
        if failed == "depth":
            raise WorkerError("calls itself without end (RecursionError)", is_limit=True)
        if failed:
            raise WorkerError(str(reply["text"]), line=reply["line"])
        return reply, answer

    def close(self) -> int:
        """End the process, if it runs; return its exit code, or minus the signal that ended it."""
        process, self._process = self._process, None
        # After a fork the process is the parent's.
        if process is None or self._owner != os.getpid():
            return 0
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            # One that was ended by a signal is gone at once; one that works does not listen.
            return process.wait(timeout=_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return _ENDED_BY_TIME

    def _exchange(
        self, frame: list[bytes], deadline: float, limit: int
    ) -> tuple[dict[str, Any], bytes]:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        try:
            for data in frame:
                _send(process.stdin.fileno(), data, deadline)
            output = process.stdout.fileno()
            sizes = _FRAME.unpack(_receive(output, _FRAME.size, deadline))
            # The child has bounded both; this side does not rely on it.
            if sizes[0] > _MAX_HEAD_BYTES or sizes[1] > limit:
                raise _SilentError
            head, answer = (_receive(output, size, deadline) for size in sizes)
            reply: dict[str, Any] = json.loads(head)
        except _SilentError:
            code = self.close()
            raise (_EndedError(code) if code else _IdleError()) from None
        except BaseException:
            # Interrupted in the middle: what the child would say next belongs to nobody.
            self.close()
            raise
        if reply["is_last"]:
            self.close()
        return reply, answer

    def _running(self) -> subprocess.Popen[bytes]:
        """Return the process, started where there is none, or it has ended for lack of work."""
        if self._owner != os.getpid():
            self._process = None
        # It ends by itself where it has long had nothing to do.
        if self._process is not None and _has_ended(self._process):
            self.close()
        if self._process is None:
            kept = {k: v for k, v in os.environ.items() if k == _KEPT_VARIABLE}
            child = Path(__file__).with_name("child.py")
            folders = dict.fromkeys(_folder_of(name) for name in self._libraries)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(child), str(self._job), *folders],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    bufsize=0,
                    cwd="/",
                    env={**kept, **_ENVIRONMENT},
                    # Signals of the terminal are for this process, which ends the other.
                    start_new_session=True,
                )
            except OSError as err:
                raise CheckpointError(
                    "The process in which tokenizers and chat templates run cannot be started: "
                    f"{err}. Free what the system lacks, such as memory or open files."
                ) from err
            self._owner = os.getpid()
        return self._process


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a process that owes no reply has ended, or is about to."""
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class _SilentError(Exception):
    """The child says no more: it has ended, or it is stopped."""


class _IdleError(Exception):
    """The child had ended by itself."""


class _EndedError(Exception):
    """The child ended in the middle of a request."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Session:
    """One stranger's file in a worker, with the time that is left for it.

    Attributes:
        is_loaded: whether the child has taken the file once.
        facts: what the child told of the file.
    """

    def __init__(self, worker: Worker, data: bytes, *, seconds: float, num_bytes: int) -> None:
        """Prepare; nothing is started.

        Args:
            worker: of the file's kind.
            data: the file.
            seconds: CPU time for all requests together; each may add its own.
            num_bytes: memory to load the file.
        """
        self._worker, self._data = worker, data
        self._seconds = self._allowed = float(seconds)
        self._num_bytes, self._load_seconds = num_bytes, 0.0
        self._key = hashlib.sha256(data).hexdigest()
        self.is_loaded, self.facts = False, dict[str, Any]()

    def load(self) -> None:
        """Give the file to the child.

        Raises:
            WorkerError: see ``Worker.request``.
        """
        head = {"op": "load", "key": self._key}
        before = self._seconds
        self.facts, _ = self._ask(head, self._data, num_bytes=self._num_bytes, limit=0)
        self._load_seconds = before - self._seconds
        self.is_loaded = True

    def request(
        self, head: Mapping[str, Any], data: bytes, *, seconds: float, num_bytes: int, limit: int
    ) -> tuple[dict[str, Any], bytes]:
        """Return the reply of ``Worker.request``; ``seconds`` are added to those that are left."""
        if not self.is_loaded:
            self.load()
        self._seconds += seconds
        self._allowed += seconds
        head = {**head, "key": self._key}
        reply, answer = self._ask(head, data, num_bytes=num_bytes, limit=limit)
        if reply.get("unknown"):
            # The file was given up for others: that is no fault of its own.
            self._seconds += self._load_seconds
            self.load()
            reply, answer = self._ask(head, data, num_bytes=num_bytes, limit=limit)
        if reply.get("unknown"):
            raise WorkerError("its process does not hold it")
        return reply, answer

    def _ask(
        self, head: Mapping[str, Any], data: bytes, *, num_bytes: int, limit: int
    ) -> tuple[dict[str, Any], bytes]:
        # The message is to give what all requests together may take.
        head, seconds = {**head, "allowed": self._allowed}, max(self._seconds, 0.0)
        reply, answer = self._worker.request(
            head, data, seconds=seconds, num_bytes=num_bytes, limit=limit
        )
        self._seconds -= reply["used"]
        return reply, answer


def _explain_end(code: int, seconds: float, num_bytes: int) -> str:
    """Return what ended a process in the middle of a request, a clause without its subject."""
    if code == _ENDED_BY_TIME:
        return f"needs more than {seconds:.0f} s of processor time"
    if code == -signal.SIGABRT:  # as Rust ends a process that gets no memory
        return _too_much_memory(num_bytes)
    return f"ended its process ({signal.Signals(-code).name if code < 0 else f'code {code}'})"


def _too_much_memory(num_bytes: int) -> str:
    return f"needs more than {num_bytes >> 20} MiB of memory"


def _folder_of(library: str) -> str:
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {library!r}", name=library)
    return str(Path(spec.origin).resolve().parents[1])


def _wait(pipe: int, event: int, deadline: float) -> None:
    poll, left = select.poll(), deadline - time.monotonic()
    poll.register(pipe, event)
    if left <= 0 or not poll.poll(1000 * left):
        raise _SilentError


def _send(pipe: int, data: bytes, deadline: float) -> None:
    view = memoryview(data)
    while view:
        _wait(pipe, select.POLLOUT, deadline)
        try:
            # A pipe that can be written takes so many bytes at once, and does not block.
            view = view[os.write(pipe, view[: select.PIPE_BUF]) :]
        except BrokenPipeError:
            raise _SilentError from None


def _receive(pipe: int, size: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        _wait(pipe, select.POLLIN, deadline)
        piece = os.read(pipe, min(size - len(data), _PIECE))
        if not piece:
            raise _SilentError
        data += piece
    return bytes(data)
