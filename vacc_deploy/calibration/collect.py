"""The documents of one source to token ids, for its fitted rows and for its held-out rows."""

from __future__ import annotations

import random
from array import array
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

from vacc_deploy.bounds import POOL_TURNS, USELESS_DOCUMENTS
from vacc_deploy.calibration.conversations import DocumentEncoder
from vacc_deploy.calibration.split import CALIBRATION, Split, hash_document, is_held_out
from vacc_deploy.datasets.files import Document
from vacc_deploy.datasets.odd import Tally
from vacc_deploy.datasets.sources import CONVERSATION_KINDS, CalibrationSource, read_documents
from vacc_deploy.progress import Progress

# Documents are shuffled in pools, and put aside for later, of about 4 times the tokens needed.
# English and Chinese text both come to about 4 bytes of UTF-8 a token.
BYTES_PER_NEEDED_TOKEN = 4 * 4
# The small sets are shuffled as a whole: their files are sorted by subject or by origin.
WHOLE_POOL_BYTES = 1 << 28


class Candidate(NamedTuple):
    """A document and the hash of its content."""

    document: Document
    digest: bytes


@dataclass
class TokenBuffer:
    """Token ids collected for the fitted rows or for the held-out rows of one source.

    Attributes:
        needed: tokens wanted.
        ids: tokens so far, at most ``needed``, int64.
        digests: hashes of the documents in it.
        rest: what was cut off the last document, whose hash is ``rest_digest``.
    """

    needed: int
    ids: array[int] = field(default_factory=lambda: array("q"))
    digests: set[bytes] = field(default_factory=set)
    num_documents: int = 0
    rest: list[int] = field(default_factory=list)
    rest_digest: bytes = b""

    @property
    def missing(self) -> int:
        """How many tokens are still wanted."""
        return self.needed - len(self.ids)

    def add(self, ids: list[int], digest: bytes) -> int:
        """Take a document, cut where the buffer is full; return how many tokens were taken."""
        # The buffer ends on a row's end: its size is a multiple of the sequence length.
        taken = ids[: self.missing]
        if taken:
            # Documents follow one another without a mark of our own: the tokenizer writes the BOS.
            self.ids.extend(taken)
            self.digests.add(digest)
            self.num_documents += 1
            self.rest, self.rest_digest = ids[len(taken) :], digest
        return len(taken)


