"""Bytes over the pipes to a process that may end or stop at any time."""

from __future__ import annotations

import os
import select
import time

_PIECE = 1 << 16


class SilentError(Exception):
    """The child says no more: it has ended, or it is stopped."""


def _wait(pipe: int, event: int, deadline: float) -> None:
    poll, left = select.poll(), deadline - time.monotonic()
    poll.register(pipe, event)
    if left <= 0 or not poll.poll(1000 * left):
        raise SilentError


def send(pipe: int, data: bytes, deadline: float) -> None:
    """Write all of ``data`` into a pipe.

    Raises:
        SilentError: the other side has ended, or does not read until ``deadline``.
    """
    view = memoryview(data)
    while view:
        _wait(pipe, select.POLLOUT, deadline)
        try:
            # A pipe that can be written takes so many bytes at once, and does not block.
            view = view[os.write(pipe, view[: select.PIPE_BUF]) :]
        except BrokenPipeError:
            raise SilentError from None


def receive(pipe: int, size: int, deadline: float) -> bytes:
    """Return ``size`` bytes of a pipe.

    Raises:
        SilentError: the other side has ended, or does not write until ``deadline``.
    """
    data = bytearray()
    while len(data) < size:
        _wait(pipe, select.POLLIN, deadline)
        piece = os.read(pipe, min(size - len(data), _PIECE))
        if not piece:
            raise SilentError
        data += piece
    return bytes(data)


def read_end(pipe: int, size: int) -> bytes:
    """Return the last ``size`` bytes of what lies in a pipe; nothing is waited for."""
    data, poll = b"", select.poll()
    poll.register(pipe, select.POLLIN)
    while poll.poll(0) and (piece := os.read(pipe, _PIECE)):
        data = (data + piece)[-size:]
    return data
