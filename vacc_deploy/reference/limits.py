"""What a comparison must meet to be passed, and the sentences of the verdict.

Imports no torch: the command line reads the default limits for its help.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vacc_deploy.reference.next_tokens import NextTokenScores

# The default limits of int8 weights. Sound ones of the models in docs/performance.md stay below a
# third of the one and have half as many other top tokens; damaged ones miss at least one of them.
MAX_KL, MIN_TOP1 = 0.02, 0.93
# Those of float weights: the same numbers, or numbers that were stored in another dtype.
MAX_KL_FLOAT, MIN_TOP1_FLOAT = 0.001, 0.98
# No rounding to 8 bits moves a sound model so far: codes of 4 bits stay below it. Another model, or
# damage, is beyond it.
IMPOSSIBLE_KL = 1.0
# So many standard errors may a text miss a default limit by: a short one does by chance.
ALLOWED_ERRORS = 3
# A model that guesses has the perplexity of its vocabulary. A random one comes a few per cent below
# it by chance, a trained one stays far below.
_GUESSING = 0.5


@dataclass(frozen=True)
class Limits:
    """What the scores must meet.

    A limit that is given holds exactly. The defaults have room for chance: a text of few tokens may
    miss them by three standard errors.

    Attributes:
        max_kl: largest mean KL, in nats; None is the default, infinity no limit.
        min_top1: smallest share of equal top tokens; None is the default, 0 no limit.
        is_float: whether the defaults are those of float weights, else those of int8 weights.
    """

    max_kl: float | None = None
    min_top1: float | None = None
    is_float: bool = False

    def for_layout(self, layout: str) -> Limits:
        """Return the limits with the defaults of a layout; empty for float weights."""
        return replace(self, is_float=not layout)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``; no limit is None."""
        max_kl, min_top1 = self._values()
        return {
            "max_kl": max_kl if math.isfinite(max_kl) else None,
            "min_top1": min_top1 or None,
        }

    def failures(self, scores: NextTokenScores, vocab_size: int) -> tuple[str, ...]:
        """Return a line for everything that ``scores`` do not meet; NaN meets nothing."""
        if not math.isfinite(scores.mean_kl):
            return _not_finite(scores)
        max_kl, min_top1 = self._values()
        kl_room, top1_room = self._room(scores)
        lines = []
        if scores.mean_kl - ALLOWED_ERRORS * scores.kl_standard_error > IMPOSSIBLE_KL:
            lines.append(
                f"mean KL is {scores.mean_kl:.6f}, and rounding to 8 bits never makes more than "
                f"{IMPOSSIBLE_KL:g} of a sound model: the float model is not the source of the "
                "deployed weights, or one of the two is damaged"
            )
        elif not scores.mean_kl <= max_kl + kl_room:
            lines.append(f"mean KL is {scores.mean_kl:.6f}, the limit is {max_kl:g}")
        if not scores.top1 >= min_top1 - top1_room:
            lines.append(f"same top token is {scores.top1:.4f}, the limit is {min_top1:g}")
        for name, perplexity in _by_model(scores).items():
            if guesses(perplexity, vocab_size):
                lines.append(
                    f"the {name} model knows nothing of this text: its perplexity is "
                    f"{perplexity:,.0f}, guessing among its vocabulary gives {vocab_size:,}"
                )
        return tuple(lines)

    def notes(self, scores: NextTokenScores) -> list[str]:
        """Return a line where the scores meet a limit by the room for chance only."""
        max_kl, min_top1 = self._values()
        kl_room, top1_room = self._room(scores)
        close = []
        if max_kl < scores.mean_kl <= max_kl + kl_room:
            close.append("mean KL")
        if min_top1 > scores.top1 >= min_top1 - top1_room:
            close.append("same top token")
        return [
            f"{name} misses its limit by less than {ALLOWED_ERRORS} standard errors, which "
            f"{scores.num_tokens:,} tokens may do by chance. Compare on more of them (--text, "
            "--max-tokens)."
            for name in close
        ]

    def describe(self, scores: NextTokenScores) -> str:
        """Return the values with their limits, for the line of a passed comparison."""
        max_kl, min_top1 = self._values()
        kl_room, top1_room = self._room(scores)
        kl_limit = f"limit {max_kl:g}" if math.isfinite(max_kl) else "no limit"
        top1_limit = f"limit {min_top1:.2%}" if min_top1 else "no limit"
        if scores.mean_kl > max_kl:
            kl_limit += f", with room for chance {max_kl + kl_room:.4f}"
        if scores.top1 < min_top1:
            top1_limit += f", with room for chance {min_top1 - top1_room:.2%}"
        kl, top1 = f"mean KL {scores.mean_kl:.6f}", f"same top token {scores.top1:.2%}"
        return f"{kl} ({kl_limit}), {top1} ({top1_limit})."

    def _values(self) -> tuple[float, float]:
        max_kl, min_top1 = self._defaults()
        return (
            max_kl if self.max_kl is None else self.max_kl,
            min_top1 if self.min_top1 is None else self.min_top1,
        )

    def _defaults(self) -> tuple[float, float]:
        return (MAX_KL_FLOAT, MIN_TOP1_FLOAT) if self.is_float else (MAX_KL, MIN_TOP1)

    def _room(self, scores: NextTokenScores) -> tuple[float, float]:
        """Return how far beside each limit the scores may lie: nothing where it was given."""
        max_kl, min_top1 = self._defaults()
        # The deviation of a share that is just at the limit: a share of 0 or 1 would have none.
        deviation = math.sqrt(min_top1 * (1 - min_top1) / scores.num_tokens)
        # The error of the KL is the sample's own and grows with the damage: it gets a bound.
        kl_room = min(ALLOWED_ERRORS * scores.kl_standard_error, max_kl)
        return (
            kl_room if self.max_kl is None else 0.0,
            ALLOWED_ERRORS * deviation if self.min_top1 is None else 0.0,
        )


DEFAULT_LIMITS = Limits()


def guesses(perplexity: float, vocab_size: int) -> bool:
    """Return whether a model of this perplexity does little more than guess; NaN does."""
    return not perplexity < _GUESSING * vocab_size


def _by_model(scores: NextTokenScores) -> dict[str, float]:
    return {"float": scores.perplexity_float, "deployed": scores.perplexity_deployed}


def _not_finite(scores: NextTokenScores) -> tuple[str, ...]:
    models = _by_model(scores)
    # Both are finite where only tokens that the text does not use are damaged.
    damaged = [name for name, value in models.items() if not math.isfinite(value)]
    return tuple(
        f"the {name} model's output holds NaN or infinity"
        for name in damaged or ["float or deployed"]
    )
