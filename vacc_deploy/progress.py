"""How long work tells its caller where it is; a library call is silent by default."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext


class Progress:
    """Receives the steps of a long job. This base class ignores them."""

    def start(self, description: str, total: int, unit: str) -> None:
        """Begin a job of ``total`` units (bytes, layers, tokens)."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Report ``amount`` units done; ``note`` describes the step just finished."""

    def skip(self, amount: int = 1, note: str = "") -> None:
        """Report ``amount`` units that need no work now; rate and time left begin behind them."""

    def note(self, text: str) -> None:
        """Say what is under way within the current unit. Plain lines leave it out."""

    def finish(self) -> None:
        """End the job."""

    def say(self, message: str) -> None:
        """Report something worth knowing, once, in one line."""

    def warn(self, message: str) -> None:
        """Report something the user has to know, once, in one line."""


SILENT = Progress()


class RunControl:
    """Lets the caller of a resumable run stop it between two layers. This base class never does."""

    def watch(self) -> AbstractContextManager[None]:
        """Return the context in which ``stop_signal`` is asked after every layer."""
        return nullcontext()

    def stop_signal(self) -> int | None:
        """Return the number of the signal that asks to stop, None to go on."""
        return None

    def kept(self, finished: int, total: int) -> None:
        """Learn, after an error or an interruption, that ``finished`` of ``total`` layers stay."""


UNCONTROLLED = RunControl()
