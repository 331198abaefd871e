"""How long work tells its caller where it is; a library call is silent by default."""

from __future__ import annotations

from collections.abc import Callable


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


class KeptLayers:
    """What a resumable run keeps if it ends now; its caller may ask at any time, from any thread.

    Attributes:
        total: all layers of the model.
        has_begun: whether the run has begun; before that, the layers are those of an earlier run.
    """

    def __init__(self) -> None:
        """Begin with no layer."""
        self.total, self.has_begun = 0, False
        self._count: Callable[[], int] = lambda: 0

    def follow(self, count: Callable[[], int], total: int, *, has_begun: bool) -> None:
        """Let ``count`` tell from now on how many of ``total`` layers are finished."""
        self._count, self.total, self.has_begun = count, total, has_begun

    @property
    def finished(self) -> int:
        """The layers that are on the disk, from the first one on."""
        return self._count()
