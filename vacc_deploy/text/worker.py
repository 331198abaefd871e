"""A process of limited memory and time, in which the work on a stranger's file is done.

Nothing that a template or a tokenizer does there can end this process, take its memory or hold it
up. The other side is ``child``. What it says may be a stranger's, and is shown in one line. A frame
is the length of a JSON object, that of the data behind it, and both. A request names what it works
on by a key; a child that does not hold it asks for it, so that one child serves many files, and may
be replaced at any time.
"""

from __future__ import annotations

import atexit
import json
import signal
import struct
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import WORKER_MEMORY
from vacc_deploy.children.process import (
    ENDED_BY_TIME,
    WALL_PER_SECOND,
    WALL_SECONDS,
    Child,
    SilentError,
    StartError,
)
from vacc_deploy.errors import REASON_SHOWN, ProcessError, shorten

_FRAME = struct.Struct("<IQ")
_MAX_HEAD_BYTES = 1 << 28
# Of what a process that cannot start has said.
_SAID_LINES = 3
# Nothing that a template or a tokenizer does can send these.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_PROCESS = "The process in which tokenizers and chat templates run"
_FREE = "Free memory, and run the command again."
_ENVIRONMENT = {
    "RUST_BACKTRACE": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "RAYON_NUM_THREADS": "1",
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

    def __init__(
        self,
        job: str,
        libraries: tuple[str, ...],
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare; nothing is started.

        Args:
            job: a file beside this one.
            libraries: what it imports.
            environment: variables for them, beside those of every worker.
        """
        self._job, self._libraries = Path(__file__).with_name(job), libraries
        self._environment = {**_ENVIRONMENT, **(environment or {})}
        self._process: Child | None = None
        self._lock = threading.Lock()
        atexit.register(self.close)

    def request(
        self, head: Mapping[str, Any], data: bytes, *, seconds: float, num_bytes: int, limit: int
    ) -> tuple[dict[str, Any], bytes]:
        """Return the reply to one request, and its data.

        Args:
            head: what to do, plain values.
            data: what to do it with.
            seconds: CPU time that it may take.
            num_bytes: memory that it may take, within that of the whole process.
            limit: of the data of the reply, in bytes.

        Raises:
            WorkerError: the request failed, or took more than it may.
            ProcessError: there is no process to be had, or it was ended from outside.
        """
        num_bytes = min(num_bytes, WORKER_MEMORY)
        values = {
            **head,
            "seconds": seconds,
            "bytes": num_bytes,
            "most": WORKER_MEMORY,
            "limit": limit,
        }
        packed = json.dumps(values).encode("ascii")
        frame = [_FRAME.pack(len(packed), len(data)) + packed, data]
        deadline = time.monotonic() + WALL_SECONDS + WALL_PER_SECOND * seconds
        with self._lock:
            try:
                try:
                    reply, answer = self._exchange(frame, deadline, limit)
                except _IdleError:  # it ended before it saw the request
                    reply, answer = self._exchange(frame, deadline, limit)
            except _IdleError:
                raise ProcessError(f"{_PROCESS} ends before it answers. {_FREE}") from None
            except _EndedError as err:
                _check_end(err.code)
                how = _explain_end(err.code, head.get("allowed", seconds), num_bytes)
                raise WorkerError(how, is_limit=True) from None
        failed = reply.get("failed")
        if failed == "memory":
            raise WorkerError(_too_much_memory(num_bytes), is_limit=True)
        if failed == "depth":
            raise WorkerError("calls itself without end (RecursionError)", is_limit=True)
        if failed:
            line = reply.get("line")
            text = shorten(reply.get("text"), REASON_SHOWN)
            raise WorkerError(text, line=line if isinstance(line, int) else None)
        return reply, answer

    def close(self) -> int:
        """End the process, if it runs; return its exit code, or minus the signal that ended it."""
        process, self._process = self._process, None
        return 0 if process is None else process.close()

    def _exchange(
        self, frame: list[bytes], deadline: float, limit: int
    ) -> tuple[dict[str, Any], bytes]:
        process = self._running()
        try:
            for data in frame:
                process.send(data, deadline)
            sizes = _FRAME.unpack(process.take(_FRAME.size, deadline))
            # The child has bounded both; this side does not rely on it.
            if sizes[0] > _MAX_HEAD_BYTES or sizes[1] > limit:
                raise WorkerError("gives a longer answer than it may", is_limit=True)
            head, answer = (process.take(size, deadline) for size in sizes)
            reply: dict[str, Any] = json.loads(head)
        except SilentError:
            code = self.close()
            raise (_EndedError(code) if code else _IdleError()) from None
        except BaseException:
            # Interrupted in the middle: what the child would say next belongs to nobody.
            self.close()
            raise
        if reply["is_last"]:
            self.close()
        return reply, answer

    def _running(self) -> Child:
        """Return the process, started where there is none, or it has ended for lack of work."""
        # It ends by itself where it has long had nothing to do.
        if self._process is not None and (not self._process.is_ours or self._process.has_spoken()):
            self.close()
        if self._process is None:
            self._process = self._start()
        return self._process

    def _start(self) -> Child:
        try:
            return Child(
                Path(__file__).with_name("child.py"),
                (str(self._job),),
                libraries=self._libraries,
                environment=self._environment,
            )
        except OSError as err:
            raise ProcessError(
                f"{_PROCESS} cannot be started: {err}. Free what the system lacks, such as memory "
                "or open files."
            ) from err
        except StartError as err:
            _check_end(min(err.code, 0))
            lines = " / ".join(err.said.split("\n")[-_SAID_LINES:]).strip(" /")
            said = shorten(lines or "it says nothing", REASON_SHOWN)
            raise ProcessError(
                f"{_PROCESS} cannot be started (code {err.code}): {said}. Install vacc-deploy and "
                "its packages anew, or free memory."
            ) from None


class _IdleError(Exception):
    """The child had ended by itself."""


class _EndedError(Exception):
    """The child ended in the middle of a request."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _check_end(code: int) -> None:
    """Raise ``ProcessError`` where no template and no tokenizer can have ended a process so."""
    if code > 0:
        raise ProcessError(f"{_PROCESS} ended with the code {code}. {_FREE}")
    if -code in _FROM_OUTSIDE:
        raise ProcessError(
            f"{_PROCESS} was ended from outside ({signal.Signals(-code).name}), as the system does "
            f"where memory is short. {_FREE}"
        )


def _explain_end(code: int, seconds: float, num_bytes: int) -> str:
    """Return what ended a process in the middle of a request, a clause without its subject."""
    if code == ENDED_BY_TIME:
        return f"needs more than {seconds:.0f} s of processor time"
    if code == -signal.SIGABRT:  # as Rust ends a process that gets no memory
        return _too_much_memory(num_bytes)
    return f"ended its process ({signal.Signals(-code).name})"


def _too_much_memory(num_bytes: int) -> str:
    return f"needs more than {num_bytes >> 20} MiB of memory"
