"""The task of the small demo model: adding two numbers digit by digit, in the R1 answer style.

The training script, ``vacc-deploy demo`` and the tests share this module. It uses the standard
library only. About one pair of numbers in twenty is held out: the model never sees such a pair in
training, in either order, so a right answer to it is computed and not remembered.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

THINK_START = "<think>"
THINK_END = "</think>"
END_OF_SENTENCE = "<｜end▁of▁sentence｜>"
PLACES = ("ones", "tens", "hundreds", "thousands")
MAX_DIGITS = len(PLACES)
HELD_OUT_ONE_IN = 20
_ANSWER = re.compile(r"0|[1-9][0-9]{0,17}")  # no sign, no leading zero


@dataclass(frozen=True)
class Problem:
    """A sum of two numbers of at most ``MAX_DIGITS`` digits each."""

    a: int
    b: int

    @property
    def question(self) -> str:
        """What the user says, for example ``47+385=``."""
        return f"{self.a}+{self.b}="

    @property
    def answer(self) -> int:
        """The right result."""
        return self.a + self.b

    @property
    def reasoning(self) -> str:
        """The text between the think tags: one line per decimal place, from the ones upwards.

        A line adds the digits of both numbers and the carry of the line before:
        ``tens: 4+8+1=13, write 3, carry 1``.
        """
        lines, carry = [], 0
        for index in range(max(len(str(self.a)), len(str(self.b)))):
            left, right = self.a // 10**index % 10, self.b // 10**index % 10
            total = left + right + carry
            step = f"{PLACES[index]}: {left}+{right}+{carry}={total}"
            # A carry out of the last digits has no line of its own: the answer holds it.
            carry = total // 10
            lines.append(f"{step}, write {total % 10}, carry {carry}")
        return "\n".join(lines)

    @property
    def completion(self) -> str:
        """What the model says after ``<think>`` and a newline, up to the end-of-sentence token."""
        return f"{self.reasoning}\n{THINK_END}\n\n{self.answer}"

    @property
    def response(self) -> str:
        """The whole assistant message, think tags included."""
        return f"{THINK_START}\n{self.completion}"


def is_held_out(a: int, b: int) -> bool:
    """Return whether the pair is left out of training; both orders give the same result."""
    low, high = sorted((a, b))
    digest = hashlib.sha256(f"{low}+{high}".encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def sample_problems(count: int, seed: int, held_out: bool) -> list[Problem]:
    """Draw problems of one side of the split; the same arguments give the same list.

    The digit counts of both numbers are drawn evenly from 1 to ``MAX_DIGITS``. Held-out problems
    are distinct, so the few short ones that exist appear once each at most; training problems may
    repeat. There are millions of held-out problems.
    """
    rng = random.Random(seed)
    problems: list[Problem] = []
    seen: set[Problem] = set()
    while len(problems) < count:
        problem = Problem(_draw_operand(rng), _draw_operand(rng))
        if is_held_out(problem.a, problem.b) != held_out or problem in seen:
            continue
        problems.append(problem)
        if held_out:
            seen.add(problem)
    return problems


def parse_answer(text: str) -> int | None:
    """Return the number after the last ``</think>``, or None when there is none.

    White space around the number and anything from the end-of-sentence token on are ignored.
    """
    _, tag, tail = text.rpartition(THINK_END)
    if not tag:
        return None
    match = _ANSWER.fullmatch(tail.partition(END_OF_SENTENCE)[0].strip())
    return int(match.group()) if match else None


def share_correct(problems: Sequence[Problem], texts: Sequence[str]) -> float:
    """Return the share of problems, 0 to 1, whose text gives exactly the right number."""
    pairs = zip(problems, texts, strict=True)
    return sum(parse_answer(text) == problem.answer for problem, text in pairs) / len(problems)


def _draw_operand(rng: random.Random) -> int:
    # No leading zero: only a number of one digit may be 0.
    digits = rng.randint(1, MAX_DIGITS)
    return rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)
