"""Progress on stderr: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import click

from vacc_deploy.cli.telling import cut_message, tell
from vacc_deploy.progress import Progress
from vacc_deploy.results import escape_controls, format_bytes, format_seconds

_PERIODS = ((1, "s"), (60, "min"), (3600, "h"))


def terminal_progress() -> Progress:
    """Return the progress for this stderr; it ends with the command, also after an error."""
    progress = _BarProgress() if sys.stderr.isatty() else LineProgress()
    # A bar that is left open keeps the terminal's cursor hidden.
    click.get_current_context().call_on_close(progress.finish)
    return progress


def quiet_transformers() -> None:
    """Keep the library's own bars and notes off stderr; errors stay."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


class _Meter:
    """Counts units and their seconds, for a rate and the time left; skipped units took no time."""

    def __init__(self, total: int, now: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done, self._skipped, self._now = total, 0, 0, now
        self._since = self._last = now()

    def advance(self, amount: int) -> None:
        self.done += amount
        self._last = self._now()

    def skip(self, amount: int) -> None:
        self.done += amount
        self._skipped = self.done
        self._since = self._last = self._now()

    def tenths(self) -> int:
        return 10 * self.done // max(self.total, 1)

    def per_second(self) -> float:
        return (self.done - self._skipped) / max(self._last - self._since, 1e-9)

    def describe_left(self) -> str:
        """Return the time left as of the last unit; empty until one unit has shown its time."""
        counted = self.done - self._skipped
        if not counted:
            return ""
        left = (self._last - self._since) / counted * (self.total - self.done)
        return f"{format_seconds(max(left, 0.0))} left"


class LineProgress(Progress):
    """One plain line per named step; of unnamed steps, one line per tenth of the whole."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """Begin with no job; ``now`` is a clock in seconds."""
        self._now, self._description, self._unit, self._meter = now, "", "", _Meter(0, now)

    def start(self, description: str, total: int, unit: str) -> None:
        """Begin a job."""
        self._description, self._unit, self._meter = description, unit, _Meter(total, self._now)

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Print the step that was finished."""
        tenths_before = self._meter.tenths()
        self._meter.advance(amount)
        if note or self._meter.tenths() != tenths_before:
            self._print(note)

    def skip(self, amount: int = 1, note: str = "") -> None:
        """Print what needs no work."""
        self._meter.skip(amount)
        self._print(note)

    def _print(self, note: str) -> None:
        done = _amount(self._meter.done, self._unit if self._unit == "bytes" else "")
        line = f"{self._description}: {done} of {_amount(self._meter.total, self._unit)}"
        if left := self._meter.describe_left():
            line += f", {left}"
        tell(f"{line}  {note}".rstrip())

    def say(self, message: str) -> None:
        """Print a note."""
        tell(f"Note: {message}")

    def warn(self, message: str) -> None:
        """Print a warning."""
        tell(f"Warning: {message}")


class _BarProgress(Progress):
    """A bar drawn by rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[rate]}"),
            TimeElapsedColumn(),
            # rich's own column goes by the last 30 seconds: less than one layer of a large model.
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: int | None = None
        self._unit, self._meter = "", _Meter(0)

    def start(self, description: str, total: int, unit: str) -> None:
        self._unit, self._meter = unit, _Meter(total)
        self._bar.start()
        description = escape_controls(description)
        self._task = self._bar.add_task(description, total=total, note="", rate="", left="")

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._meter.advance(amount)
        self._move(amount, note, _rate(self._meter.per_second(), self._unit))

    def skip(self, amount: int = 1, note: str = "") -> None:
        self._meter.skip(amount)
        self._move(amount, note, "")

    def note(self, text: str) -> None:
        if self._task is not None:
            self._bar.update(self._task, note=escape_controls(text))  # type: ignore[arg-type]

    def _move(self, amount: int, note: str, rate: str) -> None:
        if self._task is None:
            return
        fields = {"note": escape_controls(note), "rate": rate, "left": self._meter.describe_left()}
        self._bar.update(self._task, advance=amount, **fields)  # type: ignore[arg-type]

    def finish(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)  # type: ignore[arg-type]
            self._bar.stop()
            self._task = None

    def say(self, message: str) -> None:
        self._print(f"Note: {message}")

    def warn(self, message: str) -> None:
        self._print(f"Warning: {message}")

    def _print(self, line: str) -> None:
        self._bar.console.print(escape_controls(cut_message(line)), highlight=False, markup=False)


def _amount(count: int, unit: str) -> str:
    if unit == "bytes":
        return format_bytes(count)
    return f"{count:,} {unit}".rstrip()


def _rate(per_second: float, unit: str) -> str:
    """Return, for example, ``18,720 tokens/s`` or ``3.2 layers/min``, in digits a person reads."""
    if unit == "bytes":
        return f"{format_bytes(per_second)}/s"
    # A slow rate is told by the minute or the hour.
    seconds, name = next((p for p in _PERIODS if per_second * p[0] >= 1), _PERIODS[-1])
    value = per_second * seconds
    return f"{value:,.{0 if value >= 100 else 1}f} {unit}/{name}"
