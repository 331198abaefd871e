"""The tokens that two models predict most differently, in the text around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from vacc_deploy.reference.next_tokens import NextTokenScores

# Gives the text of ids; bytes that are no character become U+FFFD.
Decode = Callable[[Sequence[int]], str]

# Of tokens. In a small vocabulary a Chinese character is three of them.
_BEFORE, _AFTER = 36, 15
NO_CHARACTER = "\ufffd"
# A character has at most four bytes, and each may be a token of its own.
_MOST_BYTES = 4


@dataclass(frozen=True)
class Word:
    """One or a few tokens that make whole characters together.

    Attributes:
        text: of the tokens.
        kl: the largest KL of them, in nats; None at the start of a window, which nothing predicts.
        is_target: whether the token that the passage is shown for is among them.
    """

    text: str
    kl: float | None
    is_target: bool


@dataclass(frozen=True)
class Passage:
    """A token with a large KL, and what stands around it.

    Attributes:
        prediction: index of the token in ``NextTokenScores.token_kl``.
        row: index of its window.
        at: index of the token in its window.
        kl: its KL, in nats.
        words: the passage.
        top_float: the token that the float model expects: its id and its text; None where its
            output is not a number.
        top_deployed: that of the deployed model.
    """

    prediction: int
    row: int
    at: int
    kl: float
    words: tuple[Word, ...]
    top_float: tuple[int, str] | None
    top_deployed: tuple[int, str] | None

    @property
    def is_same(self) -> bool:
        """Whether both expect the same token."""
        return self.top_float is not None and self.top_float == self.top_deployed


def find_passages(
    tokens: torch.Tensor, scores: NextTokenScores, decode: Decode, number: int = 12
) -> list[Passage]:
    """Return the passages around the tokens of the largest KL, the largest first.

    A token that stands in an earlier passage gets none of its own.

    Args:
        tokens: the windows, int64 [rows, seq].
        scores: of their predictions; the KL of token j of a window is that of prediction j − 1.
        decode: gives the text of ids.
        number: passages to return at most.
    """
    if scores.token_kl is None:
        return []
    per_row = tokens.shape[1] - 1
    # NaN sorts as the largest, and is what one should see first.
    order = scores.token_kl.argsort(descending=True).tolist()
    passages: list[Passage] = []
    shown: set[tuple[int, int]] = set()
    for prediction in order:
        row, at = prediction // per_row, prediction % per_row + 1
        if len(passages) == number:
            break
        if (row, at) in shown or scores.token_kl[prediction] == 0:
            continue
        start, stop = max(0, at - _BEFORE), min(tokens.shape[1], at + _AFTER + 1)
        shown |= {(row, place) for place in range(start, stop)}
        passages.append(_passage(tokens[row].tolist(), scores, decode, (prediction, row, at)))
    return passages


def _passage(
    ids: list[int], scores: NextTokenScores, decode: Decode, place: tuple[int, int, int]
) -> Passage:
    prediction, row, at = place
    start, stop = max(0, at - _BEFORE), min(len(ids), at + _AFTER + 1)
    # Not in the middle of a character.
    while start > max(0, at - _BEFORE - _MOST_BYTES) and _begins_inside(ids[start:stop], decode):
        start -= 1
    # The same at its end.
    while stop < min(len(ids), at + _AFTER + 1 + _MOST_BYTES) and _ends_inside(
        ids[start:stop], decode
    ):
        stop += 1
    first = row * (len(ids) - 1)
    assert scores.token_kl is not None
    kls = [None, *scores.token_kl[first : first + len(ids) - 1].tolist()]
    words = join_tokens(ids[start:stop], kls[start:stop], at - start, decode)
    tops: list[tuple[int, str] | None] = [None, None]
    if scores.token_top is not None:
        expected = scores.token_top[prediction].tolist()
        tops = [(token, decode([token])) if token >= 0 else None for token in expected]
    return Passage(prediction, row, at, scores.token_kl[prediction].item(), words, *tops)


def _begins_inside(ids: list[int], decode: Decode) -> bool:
    return decode(ids[:_MOST_BYTES]).startswith(NO_CHARACTER)


def _ends_inside(ids: list[int], decode: Decode) -> bool:
    return decode(ids[-_MOST_BYTES:]).endswith(NO_CHARACTER)


def join_tokens(
    ids: Sequence[int], kls: Sequence[float | None], target: int, decode: Decode
) -> tuple[Word, ...]:
    """Return the words of ids: each the fewest tokens that end with a whole character.

    Args:
        ids: a passage.
        kls: the KL of each token, in nats.
        target: index of the token that the passage is for.
        decode: gives the text of ids.
    """
    words, begin, before = [], 0, ""
    for end in range(1, len(ids) + 1):
        # Of all ids from the start: what a token looks like depends on those before it.
        whole = decode(ids[:end])
        is_cut = whole.endswith(NO_CHARACTER) and end < len(ids) and end - begin < _MOST_BYTES
        if is_cut:
            continue
        known = [kl for kl in kls[begin:end] if kl is not None]
        piece = whole[len(before) :] if whole.startswith(before) else decode(ids[begin:end])
        words.append(Word(piece, max(known) if known else None, begin <= target < end))
        begin, before = end, whole
    return tuple(words)
