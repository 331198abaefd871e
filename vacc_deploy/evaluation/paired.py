"""Right and wrong answers of two models to the same questions: both shares, and their difference.

Source: the exact test of McNemar (1947) is the binomial test of the questions that one model alone
answers right. The interval of the difference is the adjusted Wald interval for paired shares of
Bonett and Price (2012), which keeps its level also for few questions and for equal models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_QUANTILE = 1.959964  # of the normal distribution, two-sided 95 %


@dataclass(frozen=True)
class Paired:
    """How many questions two models answer right.

    Attributes:
        both: questions that both answer right.
        float_only: that the float model alone answers right.
        deployed_only: that the deployed model alone answers right.
        neither: that none answers right.
    """

    both: int
    float_only: int
    deployed_only: int
    neither: int

    @classmethod
    def count(cls, float_right: Sequence[bool], deployed_right: Sequence[bool]) -> Paired:
        """Return the counts; the sequences have one value for each question, in one order."""
        pairs = list(zip(map(bool, float_right), map(bool, deployed_right), strict=True))
        kinds = ((True, True), (True, False), (False, True), (False, False))
        return cls(*(pairs.count(kind) for kind in kinds))

    @property
    def total(self) -> int:
        """All questions."""
        return self.both + self.float_only + self.deployed_only + self.neither

    @property
    def float_share(self) -> float:
        """The share that the float model answers right, 0 to 1."""
        return (self.both + self.float_only) / self.total

    @property
    def deployed_share(self) -> float:
        """The share that the deployed model answers right, 0 to 1."""
        return (self.both + self.deployed_only) / self.total

    @property
    def difference(self) -> float:
        """The deployed model's share less the float model's."""
        return (self.deployed_only - self.float_only) / self.total

    def p_value(self) -> float:
        """Return the exact two-sided p of McNemar's test; 1 where no answer differs."""
        differing, fewer = self.float_only + self.deployed_only, self.float_only
        fewer = min(fewer, self.deployed_only)
        # Whole numbers: a term is below the smallest float from 1,075 differing answers on.
        tail = sum(math.comb(differing, i) for i in range(fewer + 1))
        return min(1.0, 2 * tail / (1 << differing))

    def p_value_text(self) -> str:
        """Return p for a table; a dash where no answer differs."""
        return f"{self.p_value():.3f}" if self.float_only or self.deployed_only else "–"

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the difference, within -1 and 1."""
        # One question more in each of the two cells that differ.
        total = self.total + 2
        lost, won = (self.float_only + 1) / total, (self.deployed_only + 1) / total
        width = _QUANTILE * math.sqrt((lost + won - (won - lost) ** 2) / total)
        return max(-1.0, won - lost - width), min(1.0, won - lost + width)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        low, high = self.interval()
        return {
            "questions": self.total,
            "accuracy_float": self.float_share,
            "accuracy_deployed": self.deployed_share,
            "difference": self.difference,
            "interval_95": [low, high],
            "both_right": self.both,
            "float_only_right": self.float_only,
            "deployed_only_right": self.deployed_only,
            "neither_right": self.neither,
            "mcnemar_p": self.p_value(),
        }

    def describe(self) -> list[tuple[str, str]]:
        """Return names and values for the text of a result."""
        low, high = self.interval()
        right = (
            f"{self.both + self.float_only:,} float, {self.both + self.deployed_only:,} deployed"
        )
        return [
            ("right answers", f"{right}, of {self.total:,}"),
            ("accuracy", f"{self.float_share:.2%} float, {self.deployed_share:.2%} deployed"),
            ("difference", f"{self.difference:+.2%}, 95 % interval {low:+.2%} to {high:+.2%}"),
            (
                "right in one alone",
                f"{self.float_only:,} float, {self.deployed_only:,} deployed, exact McNemar p "
                f"{self.p_value():.3f}",
            ),
        ]
