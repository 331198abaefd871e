"""Doubles that several tests hand to the package: listeners of progress, controls that stop."""

from __future__ import annotations

import signal

from vacc_deploy.progress import Progress, RunControl


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


class StopAfter(RunControl):
    """Asks to stop once it was asked ``count`` times.

    Attributes:
        told: what stays, finished and all layers; None while nobody has said so.
    """

    def __init__(self, count=1, signum=signal.SIGTERM):
        self.left, self.signum, self.told = count, signum, None

    def stop_signal(self):
        self.left -= 1
        return self.signum if self.left <= 0 else None

    def kept(self, finished, total):
        self.told = (finished, total)
