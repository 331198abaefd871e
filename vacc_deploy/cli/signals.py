"""End a command at the first of three signals, also where Python has no say for a while."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

# The last is what a closed terminal and a lost connection send.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A command that is interrupted in Python ends by itself in less. After that a library has the main
# thread: the Cholesky factor of 18,944 columns takes 45 seconds.
PATIENCE_SECONDS = 1.2
# Until then Python has left the finalizer that swallowed an interruption.
_AGAIN_SECONDS = 0.01
# How long a message may take, should nobody read what this process prints.
_MESSAGE_SECONDS = 0.3


class Interrupted(KeyboardInterrupt):
    """SIGINT. ``python -m`` remembers the class itself, and would die of the signal at its end."""


class Terminated(KeyboardInterrupt):
    """SIGTERM; what a Ctrl-C passes through, it passes through too."""


class HungUp(KeyboardInterrupt):
    """SIGHUP; see ``Terminated``."""


_ERRORS = {signal.SIGINT: Interrupted, signal.SIGTERM: Terminated, signal.SIGHUP: HungUp}


def signal_of(err: BaseException | None) -> int:
    """Return the signal that an interruption stands for."""
    numbers = (number for number, kind in _ERRORS.items() if isinstance(err, kind))
    return next(numbers, signal.SIGINT)


class SignalGuard:
    """Raises in the main thread at the first signal; ends the process if that does not help.

    Attributes:
        say: prints what is to be said of an interruption by this signal.
    """

    def __init__(self) -> None:
        """Begin without a message; ``install`` begins to watch."""
        self.say: Callable[[int], None] = lambda signum: None
        self._claimed = threading.Lock()

    def install(self) -> None:
        """Watch from now on; only the main thread can call this, once in a process."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        # Python's own part of a signal handler waits for the main thread; this does not.
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._arm()
        sys.unraisablehook = self._send_again
        with suppress(RuntimeError):  # no thread may be started: then Python's own part has to do
            threading.Thread(
                target=self._watch, args=(reader,), name="signals", daemon=True
            ).start()

    def _arm(self) -> None:
        for number in SIGNALS:
            # Whoever started this process may have asked to ignore one: in the background Ctrl-C,
            # with nohup the end of the terminal.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._interrupt)

    def _send_again(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Send a signal once more whose interruption Python has swallowed.

        It does so in a finalizer, such as that of a generator that nobody holds any more.
        """
        err = unraisable.exc_value
        if not isinstance(err, tuple(_ERRORS.values())):
            sys.__unraisablehook__(unraisable)
            return
        self._arm()
        again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), signal_of(err)))
        again.daemon = True
        with suppress(RuntimeError):  # no thread may be started: the watcher ends the process
            again.start()

    def claim(self) -> bool:
        """Return whether the caller is the first to say how the command ends."""
        return self._claimed.acquire(blocking=False)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        for number in SIGNALS:  # one is enough; a second must not disturb the clearing up
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
        if self._claimed.locked():
            return  # the command is over
        raise _ERRORS[signal.Signals(signum)]

    def _watch(self, reader: int) -> None:
        signum = os.read(reader, 1)[0]
        time.sleep(PATIENCE_SECONDS)
        # In a thread of its own: printing waits for a reader, and perhaps for the main thread.
        teller = threading.Thread(target=self._tell, args=(signum,), daemon=True)
        teller.start()
        teller.join(_MESSAGE_SECONDS)
        os._exit(128 + signum)  # as shells report a signal

    def _tell(self, signum: int) -> None:
        if self.claim():
            self.say(signum)
        else:  # the main thread is about to say it
            time.sleep(_MESSAGE_SECONDS)
