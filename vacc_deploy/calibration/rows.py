"""Documents to rows of token ids: exactly as many as asked for, the same on every run.

Knows the tokenizer only by what it can do (``TextEncoder``); reads no model.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vacc_deploy.calibration.files import Document, hash_file
from vacc_deploy.calibration.sources import CalibrationSource, read_documents
from vacc_deploy.errors import CalibrationError, CheckpointError, UsageError, list_problems
from vacc_deploy.progress import SILENT, Progress

MAX_TOKENS = 1 << 28  # 2 GiB of int64
# Documents are shuffled in pools of about 4 times the tokens that are needed. English and Chinese
# text both come to about 4 bytes of UTF-8 a token.
POOL_BYTES_PER_TOKEN = 4 * 4
# The small sets are shuffled as a whole: their files are sorted by subject or by origin.
WHOLE_KINDS = ("ceval", "alpaca")
WHOLE_POOL_BYTES = 1 << 28


class TextEncoder(Protocol):
    """What rows need of a tokenizer."""

    @property
    def adds_bos(self) -> bool:
        """Whether plain text begins with the BOS token."""
        ...

    @property
    def has_chat_template(self) -> bool:
        """Whether ``encode_chat`` works."""
        ...

    def encode(self, text: str, *, add_bos: bool) -> list[int]:
        """Return the ids of plain text."""
        ...

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
    ) -> list[int]:
        """Return the ids of a conversation."""
        ...


@dataclass(frozen=True)
class SourceReport:
    """What one source gave.

    ``file`` is the name without its directory. ``documents_read`` were looked at,
    ``documents_used`` are in the rows. ``templated`` is true where the chat template was used.
    """

    kind: str
    file: str
    sha256: str
    weight: float
    rows: int
    tokens: int
    documents_read: int
    documents_used: int
    templated: bool


@dataclass(frozen=True)
class CalibrationRows:
    """Calibration tokens and where they came from.

    Attributes:
        tokens: int64 [num_samples, sequence_length].
        row_sources: for each row, the index of its source in ``sources``.
        sources: one report for each source, in the order given.
        seed: the seed of the shuffles.
    """

    tokens: npt.NDArray[np.int64]
    row_sources: tuple[int, ...]
    sources: tuple[SourceReport, ...]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the report; ``tokens_sha256`` is of the little-endian int64s."""
        num_samples, sequence_length = self.tokens.shape
        digest = hashlib.sha256(self.tokens.astype("<i8").tobytes())
        return {
            "num_samples": num_samples,
            "sequence_length": sequence_length,
            "tokens": int(self.tokens.size),
            "tokens_sha256": digest.hexdigest(),
            "seed": self.seed,
            "sources": [asdict(source) for source in self.sources],
        }


def build_rows(
    sources: Sequence[CalibrationSource],
    tokenizer: TextEncoder,
    *,
    num_samples: int,
    sequence_length: int,
    seed: int,
    vocab_size: int,
    progress: Progress = SILENT,
) -> CalibrationRows:
    """Return exactly ``num_samples`` rows of ``sequence_length`` tokens.

    Rows are shared among the sources by weight. The documents of a source are shuffled, joined
    and cut. The rows of the sources are mixed evenly (see ``_interleave``).

    Args:
        sources: at least one, no file twice.
        tokenizer: text to ids.
        num_samples: rows in all.
        sequence_length: tokens of a row.
        seed: of every shuffle; the same inputs and seed give the same rows.
        vocab_size: of the model; every id is below it.
        progress: told of the tokens as they come.

    Raises:
        UsageError: no source, a source twice, sizes below 1 or too large, or a weight so small
            that its source gets no row.
        CalibrationError: a file is damaged, or the sources hold too few tokens.
        CheckpointError: an id is not below ``vocab_size``, or the chat template fails.
    """
    _check_request(sources, num_samples, sequence_length)
    shares = share_rows(sources, num_samples)
    progress.start("Reading calibration text", num_samples * sequence_length, "tokens")
    needed = [rows * sequence_length for rows in shares]
    collected = [_SourceTokens(source, tokenizer, progress) for source in sources]
    for position, (part, count) in enumerate(zip(collected, needed, strict=True)):
        rng = random.Random(f"vacc-deploy calibration {seed} {position} {part.source.kind}")
        part.collect(count, vocab_size, rng)
    progress.finish()
    _check_enough(collected, needed)
    order = _interleave(shares, random.Random(f"vacc-deploy calibration {seed} order"))
    blocks = [part.tokens.reshape(-1, sequence_length) for part in collected]
    return CalibrationRows(
        tokens=np.stack([blocks[position][row] for position, row in order]),
        row_sources=tuple(position for position, _ in order),
        sources=tuple(part.report(rows) for part, rows in zip(collected, shares, strict=True)),
        seed=seed,
    )


def share_rows(sources: Sequence[CalibrationSource], num_samples: int) -> list[int]:
    """Return how many of ``num_samples`` rows each source gets: largest remainders, by weight.

    Raises:
        UsageError: a source would get no row.
    """
    weights = [Fraction(source.weight) for source in sources]
    quotas = [num_samples * weight / sum(weights) for weight in weights]
    shares = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(sources)), key=lambda i: (shares[i] - quotas[i], i))
    for position in by_remainder[: num_samples - sum(shares)]:
        shares[position] += 1
    empty = [str(source.path) for source, rows in zip(sources, shares, strict=True) if not rows]
    if empty:
        raise UsageError(
            f"{num_samples} samples are too few for the weights of {len(sources)} calibration "
            f"sources; these would get no row:\n{list_problems(empty)}\n"
            "Ask for more samples, raise their weights or leave them out."
        )
    return shares


