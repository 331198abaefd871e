"""The calibration sources: what ``NAME=PATH[:WEIGHT]`` means, and a reader for each kind.

Every reader yields documents from the published file as it is, in file order.
"""

from __future__ import annotations

import codecs
import json
import math
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from vacc_deploy.datasets.ceval import read_ceval
from vacc_deploy.datasets.files import (
    LFS_POINTER,
    Document,
    check_file,
    describe_start,
    open_data,
    read_field,
    read_json_lines,
)
from vacc_deploy.datasets.traces import split_traces
from vacc_deploy.errors import CalibrationError, UsageError

MAX_ARRAY_BYTES = 256 << 20  # the published alpaca file holds 44 MB
MAX_TRACES_BYTES = 256 << 20
TEXT_PIECE_CHARS = 1 << 14  # about 4,000 tokens of English
Documents: TypeAlias = Generator[Document, None, None]


@dataclass(frozen=True)
class CalibrationSource:
    """One calibration file: its kind, where it is, and its share of the rows."""

    kind: str
    path: Path
    weight: float = 1.0


def parse_source(text: str) -> CalibrationSource:
    """Return the source that ``NAME=PATH`` or ``NAME=PATH:WEIGHT`` names.

    A path may hold colons: the last part is a weight only if it is a number and no file has the
    full name.

    Raises:
        UsageError: the form or the kind is unknown, or the weight is not above zero.
    """
    kinds = ", ".join(KINDS)
    kind, separator, path_text = text.partition("=")
    kind = kind.strip().lower()
    if not separator or not path_text:
        raise UsageError(
            f"Calibration source {text!r} is not of the form NAME=PATH or NAME=PATH:WEIGHT. "
            f"NAME is one of {kinds}, for example c4=c4-train.00000-of-01024.json.gz."
        )
    if kind not in KINDS:
        raise UsageError(
            f"Calibration source {text!r} has the unknown kind {kind!r}, expected one of {kinds}. "
            "For a plain text file write text=PATH."
        )
    if "\0" in path_text:
        raise UsageError(f"Calibration source {text!r} has a zero byte in its path.")
    # A shell leaves "~" alone after "c4=".
    path_text = os.path.expanduser(path_text)
    head, _, tail = path_text.rpartition(":")
    try:
        weight = float(tail)
    except ValueError:
        weight = None
    # The whole text first: a file may have a colon and a number in its name.
    if not head or weight is None or Path(path_text).exists():
        return CalibrationSource(kind, Path(path_text))
    if not 0 < weight < math.inf:
        raise UsageError(
            f"Calibration source {text!r} has the weight {tail}, expected a number above zero. "
            "Leave the source out to give it no rows."
        )
    return CalibrationSource(kind, Path(head), weight)


def read_documents(source: CalibrationSource) -> Documents:
    """Yield the documents of a source in file order; empty ones are left out.

    Raises:
        CalibrationError: the file cannot be read as its kind, or holds no document.
        UsageError: the kind is unknown.
    """
    if source.kind not in KINDS:
        raise UsageError(
            f"Unknown calibration kind {source.kind!r}, expected one of {', '.join(KINDS)}."
        )
    check_file(source.path)
    is_empty = True
    # Closed at once where the caller stops early, not when the collector comes.
    with closing(KINDS[source.kind](source.path)) as documents:
        for document in documents:
            turns = (document,) if isinstance(document, str) else (m["content"] for m in document)
            if any(turn and not turn.isspace() for turn in turns):
                is_empty = False
                yield document
    if is_empty:
        raise CalibrationError(
            f"{source.path} holds no {source.kind} document: nothing in it but blank text. "
            "Download it again."
        )


def _read_c4(path: Path) -> Documents:
    for number, record in read_json_lines(path):
        yield read_field(record, "text", f"{path}, line {number}")


def _read_alpaca(path: Path) -> Documents:
    with open_data(path) as file:
        # Enough to look past a byte order mark and blanks in front of the array's bracket.
        head = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    unit, records = "line", read_json_lines(path)
    if head.startswith(b"["):
        unit, records = "record", enumerate(_read_array(path), start=1)
    for number, record in records:
        where = f"{path}, {unit} {number}"
        if not isinstance(record, dict):
            raise CalibrationError(
                f"{where} holds {type(record).__name__}, expected an object with instruction, "
                "input and output."
            )
        prompt = read_field(record, "instruction", where)
        extra = read_field(record, "input", where, default="")
        if extra.strip():
            prompt = f"{prompt}\n\n{extra}"
        output = read_field(record, "output", where)
        yield ({"role": "user", "content": prompt}, {"role": "assistant", "content": output})


def _read_array(path: Path) -> list[Any]:
    with open_data(path) as file:
        data = file.read(MAX_ARRAY_BYTES + 1)
    if len(data) > MAX_ARRAY_BYTES:
        raise CalibrationError(
            f"{path} holds more than {MAX_ARRAY_BYTES:,} bytes in one JSON array. Give JSON lines "
            "(one object a line) or a part of it."
        )
    try:
        return list(json.loads(data.decode("utf-8-sig")))
    except (ValueError, RecursionError) as err:
        raise CalibrationError(
            f"{path} is not valid JSON: {err}. Expected an array of objects with instruction, "
            "input and output. Download it again."
        ) from err


def _read_text(path: Path) -> Documents:
    """Yield pieces of about ``TEXT_PIECE_CHARS`` characters, cut at line ends where possible."""
    rest = ""
    for block in _read_utf8(path):
        rest += block
        while len(rest) >= TEXT_PIECE_CHARS:
            piece, rest = _cut_piece(rest)
            yield piece
    if rest:
        yield rest


def _read_traces(path: Path) -> Documents:
    if path.stat().st_size > MAX_TRACES_BYTES:
        raise CalibrationError(
            f"{path} holds more than {MAX_TRACES_BYTES:,} bytes of traces. Give a part of it."
        )
    yield from split_traces("".join(_read_utf8(path)), path)


def _read_utf8(path: Path) -> Iterator[str]:
    """Yield the text of a file block by block, without its byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    position, is_end = 0, False
    with open_data(path, unpack=False) as file:
        while not is_end:
            data = file.read(1 << 16)
            is_end = not data
            if position == 0 and data.startswith(LFS_POINTER):
                raise CalibrationError(f"{path} is {describe_start(path)}. Download the file.")
            try:
                # `final` refuses a character that the end of the file cuts.
                text = decoder.decode(data, final=is_end)
            except UnicodeDecodeError as err:
                # Bytes of a character that began before this block stand in front of it.
                byte = position + err.start - (len(err.object) - len(data))
                raise CalibrationError(
                    f"{path} is not UTF-8 text: {err.reason} at byte {byte:,}. It looks like "
                    f"{describe_start(path)}. Convert the file to UTF-8."
                ) from err
            position += len(data)
            yield text


def _cut_piece(text: str) -> tuple[str, str]:
    """Cut at the last line end of the first piece, else at its last space, else hard."""
    for mark in ("\n", " "):
        end = text.rfind(mark, 0, TEXT_PIECE_CHARS) + 1
        if end:
            return text[:end], text[end:]
    return text[:TEXT_PIECE_CHARS], text[TEXT_PIECE_CHARS:]


KINDS: dict[str, Callable[[Path], Documents]] = {
    "c4": _read_c4,
    "ceval": read_ceval,
    "alpaca": _read_alpaca,
    "text": _read_text,
    "traces": _read_traces,
}
# Their documents are conversations, which a model can answer itself.
CONVERSATION_KINDS = ("ceval", "alpaca", "traces")
