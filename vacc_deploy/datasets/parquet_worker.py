"""The process of limited memory and time in which pyarrow reads Parquet files, and its frames.

Nothing that a file makes of pyarrow can end this process, take its memory or hold it up. The other
side is ``parquet_child``. A process that was left in the middle of a file is ended; one that has
read to the end waits for the next file, since its start takes longer than most files.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import struct
import subprocess
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import RECORD_BYTES
from vacc_deploy.children import GRACE_SECONDS, WALL_PER_SECOND, WALL_SECONDS, start_child

# Kinds of frames: names of the columns, size of a row group, a row, one with stand-ins, an odd one,
# one that is too long; and the last ones, the end and a failure.
HEAD, GROUP, ROW, STRANGE_ROW, ODD_ROW, LONG_ROW = b"h", b"g", b"r", b"s", b"o", b"l"
END, FAILURE = b"e", b"f"
_FRAME = struct.Struct("<cI")
_MAX_FRAME_BYTES = RECORD_BYTES + (1 << 16)
_PIECE = 1 << 16
_ENVIRONMENT = {
    # The other allocators of Arrow ask for a gigabyte of addresses at once.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "ARROW_IO_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# The libraries that the child imports. Older releases of pyarrow need numpy.
_LIBRARIES = ("pyarrow", "numpy")


class ProcessEndedError(Exception):
    """The process ended before its last frame.

    Attributes:
        code: its exit code, or minus the signal that ended it; None where it stood still.
    """

    def __init__(self, code: int | None) -> None:
        super().__init__(code)
        self.code = code


def read_frames(
    request: Mapping[str, Any], *, seconds: float, num_bytes: int
) -> Generator[tuple[bytes, bytes], None, None]:
    """Yield the frames of a reply, each with its kind; the last one is ``END`` or ``FAILURE``.

    Args:
        request: what ``parquet_child`` is to do, plain values.
        seconds: CPU time that it may take.
        num_bytes: memory that it may take.

    Raises:
        ProcessEndedError: the process ended by itself, by a limit or from outside.
        OSError: no process can be started.
    """
    line = json.dumps({**request, "seconds": seconds, "bytes": num_bytes}).encode() + b"\n"
    silence = WALL_SECONDS + WALL_PER_SECOND * seconds
    process = None
    try:
        process, frame = _begin(line, silence)
        while frame[0] not in (END, FAILURE):
            yield frame
            frame = process.receive(silence)
        _keep(process)
        process = None
        yield frame
    finally:
        if process is not None:
            process.kill()


def close_idle() -> None:
    """End the process that waits for a file."""
    while _idle:
        process = _idle.pop()
        if process.owner == os.getpid():
            process.close()


# At most one process that waits for a file.
_idle: list[_Process] = []
atexit.register(close_idle)


def _begin(line: bytes, silence: float) -> tuple[_Process, tuple[bytes, bytes]]:
    """Return a process that has got the request, and its first frame."""
    while True:
        # Taken out at once: another thread may read too. After a fork it is the parent's.
        waiting = _idle.pop() if _idle else None
        is_new = waiting is None or waiting.owner != os.getpid()
        process = _Process() if is_new or waiting is None else waiting
        try:
            process.send(line)
            return process, process.receive(silence)
        except ProcessEndedError as err:
            # One that waited ends by itself at times, and has not seen the request then.
            if is_new or err.code != 0:
                raise
        except BaseException:
            process.kill()
            raise


def _keep(process: _Process) -> None:
    if _idle:
        process.close()
    else:
        _idle.append(process)


class _Process:
    """A running child.

    Attributes:
        owner: the process that has started it.
    """

    def __init__(self) -> None:
        """Start it.

        Raises:
            OSError: that is not possible.
        """
        child = Path(__file__).with_name("parquet_child.py")
        self._process = start_child(child, (), libraries=_LIBRARIES, environment=_ENVIRONMENT)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._data, self._position = b"", 0
        self.owner = os.getpid()

    def send(self, line: bytes) -> None:
        """Send a request, which is short enough for an empty pipe or read at once."""
        try:
            while line:
                line = line[os.write(self._input.fileno(), line) :]
        except BrokenPipeError:
            raise ProcessEndedError(self.close()) from None

    def receive(self, silence: float) -> tuple[bytes, bytes]:
        """Return the next frame; the process may be silent for so many seconds."""
        kind, size = _FRAME.unpack(self._take(_FRAME.size, silence))
        # The child has bounded it; this side does not rely on that.
        if size > _MAX_FRAME_BYTES:
            self.kill()
            raise ProcessEndedError(1)
        return kind, self._take(size, silence)

    def kill(self) -> None:
        """End it whatever it does."""
        self._process.kill()
        self.close()

    def close(self) -> int:
        """End it, and return its exit code, or minus the signal that ended it."""
        self._input.close()
        self._output.close()
        try:
            # One that has ended is gone at once; one that waits sees the end of its requests.
            return self._process.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return -signal.SIGXCPU

    def _take(self, size: int, silence: float) -> bytes:
        """Return the next ``size`` bytes."""
        rest = self._data[self._position : self._position + size]
        self._position += len(rest)
        if len(rest) == size:
            return rest
        pieces, missing, deadline = [rest], size - len(rest), time.monotonic() + silence
        while missing > 0:
            piece = self._read(max(0.0, deadline - time.monotonic()))
            pieces.append(piece[:missing])
            self._data, self._position = piece, min(missing, len(piece))
            missing -= self._position
        return b"".join(pieces)

    def _read(self, seconds: float) -> bytes:
        poll, pipe = select.poll(), self._output.fileno()
        poll.register(pipe, select.POLLIN)
        if not poll.poll(1000 * seconds):
            self.kill()
            raise ProcessEndedError(None)
        piece = os.read(pipe, _PIECE)
        if not piece:
            raise ProcessEndedError(self.close())
        return piece
