"""A process in which a stranger's file is worked on: how it is started, spoken to and ended.

It gets no variable of ours, no path of ours, and no signal of the terminal; what it may import lies
in the folders that it is given. Its side is ``entry``. What is said over the pipes is for those who
start it.
"""

from __future__ import annotations

import importlib.util
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

# A child waits for a core at times; one that is stopped waits for ever.
WALL_SECONDS, WALL_PER_SECOND = 60.0, 20.0
# The code of one that had to be ended: as where the kernel ends it when its time is over.
ENDED_BY_TIME = -signal.SIGXCPU
_GRACE_SECONDS = 0.5
_PIECE = 1 << 16
# Of what a process that cannot start has said.
_SAID_BYTES = 4096
# The only variable of ours that a Python may need, to find its own library.
_KEPT_VARIABLE = "LD_LIBRARY_PATH"
_ENVIRONMENT = {"TZ": "UTC0", "MALLOC_ARENA_MAX": "1"}


class SilentError(Exception):
    """The child says no more.

    Attributes:
        is_stopped: it stands still; else it has ended.
    """

    def __init__(self, *, is_stopped: bool = False) -> None:
        super().__init__(is_stopped)
        self.is_stopped = is_stopped


class StartError(Exception):
    """The child ended before it was ready, so that it has seen no file.

    Attributes:
        code: its exit code, or minus the signal that ended it.
        said: the end of what it wrote to stderr.
    """

    def __init__(self, code: int, said: str) -> None:
        super().__init__(code, said)
        self.code, self.said = code, said


class Child:
    """A running process with pipes for its stdin and stdout.

    Attributes:
        pid: its number.
    """

    def __init__(
        self,
        program: Path,
        arguments: Iterable[str] = (),
        *,
        libraries: Iterable[str],
        environment: Mapping[str, str],
    ) -> None:
        """Start it, and wait until it is ready.

        Args:
            program: a file for ``entry``.
            arguments: for the program.
            libraries: what it imports beside the standard library; a missing one is left out.
            environment: variables for the libraries.

        Raises:
            OSError: it cannot be started.
            StartError: it ended before it was ready.
        """
        kept = {name: value for name, value in os.environ.items() if name == _KEPT_VARIABLE}
        folders = dict.fromkeys(filter(None, map(folder_of, libraries)))
        entry = str(Path(__file__).with_name("entry.py"))
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", entry, str(program), *arguments, "--", *folders],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env={**kept, **_ENVIRONMENT, **environment},
            # Signals of the terminal are for this process, which ends the other.
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._input, self._output = self._process.stdin, self._process.stdout
        self._errors = self._process.stderr
        self._owner, self.pid = os.getpid(), self._process.pid
        self._data, self._position = b"", 0
        self._wait_until_ready()

    @property
    def is_ours(self) -> bool:
        """Whether this process has started it; after a fork it is the parent's."""
        return self._owner == os.getpid()

    def has_spoken(self) -> bool:
        """Return whether one that owes no reply has ended, or is about to."""
        return _can_go_on(self._output.fileno(), select.POLLIN, 0)

    def send(self, data: bytes, deadline: float) -> None:
        """Write all of ``data``.

        Raises:
            SilentError: it has ended, or does not read until ``deadline`` of the monotonic clock.
        """
        pipe, view = self._input.fileno(), memoryview(data)
        while view:
            if not _can_go_on(pipe, select.POLLOUT, deadline - time.monotonic()):
                raise SilentError(is_stopped=True)
            try:
                # A pipe that can be written takes so many bytes at once, and does not block.
                view = view[os.write(pipe, view[: select.PIPE_BUF]) :]
            except BrokenPipeError:
                raise SilentError from None

    def take(self, size: int, deadline: float) -> bytes:
        """Return the next ``size`` bytes that it writes.

        Raises:
            SilentError: it has ended, or does not write until ``deadline`` of the monotonic clock.
        """
        rest = self._data[self._position : self._position + size]
        self._position += len(rest)
        if len(rest) == size:
            return rest
        pieces, missing, pipe = [rest], size - len(rest), self._output.fileno()
        while missing > 0:
            if not _can_go_on(pipe, select.POLLIN, deadline - time.monotonic()):
                raise SilentError(is_stopped=True)
            piece = os.read(pipe, _PIECE)
            if not piece:
                raise SilentError
            pieces.append(piece[:missing])
            self._data, self._position = piece, min(missing, len(piece))
            missing -= self._position
        return b"".join(pieces)

    def kill(self) -> None:
        """End it whatever it does."""
        if self.is_ours:
            self._process.kill()
            self.close()

    def close(self) -> int:
        """End it; return its exit code, or minus the signal that ended it."""
        if not self.is_ours:
            return 0
        self._input.close()
        self._output.close()
        try:
            # One that was ended by a signal is gone at once; one that works does not listen.
            return self._process.wait(timeout=_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return ENDED_BY_TIME
        finally:
            # The last: without this end of the pipe the system ends the process.
            self._errors.close()

    def _wait_until_ready(self) -> None:
        """Wait for the first byte; until it comes, stderr is read."""
        try:
            self.take(1, time.monotonic() + WALL_SECONDS)
        except SilentError:
            said = _read_end(self._errors.fileno(), _SAID_BYTES).decode(errors="replace")
            raise StartError(self.close(), said) from None
        except BaseException:
            self.close()
            raise


def folder_of(library: str) -> str | None:
    """Return the directory from which a library is imported, None where it is missing."""
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        return None
    return str(Path(spec.origin).resolve().parents[1])


def _can_go_on(pipe: int, event: int, seconds: float) -> bool:
    """Return whether a pipe can be read or written, or its other end is closed, within a time."""
    poll = select.poll()
    poll.register(pipe, event)
    return bool(poll.poll(1000 * max(0.0, seconds)))


def _read_end(pipe: int, size: int) -> bytes:
    """Return the last ``size`` bytes of what lies in a pipe; nothing is waited for."""
    data = b""
    while _can_go_on(pipe, select.POLLIN, 0) and (piece := os.read(pipe, _PIECE)):
        data = (data + piece)[-size:]
    return data
