"""Doubles that several tests hand to the package: listeners of progress, one that interrupts."""

from __future__ import annotations

import time

from vacc_deploy.progress import KeptLayers, Progress


class Recorder(Progress):
    """Keeps every call.

    Attributes:
        events: name of the call and what it was told, in order, warnings left out.
        warnings: their texts.
        said: the notes, their texts.
    """

    def __init__(self):
        self.events, self.warnings, self.said = [], [], []

    def start(self, description, total, unit):
        self.events.append(("start", f"{description} {total} {unit}"))

    def advance(self, amount=1, note=""):
        self.events.append(("advance", amount, note))

    def skip(self, amount=1, note=""):
        self.events.append(("skip", amount, note))

    def note(self, text):
        self.events.append(("note", text))

    def finish(self):
        self.events.append(("finish",))

    def say(self, message):
        self.said.append(message)

    def warn(self, message):
        self.warnings.append(message)

    def notes(self, kind="advance"):
        """Return the texts of the calls of one kind."""
        return [event[-1] for event in self.events if event[0] == kind]

    def amount(self, kind="advance"):
        """Return the units of the calls of one kind."""
        return sum(event[1] for event in self.events if event[0] == kind)


class StopAfter(Recorder):
    """Interrupts a run, as Ctrl-C does, once it has made ``count`` layers or carried rows through.

    Attributes:
        kept: tells what the run keeps, where it is given to the run too.
    """

    def __init__(self, count=1):
        super().__init__()
        self.kept, self._count, self._passed, self._job = KeptLayers(), count, 0, ""

    def start(self, description, total, unit):
        super().start(description, total, unit)
        self._job = description

    def advance(self, amount=1, note=""):
        super().advance(amount, note)
        self._go_on(amount)

    def skip(self, amount=1, note=""):
        super().skip(amount, note)
        self._go_on(amount)

    def _go_on(self, amount):
        if self._job != "Quantizing":
            return
        self._passed += amount
        if self._passed >= self._count:
            # The layer is on its way to the disk; the next one has not begun.
            while self.kept.finished < self._passed:
                time.sleep(0.005)
            raise KeyboardInterrupt
