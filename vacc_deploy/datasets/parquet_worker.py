"""The process of limited memory and time in which pyarrow reads Parquet files, and its frames.

Nothing that a file makes of pyarrow can end this process, take its memory or hold it up. The other
side is ``parquet_child``. A process that was left in the middle of a file is ended; one that has
read to the end waits for the next file, since its start takes longer than most files.
"""

from __future__ import annotations

import atexit
import json
import struct
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import RECORD_BYTES
from vacc_deploy.children.process import (
    WALL_PER_SECOND,
    WALL_SECONDS,
    Child,
    SilentError,
    StartError,
)

# Kinds of frames: names of the columns, size of a row group, a row, one with stand-ins, an odd one,
# one that is too long; and the last ones, the end and a failure.
HEAD, GROUP, ROW, STRANGE_ROW, ODD_ROW, LONG_ROW = b"h", b"g", b"r", b"s", b"o", b"l"
END, FAILURE = b"e", b"f"
_FRAME = struct.Struct("<cI")
_MAX_FRAME_BYTES = RECORD_BYTES + (1 << 16)
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
            frame = _receive(process, silence)
        _keep(process)
        process = None
        yield frame
    finally:
        if process is not None:
            process.kill()


def close_idle() -> None:
    """End the process that waits for a file."""
    while _idle:
        _idle.pop().close()


# At most one process that waits for a file.
_idle: list[Child] = []
atexit.register(close_idle)


def _begin(line: bytes, silence: float) -> tuple[Child, tuple[bytes, bytes]]:
    """Return a process that has got the request, and its first frame."""
    while True:
        # Taken out at once: another thread may read too.
        waiting = _idle.pop() if _idle else None
        is_new = waiting is None or not waiting.is_ours
        process = _start() if is_new or waiting is None else waiting
        try:
            try:
                process.send(line, time.monotonic() + silence)
            except SilentError:
                raise ProcessEndedError(process.close()) from None
            return process, _receive(process, silence)
        except ProcessEndedError as err:
            # One that waited ends by itself at times, and has not seen the request then.
            if is_new or err.code != 0:
                raise
        except BaseException:
            process.kill()
            raise


def _start() -> Child:
    program = Path(__file__).with_name("parquet_child.py")
    try:
        return Child(program, libraries=_LIBRARIES, environment=_ENVIRONMENT)
    except StartError as err:
        raise ProcessEndedError(err.code) from None


def _receive(process: Child, silence: float) -> tuple[bytes, bytes]:
    """Return the next frame; the process may be silent for so many seconds."""
    try:
        kind, size = _FRAME.unpack(process.take(_FRAME.size, time.monotonic() + silence))
        # The child has bounded it; this side does not rely on that.
        if size > _MAX_FRAME_BYTES:
            process.kill()
            raise ProcessEndedError(1)
        return kind, process.take(size, time.monotonic() + silence)
    except SilentError as err:
        if not err.is_stopped:
            raise ProcessEndedError(process.close()) from None
        process.kill()
        raise ProcessEndedError(None) from None


def _keep(process: Child) -> None:
    if _idle:
        process.close()
    else:
        _idle.append(process)
