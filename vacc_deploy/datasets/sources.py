"""The calibration sources: what ``NAME=PATH[:WEIGHT]`` means, and a reader for each kind.

Every reader yields documents from the published file as it is, in file order.
"""

from __future__ import annotations

import codecs
import math
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from vacc_deploy.bounds import EMPTY_DOCUMENTS, TRACES_BYTES
from vacc_deploy.datasets import chat
from vacc_deploy.datasets.ceval import hash_folder, read_ceval
from vacc_deploy.datasets.explain import explain_no_text, explain_other_kind
from vacc_deploy.datasets.files import Document, advise_utf8, check_file, compute_sha256, open_data
from vacc_deploy.datasets.odd import Tally, keep_sound, read_field
from vacc_deploy.datasets.records import read_entries
from vacc_deploy.datasets.traces import split_traces
from vacc_deploy.errors import CalibrationError, UsageError
from vacc_deploy.permissions import real_path

_SHOWN_CHARACTERS = 200  # of an option, in a message
TEXT_PIECE_CHARS = 1 << 14  # about 4,000 tokens of English
Documents: TypeAlias = Generator[Document, None, None]


@dataclass(frozen=True)
class CalibrationSource:
    """One calibration file: its kind, where it is, and its share of the rows.

    A source of ``FOLDER_KINDS`` may also be a folder.
    """

    kind: str
    path: Path
    weight: float = 1.0

    @property
    def name(self) -> str:
        """The name of the file or folder, without the directory."""
        return self.path.name or real_path(self.path).name

    def compute_sha256(self) -> str:
        """Return the sha256 of the file, or of the tables of a folder, in hex."""
        return hash_folder(self.path) if os.path.isdir(self.path) else compute_sha256(self.path)


def parse_source(text: str) -> CalibrationSource:
    """Return the source that ``NAME=PATH`` or ``NAME=PATH:WEIGHT`` names.

    A path may hold colons: the last part is a weight only if it is a number and no file has the
    full name.

    Raises:
        UsageError: the form or the kind is unknown, or the weight is not above zero.
    """
    kinds = ", ".join(KINDS)
    kind, separator, path_text = text.partition("=")
    kind, given = kind.strip().lower(), f"Calibration source {text!r:.{_SHOWN_CHARACTERS}}"
    if "\0" in text:
        raise UsageError(f"{given} has a zero byte. Give the path without it.")
    if kind not in KINDS and (explanation := _explain_unnamed(text)):
        raise UsageError(f"{given} names no kind. {explanation}")
    if not separator or not path_text:
        raise UsageError(
            f"{given} is not of the form NAME=PATH or NAME=PATH:WEIGHT. "
            f"NAME is one of {kinds}, for example c4=c4-train.00000-of-01024.json.gz."
        )
    if kind not in KINDS:
        advice = _explain_unnamed(path_text) or "For a plain text file write text=PATH."
        raise UsageError(
            f"{given} has the unknown kind {kind!r:.40}, expected one of {kinds}. {advice}"
        )
    path, weight_text = _split_weight(path_text)
    if not weight_text and (path_without := _drop_word(path)):
        raise UsageError(
            f"{given}: {path} does not exist, but {path_without} does. What "
            "stands behind the colon is no weight, expected a number above zero such as 2 or 0.5."
        )
    weight = float(weight_text or 1)
    if not 0 < weight < math.inf:
        raise UsageError(
            f"{given} has the weight {weight_text:.40}, expected a number above "
            "zero. Leave the source out to give it no rows."
        )
    return CalibrationSource(kind, path, weight)


def _split_weight(text: str) -> tuple[Path, str]:
    """Return the path and the weight of ``PATH:WEIGHT``, whose weight may be left out."""
    # A shell leaves "~" alone after "c4=".
    text = os.path.expanduser(text)
    head, _, tail = text.rpartition(":")
    try:
        float(tail)
    except ValueError:
        return Path(text), ""
    # The whole text first: a file may have a colon and a number in its name.
    return (Path(head), tail) if head and not os.path.exists(text) else (Path(text), "")


def _drop_word(path: Path) -> str:
    """Return ``path`` without ``:WORD`` at its end, where only that exists; else nothing."""
    head, _, word = str(path).rpartition(":")
    return head if "/" not in word and os.path.exists(head) and not os.path.exists(path) else ""


def _explain_unnamed(text: str) -> str | None:
    """Return what a file is that was given without its kind, and the whole option to give."""
    path, weight = _split_weight(text)
    return explain_other_kind("", path, weight=f":{weight}" if weight else "")


def read_documents(source: CalibrationSource, tally: Tally | None = None) -> Documents:
    """Yield the documents of a source in file order; empty ones and odd records are left out.

    Args:
        source: file or folder, and its kind.
        tally: counts the records that are read, skipped or empty.

    Raises:
        CalibrationError: the file cannot be read as its kind, holds no document, or more odd
            records than may be skipped.
        UsageError: the kind is unknown.
    """
    if source.kind not in KINDS:
        raise UsageError(
            f"Unknown calibration kind {source.kind!r}, expected one of {', '.join(KINDS)}."
        )
    try:
        check_file(source.path, or_directory=source.kind in FOLDER_KINDS)
        yield from _read_file(source, tally or Tally())
    except CalibrationError as err:
        # The one place that asks whether the file is sound, and of another kind than named.
        weight = "" if source.weight == 1 else f":{source.weight:g}"
        problem = explain_other_kind(source.kind, source.path, weight=weight)
        if problem is None:
            raise
        raise CalibrationError(problem) from err


