"""The documents of one source to token ids, for its fit rows and for its held-out rows."""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from vacc_deploy.calibration.conversations import ConversationEncoder, TextEncoder
from vacc_deploy.calibration.split import (
    HELD_OUT_SHARE,
    TokenPart,
    hash_document,
    is_in_part,
    place_of,
)
from vacc_deploy.datasets.files import Document
from vacc_deploy.datasets.sources import CONVERSATION_KINDS, CalibrationSource, read_documents
from vacc_deploy.errors import CheckpointError
from vacc_deploy.progress import Progress

# Documents are shuffled in pools of about 4 times the tokens that are needed. English and Chinese
# text both come to about 4 bytes of UTF-8 a token.
POOL_BYTES_PER_TOKEN = 4 * 4
SPARE_BYTES_PER_TOKEN = 4 * 4
# The small sets are shuffled as a whole: their files are sorted by subject or by origin.
WHOLE_POOL_BYTES = 1 << 28


class AnswerWriter(Protocol):
    """Writes the model's own answers."""

    @property
    def batch_size(self) -> int:
        """How many prompts to give at once."""
        ...

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt that can be answered."""
        ...

    def write(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the ids of one answer for each prompt; the same prompts give the same answers."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return how the answers were written, for the report."""
        ...


@dataclass(frozen=True)
class Limits:
    """What a source has to give, and from which of its documents.

    ``num_fit`` and ``num_held_out`` are tokens. Every id must be below ``vocab_size``.
    """

    num_fit: int
    num_held_out: int
    vocab_size: int
    part: str
    evaluation_share: float


