"""What can happen at a call: an error, a signal, a pause, a jump of the clock."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time

from fault import START, Act, Fault, Layer


def fail(number: int) -> Act:
    """Return what raises an error of the system, with the name that the system gives."""

    def act(layer: Layer, call: str, path: str) -> None:
        # Calls on something open know no name.
        names = () if call in ("read", "write", "fsync", "close", "lock", "reserve") else (path,)
        raise OSError(number, os.strerror(number), *names)

    return act


def send(signum: int) -> Act:
    """Return what sends this process a signal."""
    return lambda layer, call, path: os.kill(os.getpid(), signum)


def pause(layer: Layer, call: str, path: str) -> None:
    """Wait until whoever started this process has done something else meanwhile."""
    layer.pause()


def error(name: str, call: str, number: int, *, lasts: bool = False, about: str = "") -> Fault:
    """Return the fault that a call fails with the error of this name."""
    return Fault(call, number, fail(getattr(errno, name)), name, lasts=lasts, about=about)


def strike(name: str, call: str, number: int, *, is_after: bool = False) -> Fault:
    """Return the fault that a signal comes at a call."""
    signum = getattr(signal, name)
    return Fault(call, number, send(signum), name, is_after=is_after)


def strike_after(name: str, seconds: float) -> Fault:
    """Return the fault that a signal comes at a moment."""

    def act(layer: Layer, call: str, path: str) -> None:
        def kill() -> None:
            # Before that it is the system's matter, as while the interpreter starts.
            while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                time.sleep(0.001)
            os.kill(os.getpid(), getattr(signal, name))

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()

    return Fault(START, 1, act, f"{name} after {seconds:.3f} s")


def jump(seconds: float) -> Act:
    """Return what sets the clock of this process forward, or back."""

    def act(layer: Layer, call: str, path: str) -> None:
        real = time.time
        time.time = lambda: real() + seconds

    return act
