"""Wall time by phase of a long job: where the seconds of a run went.

Names and seconds only: it knows no device. Whoever computes on one hands over what waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class PhaseClock:
    """Adds up wall seconds by phase; time of an inner phase is taken out of the outer one.

    A phase costs about two microseconds. The clock belongs to the thread that made it: what other
    threads do beside that one takes no time of its own, so they must not enter a phase. A generator
    must not yield inside one, or its phase goes on in the caller.
    """

    def __init__(
        self,
        synchronize: Callable[[], None] | None = None,
        *,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Begin with no phase.

        Args:
            synchronize: waits until the device has done what it was given, for example
                ``torch.cuda.synchronize``. Called at both edges of every phase. Without it the
                seconds are those of the host, which runs ahead of a GPU.
            now: clock in seconds.
        """
        self._synchronize, self._now = synchronize, now
        self._seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0
        self._thread = threading.get_ident()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Give the seconds of the block to ``name``, whatever ends it.

        Raises:
            RuntimeError: another thread than the clock's own enters it.
        """
        if threading.get_ident() != self._thread:
            raise RuntimeError(f"phase {name!r} was entered by a thread that is not the clock's")
        self._seconds.setdefault(name, 0.0)
        self._note()
        self._open.append(name)
        try:
            yield
        finally:
            self._note()
            self._open.pop()

    def to_dict(self) -> dict[str, float]:
        """Return the seconds of each phase, rounded to milliseconds, in the order of first use.

        A phase that is still open counts up to its last edge.
        """
        return {name: round(seconds, 3) for name, seconds in self._seconds.items()}

    def _note(self) -> None:
        """Give the time since the last edge to the innermost open phase."""
        if self._synchronize is not None:
            self._synchronize()
        now = self._now()
        if self._open:
            self._seconds[self._open[-1]] += now - self._since
        self._since = now