class SourceTokens:
    """Collects the tokens of one source, and counts its documents.

    Attributes:
        fit, held_out: the tokens. No document is in both, but for ``documents_shared`` of them.
        documents_read: all that were looked at.
        documents_skipped: of these, the ones with a prompt too long to be answered.
        documents_shared: documents in both parts, because the file has too few.
    """

    def __init__(
        self,
        source: CalibrationSource,
        tokenizer: TextEncoder,
        limits: Limits,
        *,
        writer: AnswerWriter | None,
        progress: Progress,
    ) -> None:
        self.source, self._tokenizer, self._limits = source, tokenizer, limits
        self._writer = writer if source.kind in CONVERSATION_KINDS else None
        self._progress = progress
        self._conversations: ConversationEncoder | None = None
        self.fit, self.held_out = TokenPart(limits.num_fit), TokenPart(limits.num_held_out)
        self.documents_read = self.documents_skipped = self.documents_shared = 0

    @property
    def answer_form(self) -> str | None:
        """How conversations were written; None where the source has none."""
        return self._conversations.form if self._conversations else None

    @property
    def has_own_answers(self) -> bool:
        """Whether the answers are the model's own."""
        return self._writer is not None

    def collect(self, rng: random.Random) -> None:
        """Fill both parts from the shuffled documents, or as far as these go."""
        size = self._writer.batch_size if self._writer else 1
        batch: list[tuple[Document, bytes]] = []
        spare: list[tuple[Document, bytes]] = []
        spare_bytes = 0
        with closing(self._choose_documents(rng)) as documents:
            for document, digest in documents:
                if not self._part_of(digest).missing:
                    # For a part that finds too few documents of its own.
                    if spare_bytes < self._missing() * SPARE_BYTES_PER_TOKEN:
                        spare.append((document, digest))
                        spare_bytes += _count_bytes(document)
                    continue
                batch.append((document, digest))
                if len(batch) == size:
                    spare += self._take(batch)
                    batch = []
                if not self._missing():
                    break
        spare += self._take(batch)
        self._fill_from(spare)

    def _missing(self) -> int:
        return self.fit.missing + self.held_out.missing

    def _part_of(self, digest: bytes) -> TokenPart:
        is_held_out = self._limits.num_held_out and place_of(digest) < HELD_OUT_SHARE
        return self.held_out if is_held_out else self.fit

    def _choose_documents(
        self, rng: random.Random
    ) -> Generator[tuple[Document, bytes], None, None]:
        """Yield the documents of the wanted part and their hashes, in the order of the shuffle."""
        is_whole = self.source.kind in CONVERSATION_KINDS
        num_bytes = (self._limits.num_fit + self._limits.num_held_out) * POOL_BYTES_PER_TOKEN
        pool_bytes = WHOLE_POOL_BYTES if is_whole else num_bytes
        with closing(_read_pools(self.source, pool_bytes)) as pools:
            for pool in pools:
                self.documents_read += len(pool)
                rng.shuffle(pool)
                for document in pool:
                    digest = hash_document(document)
                    place = place_of(digest)
                    if is_in_part(place, self._limits.part, self._limits.evaluation_share):
                        yield document, digest

    def _take(self, batch: list[tuple[Document, bytes]]) -> list[tuple[Document, bytes]]:
        """Add documents to their parts; return those that found theirs full."""
        left = []
        for (document, digest), ids in zip(batch, self._encode_batch(batch), strict=True):
            part = self._part_of(digest)
            if not part.missing:
                left.append((document, digest))
            elif ids:
                self._progress.advance(part.add(ids, digest))
        return left

    def _fill_from(self, spare: list[tuple[Document, bytes]]) -> None:
        """Fill a part that is short with documents of the other one, whole ones first.

        A file of few documents may have none left. Then the end of a document that the other part
        has cut, or a second copy of its text, has to do; they are counted as shared.
        """
        short = next((part for part in (self.fit, self.held_out) if part.missing), None)
        if short is None:
            return
        other = self.held_out if short is self.fit else self.fit
        size = self._writer.batch_size if self._writer else 1
        shared = []
        fresh = [entry for entry in spare if entry[1] not in other.digests]
        copies = [entry for entry in spare if entry[1] in other.digests]
        for entries in (fresh, copies):
            for start in range(0, len(entries), size):
                if not short.missing:
                    return
                batch = entries[start : start + size]
                for (_, digest), ids in zip(batch, self._encode_batch(batch), strict=True):
                    taken = short.add(ids, digest)
                    self._progress.advance(taken)
                    shared += [digest] if taken and digest in other.digests else []
        if other.rest and short.missing:
            self._progress.advance(short.add(other.rest, other.rest_digest))
            shared.append(other.rest_digest)
        self.documents_shared = len(shared)

    def _encode_batch(self, batch: list[tuple[Document, bytes]]) -> list[list[int]]:
        """Return the ids of each document; none for a prompt too long to be answered."""
        documents = [document for document, _ in batch]
        if self._writer is None:
            encoded = [self._encode(document) for document in documents]
        else:
            encoded = self._answer(self._writer, documents)
        for ids in encoded:
            self._check_ids(ids)
        return encoded

    def _encode(self, document: Document) -> list[int]:
        if isinstance(document, str):
            return self._tokenizer.encode(document, add_bos=self._tokenizer.adds_bos)
        return self._encoder().encode(document)

    def _answer(self, writer: AnswerWriter, documents: Sequence[Document]) -> list[list[int]]:
        prompts = [self._encoder().encode_prompt(d) for d in documents if not isinstance(d, str)]
        fitting = [prompt for prompt in prompts if len(prompt) <= writer.max_prompt_tokens]
        self.documents_skipped += len(prompts) - len(fitting)
        answers = iter(writer.write(fitting) if fitting else [])
        limit = writer.max_prompt_tokens
        return [prompt + next(answers) if len(prompt) <= limit else [] for prompt in prompts]

    def _encoder(self) -> ConversationEncoder:
        if self._conversations is None:
            self._conversations = ConversationEncoder(self._tokenizer)
            if not self._tokenizer.has_chat_template:
                self._progress.warn(
                    "The checkpoint has no chat template: the conversations of "
                    f"{self.source.path.name} are read as plain text."
                )
        return self._conversations

    def _check_ids(self, ids: list[int]) -> None:
        largest = max(ids, default=0)
        if largest >= self._limits.vocab_size:
            raise CheckpointError(
                f"The tokenizer gives the id {largest} for text of {self.source.path.name}, but "
                f"the model has vocab_size {self._limits.vocab_size}: tokenizer.json does not "
                "belong to this model. Restore the tokenizer files from the model's original "
                "repository."
            )


def _read_pools(source: CalibrationSource, num_bytes: int) -> Generator[list[Document], None, None]:
    """Yield the documents in lists, each of ``num_bytes`` of text or a little more."""
    with closing(read_documents(source)) as documents:
        pool: list[Document] = []
        held = 0
        for document in documents:
            pool.append(document)
            held += _count_bytes(document)
            if held >= num_bytes:
                yield pool
                pool, held = [], 0
        if pool:
            yield pool


def _count_bytes(document: Document) -> int:
    turns = [document] if isinstance(document, str) else [turn["content"] for turn in document]
    return sum(len(turn.encode("utf-8")) for turn in turns)