def _check_request(
    sources: Sequence[CalibrationSource], num_samples: int, sequence_length: int
) -> None:
    if not sources:
        raise UsageError("No calibration source is given. Name one, for example text=PATH.")
    for name, value in (("samples", num_samples), ("sequence length", sequence_length)):
        if value < 1:
            raise UsageError(f"The calibration {name} is {value}, expected 1 or more.")
    if num_samples * sequence_length > MAX_TOKENS:
        raise UsageError(
            f"{num_samples} samples of {sequence_length} tokens are more than {MAX_TOKENS:,} "
            "calibration tokens. Ask for fewer or shorter samples."
        )
    seen = set()
    for source in sources:
        place = source.path.resolve()
        if place in seen:
            raise UsageError(
                f"{source.path} is given twice as a calibration source. Raise its weight instead."
            )
        seen.add(place)


class _SourceTokens:
    """Turns the documents of one source into ids, and counts them."""

    def __init__(self, source: CalibrationSource, tokenizer: TextEncoder, progress: Progress):
        self.source, self._tokenizer, self._progress = source, tokenizer, progress
        self.documents_read = self.documents_used = 0
        self.templated = self._has_warned = False
        self.tokens: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def collect(self, num_tokens: int, vocab_size: int, rng: random.Random) -> None:
        """Keep the first ``num_tokens`` ids of the shuffled documents, or all there are."""
        is_whole = self.source.kind in WHOLE_KINDS
        pool_bytes = WHOLE_POOL_BYTES if is_whole else num_tokens * POOL_BYTES_PER_TOKEN
        tokens = np.empty(num_tokens, dtype=np.int64)
        filled = 0
        with closing(self._shuffle_documents(pool_bytes, rng)) as documents:
            for document in documents:
                ids = self._encode(document)
                self._check_ids(ids, vocab_size)
                ids = ids[: num_tokens - filled]
                tokens[filled : filled + len(ids)] = ids
                filled += len(ids)
                self.documents_used += bool(ids)
                self._progress.advance(len(ids))
                if filled == num_tokens:
                    break
        self.tokens = tokens[:filled]

    def report(self, rows: int) -> SourceReport:
        """Return what this source gave to ``rows`` rows."""
        return SourceReport(
            kind=self.source.kind,
            file=self.source.path.name,
            sha256=hash_file(self.source.path),
            weight=self.source.weight,
            rows=rows,
            tokens=self.tokens.size,
            documents_read=self.documents_read,
            documents_used=self.documents_used,
            templated=self.templated,
        )

    def _shuffle_documents(
        self, pool_bytes: int, rng: random.Random
    ) -> Generator[Document, None, None]:
        with closing(_read_pools(self.source, pool_bytes)) as pools:
            for pool in pools:
                self.documents_read += len(pool)
                rng.shuffle(pool)
                yield from pool

    def _encode(self, document: Document) -> list[int]:
        if isinstance(document, str):
            return self._tokenizer.encode(document, add_bos=self._tokenizer.adds_bos)
        if self._tokenizer.has_chat_template:
            self.templated = True
            return self._tokenizer.encode_chat(document, add_generation_prompt=False)
        if not self._has_warned:
            self._has_warned = True
            self._progress.warn(
                "The checkpoint has no chat template: the conversations of "
                f"{self.source.path.name} are read as plain text."
            )
        text = "\n".join(message["content"] for message in document)
        return self._tokenizer.encode(text, add_bos=self._tokenizer.adds_bos)

    def _check_ids(self, ids: list[int], vocab_size: int) -> None:
        largest = max(ids, default=0)
        if largest >= vocab_size:
            raise CheckpointError(
                f"The tokenizer gives the id {largest} for text of {self.source.path.name}, but "
                f"the model has vocab_size {vocab_size}: tokenizer.json does not belong to this "
                "model. Restore the tokenizer files from the model's original repository."
            )


def _read_pools(source: CalibrationSource, num_bytes: int) -> Generator[list[Document], None, None]:
    """Yield the documents in lists, each of ``num_bytes`` of text or a little more."""
    with closing(read_documents(source)) as documents:
        pool: list[Document] = []
        held = 0
        for document in documents:
            pool.append(document)
            turns = [document] if isinstance(document, str) else [m["content"] for m in document]
            held += sum(len(turn.encode("utf-8")) for turn in turns)
            if held >= num_bytes:
                yield pool
                pool, held = [], 0
        if pool:
            yield pool


def _check_enough(collected: Sequence[_SourceTokens], needed: Sequence[int]) -> None:
    lines = [
        f"{part.source.path} ({part.source.kind}): {part.tokens.size:,} of {count:,} tokens"
        for part, count in zip(collected, needed, strict=True)
    ]
    if any(part.tokens.size < count for part, count in zip(collected, needed, strict=True)):
        raise CalibrationError(
            f"The calibration data hold too few tokens. Got, of what is needed:\n"
            f"{list_problems(lines)}\n"
            "Give more data, ask for fewer samples or a shorter sequence, or give the short "
            "source a smaller weight."
        )


def _interleave(shares: Sequence[int], rng: random.Random) -> list[tuple[int, int]]:
    """Return the order of the rows as (source, row of that source).

    Each source is spread evenly, with its place in each interval drawn at random. One row of each
    source with two or more goes into the first rows and one into the last, so that both parts of a
    split see every kind.
    """
    places = []
    for position, rows in enumerate(shares):
        for row in range(rows):
            place = (row + rng.random()) / rows
            if rows > 1 and row == 0:
                place -= 1
            elif rows > 1 and row == rows - 1:
                place += 1
            places.append((place, position, row))
    return [(position, row) for _, position, row in sorted(places)]
