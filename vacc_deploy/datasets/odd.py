"""Odd records: which of a source's records are of no use, counted, and refused above a limit.

Data that people keep have some. Damage of a file is something else: always an error.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from vacc_deploy.bounds import WAITING_CHARACTERS
from vacc_deploy.datasets.files import Document
from vacc_deploy.errors import CalibrationError, shorten

SKIPPED_PERCENT = 5
# From so many records on a single odd one is skipped too, though it is more than 5 %.
FEW_RECORDS = 10
# Records after which the share of odd ones is judged at the latest; documents wait so long.
PATIENCE = 10_000


class OddRecordError(Exception):
    """A record that is skipped; says why, as what follows the place of the record.

    Attributes:
        is_cut: the file ends in the middle of it.
    """

    def __init__(self, reason: str, *, is_cut: bool = False) -> None:
        super().__init__(reason)
        self.is_cut = is_cut


# Where a record stands, and the record or why it cannot be read.
Entry: TypeAlias = tuple[str, Any]


@dataclass
class Tally:
    """Counts the records of one source.

    Attributes:
        num_read: records read, odd ones included.
        num_skipped: odd records.
        num_empty: documents without text, or without an answered question.
        first_skipped: where the first odd record stands, and why it is odd.
    """

    num_read: int = 0
    num_skipped: int = 0
    num_empty: int = 0
    first_skipped: str = ""

    def skip(self, where: str, err: OddRecordError) -> None:
        """Count an odd record, which ``num_read`` has already."""
        self.num_skipped += 1
        self.first_skipped = self.first_skipped or f"{where} {err}"

    @property
    def is_over(self) -> bool:
        """Whether more records are odd than may be skipped: 5 %, and of 10 to 19 records one."""
        allowed = self.num_read * SKIPPED_PERCENT // 100
        return self.num_skipped > max(allowed, int(self.num_read >= FEW_RECORDS))

    def refuse(self, path: Path) -> CalibrationError:
        """Return the error of a source with too many odd records."""
        advice = "Check that the file is of the kind that you named."
        verb = "is" if self.num_skipped == 1 else "are"
        return CalibrationError(
            f"{path}, {self.first_skipped}. Of the first {self.num_read:,} records "
            f"{self.num_skipped:,} {verb} odd; at most {SKIPPED_PERCENT} % are skipped. {advice}"
        )


def keep_sound(
    path: Path, entries: Iterator[Entry], convert: Callable[[Any], Document], tally: Tally
) -> Generator[Document, None, None]:
    """Yield the documents of the sound records in their order, and count the odd ones.

    A document is yielded as soon as no more of the records before it are odd than may be skipped.
    So whoever stops early, stops with a share that is allowed.

    Args:
        path: file, for errors.
        entries: the records.
        convert: returns the document of a record, or raises ``OddRecordError``.
        tally: counts them.

    Raises:
        CalibrationError: too many records are odd, or the file is damaged.
    """
    waiting: list[Document] = []
    num_chars = 0
    for where, value in entries:
        tally.num_read += 1
        try:
            if isinstance(value, OddRecordError):
                raise value
            waiting.append(convert(value))
            num_chars += _count_chars(waiting[-1])
        except OddRecordError as err:
            tally.skip(where, err)
            if err.is_cut and tally.num_skipped < tally.num_read:
                raise CalibrationError(
                    f"{path}, {where} {err}. The file ends in the middle of a record, so what came "
                    "after it is missing too. Download it again."
                ) from err
        if not tally.is_over:
            yield from waiting
            waiting, num_chars = [], 0
            continue
        if tally.num_read >= PATIENCE or num_chars > WAITING_CHARACTERS:
            raise tally.refuse(path)
    if tally.is_over or 0 < tally.num_read == tally.num_skipped:
        raise tally.refuse(path)
    yield from waiting


def _count_chars(document: Document) -> int:
    if isinstance(document, str):
        return len(document)
    return sum(len(turn["content"]) for turn in document)


def read_field(record: dict[str, Any], key: str, *, default: str | None = None) -> str:
    """Return a text field of a record.

    Raises:
        OddRecordError: the field is missing, not text, or not valid Unicode.
    """
    value = record.get(key)
    value = default if value is None else value
    if value is None and key not in record:
        keys = ", ".join(shorten(name, 40) for name in sorted(record)[:10]) or "none"
        raise OddRecordError(f'has no text under "{key}": got no such key (its keys: {keys})')
    return check_text(value, key)


def check_text(value: Any, key: str) -> str:
    """Return ``value``, which stands under ``key``, if it is text.

    Raises:
        OddRecordError: it is not, or not valid Unicode.
    """
    if not isinstance(value, str):
        raise OddRecordError(f'has no text under "{key}": got {type(value).__name__}')
    try:
        # JSON may escape half of a surrogate pair, which no tokenizer takes.
        value.encode("utf-8")
    except UnicodeEncodeError as err:
        raise OddRecordError(
            f'holds text under "{key}" that is not valid Unicode: {err.reason} at character '
            f"{err.start}"
        ) from err
    return value
