"""How long work tells its caller where it is; a library call is silent by default."""

from __future__ import annotations


class Progress:
    """Receives the steps of a long job. This base class ignores them."""

    def start(self, description: str, total: int, unit: str) -> None:
        """Begin a job of ``total`` units (bytes, layers, tokens)."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Report ``amount`` units done; ``note`` describes the step just finished."""

    def finish(self) -> None:
        """End the job."""

    def warn(self, message: str) -> None:
        """Report something the user has to know, once, in one line."""


SILENT = Progress()
