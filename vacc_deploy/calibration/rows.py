"""Documents to rows of token ids: exactly as many as asked for, the same on every run.

One source after another: documents of the file (``datasets``), chosen by hash (``split``), to ids
(``conversations``), joined (``collect``), cut and mixed here.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vacc_deploy.calibration.collect import SourceTokens, TokenBuffer
from vacc_deploy.calibration.conversations import JOINED, DocumentEncoder
from vacc_deploy.calibration.split import CALIBRATION, Split, split_shares
from vacc_deploy.datasets.changes import unchanged_sources
from vacc_deploy.datasets.sources import CalibrationSource
from vacc_deploy.errors import CalibrationError, UsageError, list_problems
from vacc_deploy.permissions import real_path
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vacc_deploy.calibration.own_answers import OwnAnswers

MAX_TOKENS = 1 << 28  # 2 GiB of int64


@dataclass(frozen=True)
class SourceReport:
    """What one source gave.

    Attributes:
        kind: what the file was read as, for example ``c4``.
        file: its name without the directory.
        rows: rows in all; ``held_out_rows`` of them judge the calibration.
        documents_read: documents that were looked at; ``documents_used`` of them are in the rows.
        documents_shared: documents in both kinds of rows, because the file holds too few.
        documents_skipped: documents left out, because their prompt is too long to be answered.
        documents_empty: documents left out, because they have no text or no answered question.
        records_skipped: records left out because they are odd; ``first_skipped`` is the place of
            the first one and the reason.
        answer_form: how answers follow the prompts; None without conversations.
        own_answers: whether the model wrote the answers itself.
    """

    kind: str
    file: str
    sha256: str
    weight: float
    rows: int
    tokens: int
    held_out_rows: int
    documents_read: int
    documents_used: int
    documents_held_out: int
    documents_shared: int
    documents_skipped: int
    documents_empty: int
    records_skipped: int
    first_skipped: str | None
    templated: bool
    answer_form: str | None
    own_answers: bool


@dataclass(frozen=True)
class CalibrationRows:
    """Calibration tokens and where they came from.

    Attributes:
        tokens: int64 [num_samples, sequence_length]. The rows held out to judge the fit come first,
            then the fitted ones, each kind mixed evenly over the sources.
        num_held_out: how many come first. No document is in rows of both kinds, but for the
            ``documents_shared`` of a source.
        row_sources: for each row, the index of its source in ``sources``.
        sources: one report for each source, in the order given.
        evaluation_share: share of each file's documents that no calibration row may hold.
        answers: how the model's own answers were written; None where it wrote none.
    """

    tokens: npt.NDArray[np.int64]
    num_held_out: int
    row_sources: tuple[int, ...]
    sources: tuple[SourceReport, ...]
    seed: int
    evaluation_share: float = 0.0
    answers: dict[str, Any] | None = None

    @property
    def num_fit_rows(self) -> int:
        """How many rows are fitted."""
        return len(self.tokens) - self.num_held_out

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each source with odd records."""
        return tuple(
            f"{source.file}: {source.records_skipped:,} odd "
            f"{'record was' if source.records_skipped == 1 else 'records were'} skipped, the "
            f"first: {source.first_skipped}"
            for source in self.sources
            if source.records_skipped
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the report; ``tokens_sha256`` is of the little-endian int64s."""
        num_samples, sequence_length = self.tokens.shape
        # Fitted rows first: reports have always hashed them in this order.
        hashed = np.roll(self.tokens, -self.num_held_out, axis=0).astype("<i8", copy=False)
        return {
            "num_samples": num_samples,
            "num_held_out_samples": self.num_held_out,
            "sequence_length": sequence_length,
            "tokens": int(self.tokens.size),
            "tokens_sha256": hashlib.sha256(hashed.ravel().data).hexdigest(),
            "seed": self.seed,
            "evaluation_share": self.evaluation_share,
            "answers": self.answers,
            "sources": [asdict(source) for source in self.sources],
        }


def build_rows(
    sources: Sequence[CalibrationSource],
    tokenizer: Tokenizer,
    *,
    num_samples: int,
    sequence_length: int,
    seed: int,
    vocab_size: int,
    evaluation_share: float = 0.0,
    part: str = CALIBRATION,
    writer: OwnAnswers | None = None,
    progress: Progress = SILENT,
) -> CalibrationRows:
    """Return exactly ``num_samples`` rows of ``sequence_length`` tokens.

    Rows are shared among the sources by weight. The documents of a source are shuffled, joined and
    cut, for its fitted rows and its held-out rows apart. Then the rows of all are mixed evenly.

    Args:
        sources: at least one, no file twice.
        tokenizer: tokenizer of the model.
        num_samples: rows in all.
        sequence_length: tokens of a row.
        seed: random seed of every shuffle; the same inputs and seed give the same rows.
        vocab_size: rows of the model's embedding; every id is below it.
        evaluation_share: share of each file's documents that no calibration row may hold,
            chosen by the hash of their content.
        part: ``calibration``, or ``evaluation`` for rows of that share alone, none held out.
        writer: answers the prompts of conversations in place of the data set.
        progress: hears of the tokens as they come.

    Raises:
        UsageError: no source, a source twice, sizes below 1 or too large, a share or part that does
            not exist, or a weight so small that its source gets no row.
        CalibrationError: a file is damaged or was changed meanwhile, or the sources hold too few
            tokens.
        CheckpointError: an id is not below ``vocab_size``, or the chat template fails.
    """
    _check_request(sources, num_samples, sequence_length)
    split = Split(part, evaluation_share)
    dealt = _deal_rows(sources, num_samples, part)
    with unchanged_sources(sources):  # from the reading until all are hashed for the report
        collected = []
        for source, num_fit, num_held_out in dealt:
            encoder = DocumentEncoder(
                source, tokenizer, vocab_size, writer=writer, progress=progress
            )
            sizes = num_fit * sequence_length, num_held_out * sequence_length
            collected.append(SourceTokens(source, encoder, split, *sizes))
        _collect(collected, seed, progress)
        mixed, row_sources = _arrange(collected, sequence_length, seed)
        return CalibrationRows(
            mixed,
            num_held_out=sum(num_held_out for *_, num_held_out in dealt),
            row_sources=row_sources,
            sources=tuple(_report(tokens, sequence_length) for tokens in collected),
            seed=seed,
            evaluation_share=evaluation_share,
            answers=writer.describe() if writer else None,
        )


def _deal_rows(
    sources: Sequence[CalibrationSource], num_samples: int, part: str
) -> list[tuple[CalibrationSource, int, int]]:
    """Return each source with its fitted and its held-out rows."""
    shares = share_rows(sources, num_samples)
    held_out = split_shares(shares) if part == CALIBRATION else [0] * len(shares)
    dealt = zip(sources, shares, held_out, strict=True)
    return [(source, rows - held, held) for source, rows, held in dealt]


def share_rows(sources: Sequence[CalibrationSource], num_samples: int) -> list[int]:
    """Return how many of ``num_samples`` rows each source gets: largest remainders, by weight.

    Raises:
        UsageError: a source would get no row.
    """
    # Fractions: with floats two equal remainders could differ by a rounding error.
    weights = [Fraction(source.weight) for source in sources]
    quotas = [num_samples * weight / sum(weights) for weight in weights]
    shares = [int(quota) for quota in quotas]
    # The largest remainder first; of equal ones the earlier source.
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
        path = real_path(source.path)
        if path in seen:
            raise UsageError(
                f"{source.path} is given twice as a calibration source. Raise its weight instead."
            )
        seen.add(path)


def _arrange(
    collected: Sequence[SourceTokens], sequence_length: int, seed: int
) -> tuple[npt.NDArray[np.int64], tuple[int, ...]]:
    """Return the rows [num_samples, sequence_length], held-out ones first, and their sources."""
    rng = random.Random(f"vacc-deploy calibration {seed} order")
    # The order of the fitted rows is drawn first: with the other order a seed would give new rows.
    fit, fit_sources = _mix([source.fit for source in collected], sequence_length, rng)
    held_out, held_out_sources = _mix([s.held_out for s in collected], sequence_length, rng)
    # num_samples x [sequence_length] -> [num_samples, sequence_length]
    return np.stack(held_out + fit), (*held_out_sources, *fit_sources)


def _mix(
    buffers: Sequence[TokenBuffer], sequence_length: int, rng: random.Random
) -> tuple[list[npt.NDArray[np.int64]], list[int]]:
    """Cut the tokens of each source into rows and mix these; return them and their sources.

    Each source is spread evenly: one row in each of its equal intervals, at random in it.
    """
    # Ids of a source [num_tokens] -> its rows [num_rows, sequence_length]
    blocks = [np.frombuffer(b.ids, np.int64).reshape(-1, sequence_length) for b in buffers]
    order = sorted(
        # Position in the whole, 0 to below 1: row r of n falls between r/n and (r + 1)/n.
        ((row + rng.random()) / len(block), source, row)
        for source, block in enumerate(blocks)
        for row in range(len(block))
    )
    return [blocks[source][row] for _, source, row in order], [source for _, source, _ in order]


def _report(tokens: SourceTokens, sequence_length: int) -> SourceReport:
    """Return what a source gave to its rows."""
    source, form, fit, held_out = tokens.source, tokens.encoder.form, tokens.fit, tokens.held_out
    num_tokens = len(fit.ids) + len(held_out.ids)
    return SourceReport(
        kind=source.kind,
        file=source.name,
        sha256=source.compute_sha256(),
        weight=source.weight,
        rows=num_tokens // sequence_length,
        tokens=num_tokens,
        held_out_rows=len(held_out.ids) // sequence_length,
        documents_read=tokens.documents_read,
        # A shared document is in both counts.
        documents_used=fit.num_documents + held_out.num_documents - tokens.documents_shared,
        documents_held_out=held_out.num_documents,
        documents_shared=tokens.documents_shared,
        documents_skipped=tokens.encoder.num_skipped,
        documents_empty=tokens.tally.num_empty,
        records_skipped=tokens.tally.num_skipped,
        first_skipped=tokens.tally.first_skipped or None,
        templated=form is not None and form != JOINED,
        answer_form=form,
        own_answers=tokens.encoder.has_own_answers,
    )


def _collect(collected: Sequence[SourceTokens], seed: int, progress: Progress) -> None:
    needed_tokens = sum(tokens.fit.needed + tokens.held_out.needed for tokens in collected)
    progress.start("Reading calibration text", needed_tokens, "tokens")
    # One source after another, so that one text at a time is in memory.
    for position, tokens in enumerate(collected):
        # A seed of its own for each source: another one beside it leaves its shuffle as it was.
        rng = random.Random(f"vacc-deploy calibration {seed} {position} {tokens.source.kind}")
        tokens.collect(rng, progress)
    if any(tokens.fit.missing or tokens.held_out.missing for tokens in collected):
        lines = []
        for tokens in collected:
            needed = tokens.fit.needed + tokens.held_out.needed
            got = needed - tokens.fit.missing - tokens.held_out.missing
            lines.append(
                f"{tokens.source.path} ({tokens.source.kind}): {got:,} of {needed:,} tokens"
            )
        raise CalibrationError(
            "The calibration data hold too few tokens. Got, of what is needed:\n"
            f"{list_problems(lines)}\n"
            "Give more data, ask for fewer samples or a shorter sequence, or give the short "
            "source a smaller weight."
        )
    names = [tokens.source.name for tokens in collected if tokens.documents_shared]
    if names:
        progress.warn(
            f"{', '.join(names)}: too few documents to hold some out; the rows that judge the "
            "calibration share documents with it. Give more text."
        )
    progress.finish()