class SourceTokens:
    """Collects the tokens of one source, and counts its documents.

    Attributes:
        fit: the tokens of the fitted rows.
        held_out: those of the held-out rows, of other documents but for ``documents_shared``.
        documents_read: documents that were looked at.
        documents_shared: documents in both buffers, because the file has too few.
        tally: counts the records that were skipped, and the empty documents.
    """

    def __init__(
        self,
        source: CalibrationSource,
        encoder: DocumentEncoder,
        split: Split,
        num_fit: int,
        num_held_out: int,
    ) -> None:
        """Prepare to collect ``num_fit`` and ``num_held_out`` tokens of what ``split`` includes."""
        self.source, self.encoder, self._split = source, encoder, split
        self.fit, self.held_out = TokenBuffer(num_fit), TokenBuffer(num_held_out)
        self.documents_read = self.documents_shared = 0
        self.tally = Tally()

    def collect(self, rng: random.Random, progress: Progress) -> None:
        """Fill both buffers from the shuffled documents, or as far as these go.

        Raises:
            CalibrationError: the file cannot be read as its kind, or holds no document.
            CheckpointError: an id is not in the model's vocabulary, or the chat template fails.
        """
        batch, spare, spare_bytes = list[Candidate](), list[Candidate](), 0
        num_useless = 0
        with closing(self._choose_documents(rng)) as candidates:
            for candidate in candidates:
                if not self._buffer_of(candidate).missing:
                    num_useless += 1
                    if num_useless > USELESS_DOCUMENTS:
                        break  # a file of copies of one text
                    # For a buffer that finds too few documents of its own.
                    is_room = spare_bytes < self._missing() * BYTES_PER_NEEDED_TOKEN
                    if is_room and len(spare) < POOL_TURNS:
                        spare.append(candidate)
                        spare_bytes += _count_bytes(candidate.document)
                    continue
                num_useless = 0
                batch.append(candidate)
                # The model answers a whole batch at once; without it a batch is one document.
                if len(batch) == self.encoder.batch_size:
                    spare += self._add(batch, progress)
                    batch = []
                if not self._missing():
                    break
        # A batch that the end of the file, or of what is missing, has cut short.
        spare += self._add(batch, progress)
        self._fill_from(spare, progress)

    def _missing(self) -> int:
        return self.fit.missing + self.held_out.missing

    def _buffer_of(self, candidate: Candidate) -> TokenBuffer:
        # Where no row is held out every document is fitted.
        holds_out = self.held_out.needed and is_held_out(candidate.digest)
        return self.held_out if holds_out else self.fit

    def _choose_documents(self, rng: random.Random) -> Generator[Candidate, None, None]:
        """Yield the documents that the split includes, in the order of the shuffle."""
        is_small_set = self.source.kind in CONVERSATION_KINDS
        num_useless = 0
        num_bytes = WHOLE_POOL_BYTES if is_small_set else self._missing() * BYTES_PER_NEEDED_TOKEN
        # ``closing``: a file stays open no longer than it is read, though most end half way.
        with closing(_read_pools(self.source, num_bytes, self.tally)) as pools:
            for pool in pools:
                self.documents_read += len(pool)
                rng.shuffle(pool)
                for document in pool:
                    digest = hash_document(document)
                    if self._split.includes(digest):
                        num_useless = 0
                        yield Candidate(document, digest)
                        continue
                    num_useless += 1
                    # Of an evaluation part every share is possible, also one in a million.
                    if num_useless > USELESS_DOCUMENTS and self._split.part == CALIBRATION:
                        return

    def _encode(self, batch: list[Candidate]) -> Iterator[tuple[Candidate, list[int]]]:
        encoded = self.encoder.encode([candidate.document for candidate in batch])
        return zip(batch, encoded, strict=True)

    def _add(self, batch: list[Candidate], progress: Progress) -> list[Candidate]:
        """Add documents to their buffers; return those that found theirs full."""
        left = []
        for candidate, ids in self._encode(batch):
            buffer = self._buffer_of(candidate)
            if not buffer.missing:
                left.append(candidate)
            # A prompt too long to be answered has no ids.
            elif ids:
                progress.advance(buffer.add(ids, candidate.digest))
        return left

    def _fill_from(self, spare: list[Candidate], progress: Progress) -> None:
        """Fill a buffer that is short with documents of the other one, whole ones first.

        A file of few documents may have none left. Then a second copy of a text that the other
        buffer has, or the end of a document that it has cut, has to do; they are counted as shared.
        """
        short, other = self.fit, self.held_out
        if not short.missing:
            short, other = other, short
        # Where both are short there is nothing to spare: only a full buffer turns documents away.
        fresh = [candidate for candidate in spare if candidate.digest not in other.digests]
        copies = [candidate for candidate in spare if candidate.digest in other.digests]
        size = self.encoder.batch_size
        for candidates in (fresh, copies):
            for start in range(0, len(candidates), size):
                if not short.missing:
                    return  # before a batch is encoded: a model may have to answer it
                for candidate, ids in self._encode(candidates[start : start + size]):
                    taken = short.add(ids, candidate.digest)
                    progress.advance(taken)
                    self.documents_shared += bool(taken and candidate.digest in other.digests)
        if other.rest and short.missing:
            progress.advance(short.add(other.rest, other.rest_digest))
            self.documents_shared += 1


def _read_pools(
    source: CalibrationSource, num_bytes: int, tally: Tally
) -> Generator[list[Document], None, None]:
    """Yield the documents in lists, each of ``num_bytes`` of text or a little more.

    Of very short documents in lists of ``POOL_TURNS`` turns.
    """
    with closing(read_documents(source, tally)) as documents:
        pool, size, num_turns = list[Document](), 0, 0
        for document in documents:
            pool.append(document)
            size += _count_bytes(document)
            num_turns += 1 if isinstance(document, str) else len(document)
            if size >= num_bytes or num_turns >= POOL_TURNS:
                yield pool
                pool, size, num_turns = [], 0, 0
        if pool:
            yield pool


def _count_bytes(document: Document) -> int:
    turns = [document] if isinstance(document, str) else [turn["content"] for turn in document]
    return sum(len(turn.encode("utf-8")) for turn in turns)