def check_source(source: CalibrationSource) -> None:
    """Read a first document, and so refuse a file that is missing, damaged or of another kind.

    Raises: see ``read_documents``.
    """
    with closing(read_documents(source)) as documents:
        next(documents)


def _read_file(source: CalibrationSource, tally: Tally) -> Documents:
    num_documents = 0
    # Closed at once where the caller stops early, not when the collector comes.
    with closing(KINDS[source.kind](source.path, tally)) as documents:
        for document in documents:
            turns = (document,) if isinstance(document, str) else (m["content"] for m in document)
            if any(turn and not turn.isspace() for turn in turns):
                num_documents += 1
                yield document
                continue
            tally.num_empty += 1
            if tally.num_empty > EMPTY_DOCUMENTS + 10 * num_documents:
                raise CalibrationError(
                    f"{source.path} holds {tally.num_empty:,} documents without text, and "
                    f"{num_documents:,} with text. Check the path."
                )
    if not num_documents:
        what = "blank text or unanswered questions" if source.kind == "chat" else "blank text"
        raise CalibrationError(
            f"{source.path} holds no {source.kind} document: nothing in it but {what}. "
            "Check the path."
        )


def _read_c4(path: Path, tally: Tally) -> Documents:
    entries = read_entries(path, "the key text", ("text",))
    yield from keep_sound(path, entries, lambda record: read_field(record, "text"), tally)


def _read_alpaca(path: Path, tally: Tally) -> Documents:
    keys = ("instruction", "input", "output")
    entries = read_entries(path, "the keys instruction, input and output", keys)
    yield from keep_sound(path, entries, _read_instruction, tally)


def _read_instruction(record: dict[str, Any]) -> Document:
    prompt = read_field(record, "instruction")
    extra = read_field(record, "input", default="")
    if extra.strip():
        prompt = f"{prompt}\n\n{extra}"
    output = read_field(record, "output")
    return ({"role": "user", "content": prompt}, {"role": "assistant", "content": output})


def _read_chat(path: Path, tally: Tally) -> Documents:
    entries = read_entries(path, chat.EXPECTED, chat.COLUMNS)
    yield from keep_sound(path, entries, chat.read_chat, tally)


def _read_text(path: Path, tally: Tally) -> Documents:
    """Yield pieces of about ``TEXT_PIECE_CHARS`` characters, cut at line ends where possible."""
    # Text has no records to count.
    # Any text would be read without an error, also the records of a data set.
    if problem := explain_no_text(path):
        raise CalibrationError(problem)
    rest = ""
    for block in _read_utf8(path):
        rest += block
        while len(rest) >= TEXT_PIECE_CHARS:
            piece, rest = _cut_piece(rest)
            yield piece
    if rest:
        yield rest


def _read_traces(path: Path, tally: Tally) -> Documents:
    yield from split_traces("".join(_read_utf8(path, limit_bytes=TRACES_BYTES)), path)


def _read_utf8(path: Path, *, limit_bytes: int | None = None) -> Iterator[str]:
    """Yield the text of a file block by block, without its byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    position, is_end = 0, False
    with open_data(path) as file:
        while not is_end:
            data = file.read(1 << 16)
            is_end = not data
            try:
                # `final` refuses a character that the end of the file cuts.
                text = decoder.decode(data, final=is_end)
            except UnicodeDecodeError as err:
                # Bytes of a character that began before this block stand in front of it.
                byte = position + err.start - (len(err.object) - len(data))
                raise CalibrationError(
                    f"{path} is not UTF-8 text: {err.reason} at byte {byte:,}. "
                    + advise_utf8(path, err.reason)
                ) from err
            position += len(data)
            if limit_bytes is not None and position > limit_bytes:
                raise CalibrationError(
                    f"{path} holds more than {limit_bytes:,} bytes of text. Give a part of it."
                )
            yield text


def _cut_piece(text: str) -> tuple[str, str]:
    """Cut at the last line end of the first piece, else at its last space, else hard."""
    for mark in ("\n", " "):
        end = text.rfind(mark, 0, TEXT_PIECE_CHARS) + 1
        if end:
            return text[:end], text[end:]
    return text[:TEXT_PIECE_CHARS], text[TEXT_PIECE_CHARS:]


KINDS: dict[str, Callable[[Path, Tally], Documents]] = {
    "c4": _read_c4,
    "ceval": read_ceval,
    "alpaca": _read_alpaca,
    "chat": _read_chat,
    "text": _read_text,
    "traces": _read_traces,
}
# Their documents are conversations, which a model can answer itself.
CONVERSATION_KINDS = ("ceval", "alpaca", "chat", "traces")
FOLDER_KINDS = ("ceval",)
