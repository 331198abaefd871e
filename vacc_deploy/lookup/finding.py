"""What a place is that is no checkpoint directory, and what to give in its stead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vacc_deploy.errors import MAX_LISTED


@dataclass(frozen=True)
class Finding:
    """What is no checkpoint directory.

    Attributes:
        what: sentences that name it.
        instead: paths and names that can be given in its place, the likeliest first.
        lead: a clause in front of these.
    """

    what: str
    instead: tuple[Path | str, ...] = ()
    lead: str = "Use this instead"

    def to_text(self, again: Callable[[Path | str], str] = str) -> str:
        """Return the message; ``again`` writes the command line with another path or name."""
        if not self.instead:
            return self.what
        lines = [f"  {again(place)}" for place in self.instead[:MAX_LISTED]]
        more = len(self.instead) - MAX_LISTED
        lines += [f"  and {more} more"] if more > 0 else []
        return "\n".join([f"{self.what} {self.lead}:", *lines])
