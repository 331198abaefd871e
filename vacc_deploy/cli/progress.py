"""Progress on stderr: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

import click

from vacc_deploy.progress import Progress
from vacc_deploy.results import escape_controls, format_bytes, format_seconds


def terminal_progress() -> Progress:
    """Return the progress for this stderr; it ends with the command, also after an error."""
    progress = BarProgress() if sys.stderr.isatty() else LineProgress()
    # A bar that is left open keeps the terminal's cursor hidden.
    click.get_current_context().call_on_close(progress.finish)
    return progress


def quiet_transformers() -> None:
    """Keep the library's own bars and notes off stderr; errors stay."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


class LineProgress(Progress):
    """One plain line per named step; steps without a name are told in tenths of the whole."""

    def __init__(self) -> None:
        self._description, self._total, self._done, self._unit = "", 0, 0, ""
        self._started = 0.0

    def start(self, description: str, total: int, unit: str) -> None:
        """Begin a job."""
        self._description, self._total, self._unit, self._done = description, total, unit, 0
        self._started = time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Print the step that was finished."""
        tenths_before = 10 * self._done // max(self._total, 1)
        self._done += amount
        if not note and 10 * self._done // max(self._total, 1) == tenths_before:
            return
        seconds = time.monotonic() - self._started
        left = seconds / self._done * (self._total - self._done) if self._done else 0.0
        done = _amount(self._done, self._unit if self._unit == "bytes" else "")
        total = _amount(self._total, self._unit)
        line = f"{self._description}: {done} of {total}, {format_seconds(max(left, 0.0))} left"
        click.echo(escape_controls(f"{line}  {note}".rstrip()), err=True)

    def warn(self, message: str) -> None:
        """Print a warning."""
        click.echo(escape_controls(f"Warning: {message}"), err=True)


class BarProgress(Progress):
    """A bar drawn by rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import (
            Progress as RichProgress,
        )

        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: int | None = None
        self._unit, self._started, self._done = "", 0.0, 0

    def start(self, description: str, total: int, unit: str) -> None:
        """Begin a job and draw its bar."""
        self._unit, self._started, self._done = unit, time.monotonic(), 0
        self._bar.start()
        description = escape_controls(description)
        self._task = self._bar.add_task(description, total=total, note="", rate="")

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Move the bar."""
        if self._task is None:
            return
        self._done += amount
        per_second = self._done / max(time.monotonic() - self._started, 1e-9)
        rate, note = f"{_amount(round(per_second, 2), self._unit)}/s", escape_controls(note)
        self._bar.update(self._task, advance=amount, note=note, rate=rate)  # type: ignore[arg-type]

    def finish(self) -> None:
        """Remove the bar."""
        if self._task is not None:
            self._bar.remove_task(self._task)  # type: ignore[arg-type]
            self._bar.stop()
            self._task = None

    def warn(self, message: str) -> None:
        """Print a warning above the bar."""
        text = escape_controls(f"Warning: {message}")
        self._bar.console.print(text, highlight=False, markup=False)


def _amount(value: float, unit: str) -> str:
    return format_bytes(value) if unit == "bytes" else f"{value:,.4g} {unit}".rstrip()
