"""Read and check the header of one GGUF file, without reading its data.

The format: magic, version, counts; key-values; a name, shape, type and offset for each tensor; then
the tensors' bytes, each at a multiple of 32. Our own reader, because what it reads comes from
strangers: every count and length is compared with a bound before it is used. Of the key-values
numbers and short texts are kept; lists and longer texts are passed over, never built.

Source: the specification of GGUF version 3 in ggml's docs/gguf.md.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from vacc_deploy.bounds import (
    GGUF_ARRAY_VALUES,
    GGUF_DIMENSIONS,
    GGUF_HEADER_BYTES,
    GGUF_KEY_BYTES,
    GGUF_KEYS,
    GGUF_TENSORS,
    GGUF_TEXT_BYTES,
    GGUF_TEXTS,
    HEADER_NUMBER,
)
from vacc_deploy.checkpoint.header import is_tensor_name
from vacc_deploy.errors import CheckpointError
from vacc_deploy.formats.q8_0 import F16, F32, Q8_0
from vacc_deploy.json_files import STAND_IN_BYTES, name_stand_in
from vacc_deploy.permissions import explain_unreadable
from vacc_deploy.stamps import FileStamp, open_ordinary

# Of the names of such files.
ENDING = ".gguf"
_MAGIC, _VERSION = b"GGUF", 3
ALIGNMENT = 32
_ALIGNMENT_KEY = b"general.alignment"
# Types of values by their numbers: the form of each; texts and lists have lengths of their own.
_FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_PIECE_BYTES = 1 << 20


class TensorType(NamedTuple):
    """How the values of a tensor are stored: in blocks of so many values and bytes."""

    name: str
    block: int
    num_bytes: int


# By their numbers in ggml. What else there is no output of ours holds.
TENSOR_TYPES = {
    0: TensorType(F32, 1, 4),
    1: TensorType(F16, 1, 2),
    8: TensorType(Q8_0, 32, 34),
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor is: ``num_bytes`` bytes from ``offset`` of the file.

    Attributes:
        shape: as torch has it, the columns last; the file has it the other way round.
        kind: name of a ``TensorType``.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """One file's tensors in the order of their bytes, and the hash of all before these.

    Attributes:
        values: each key to its number or short text, a list and a longer text to None.
        stamp: of the file when its header was read.
    """

    path: Path
    file_bytes: int
    header_sha256: str
    tensors: tuple[GgufTensor, ...]
    values: Mapping[str, float | str | None]
    stamp: FileStamp


class _Source:
    """The bytes of a header, read in order and never beyond a bound or the file's end."""

    def __init__(self, file: IO[bytes], file_bytes: int) -> None:
        self._file, self.position, self._num_texts = file, 0, 0
        self._end = min(file_bytes, GGUF_HEADER_BYTES)
        self._is_bounded = file_bytes > GGUF_HEADER_BYTES

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes, which is small."""
        self._go(count)
        return self._file.read(count)

    def skip(self, count: int) -> None:
        """Pass over ``count`` bytes."""
        self._go(count)
        self._file.seek(count, os.SEEK_CUR)

    def _go(self, count: int) -> None:
        if count > self._end - self.position:
            if self._is_bounded:
                raise ValueError(f"its header has more than {GGUF_HEADER_BYTES:,} bytes")
            raise ValueError(f"the file is truncated: its header ends behind byte {self._end:,}")
        self.position += count

    def number(self, form: str) -> Any:
        """Return one number: ``I`` is a whole one of four bytes, ``Q`` of eight."""
        return struct.unpack(f"<{form}", self.take(struct.calcsize(form)))[0]

    def count_texts(self, count: int) -> None:
        """Count the texts of a list before they are passed over, each of which takes time."""
        self._num_texts += count
        if self._num_texts > GGUF_TEXTS:
            raise ValueError(
                f"its lists hold {self._num_texts:,} texts or more, expected at most {GGUF_TEXTS:,}"
            )

    def length(self, limit: int, what: str) -> int:
        """Return a count or a length of eight bytes that is at most ``limit``."""
        value: int = self.number("Q")
        if value > limit:
            raise ValueError(f"{what}: got {value:,}, expected at most {limit:,}")
        return value


def read_gguf_header(path: Path) -> GgufHeader:
    """Return the checked header of ``path``.

    Raises:
        CheckpointError: the file cannot be read, is truncated, contradicts itself, or is none that
            this tool writes.
    """
    try:
        with open_ordinary(path) as file:
            stamp = FileStamp.of(os.fstat(file.fileno()))
            file_bytes = file.seek(0, os.SEEK_END)
            file.seek(0)
            prefix = file.read(STAND_IN_BYTES)
            if stand_in := name_stand_in(prefix):
                raise CheckpointError(f"{path}: it {stand_in}")
            file.seek(0)
            source = _Source(file, file_bytes)
            count, values = _read_start(source)
            entries = [_read_entry(source) for _ in range(count)]
            start = source.position + -source.position % ALIGNMENT
            file.seek(0)
            sha256 = _hash(file, start)
        tensors = _place(entries, start, file_bytes)
    except OSError as err:
        raise CheckpointError(explain_unreadable(path, err)) from err
    except ValueError as err:
        raise CheckpointError(f"{path}: {err}. Quantize the model again.") from err
    return GgufHeader(path, file_bytes, sha256, tensors, values, stamp)


def _hash(file: IO[bytes], count: int) -> str:
    """Return the SHA-256 of the next ``count`` bytes."""
    digest = hashlib.sha256()
    while count > 0 and (piece := file.read(min(count, _PIECE_BYTES))):
        digest.update(piece)
        count -= len(piece)
    return digest.hexdigest()


def _read_start(source: _Source) -> tuple[int, dict[str, float | str | None]]:
    """Return the number of tensors, and the key-values."""
    if source.take(4) != _MAGIC:
        raise ValueError("it is no GGUF file")
    if (version := source.number("I")) != _VERSION:
        raise ValueError(f"it has version {version} of GGUF, expected {_VERSION}")
    count = source.length(GGUF_TENSORS, "its number of tensors")
    keys, values = set[bytes](), dict[str, float | str | None]()
    for _ in range(source.length(GGUF_KEYS, "its number of key-values")):
        key = source.take(source.length(GGUF_KEY_BYTES, "the bytes of a key"))
        if key in keys:
            raise ValueError(f"the key {key!r:.80} appears twice")
        keys.add(key)
        kind = source.number("I")
        if key == _ALIGNMENT_KEY and (kind != 4 or (got := source.number("I")) != ALIGNMENT):
            stated = f"is of type {kind}" if kind != 4 else f"is {got}"
            raise ValueError(f"{_ALIGNMENT_KEY.decode()} {stated}, expected {ALIGNMENT}")
        if key != _ALIGNMENT_KEY:
            values[key.decode(errors="backslashreplace")] = _read_value(source, kind)
    return count, values


def _read_value(source: _Source, kind: int) -> float | str | None:
    """Return a number or a short text; None for what is passed over."""
    if kind in _FORMS:
        value: float = source.number(_FORMS[kind])
        return value
    if kind == _TEXT:
        length = source.length(GGUF_TEXT_BYTES, "the bytes of a text")
        if length <= GGUF_KEY_BYTES:
            return source.take(length).decode(errors="backslashreplace")
        source.skip(length)
    elif kind == _LIST:
        inner = source.number("I")
        count = source.length(GGUF_ARRAY_VALUES, "the values of a list")
        if inner in _FORMS:
            source.skip(count * struct.calcsize(f"<{_FORMS[inner]}"))
            return None
        if inner != _TEXT:
            raise ValueError(f"a list holds values of type {inner}, expected numbers or texts")
        source.count_texts(count)
        for _ in range(count):
            source.skip(source.length(GGUF_TEXT_BYTES, "the bytes of a text"))
    else:
        raise ValueError(f"a value has the unknown type {kind}")
    return None


def _read_entry(source: _Source) -> GgufTensor:
    """Return one tensor, its offset counted from the first one."""
    data = source.take(source.length(GGUF_KEY_BYTES, "the bytes of a tensor's name"))
    try:
        name = data.decode()
    except UnicodeDecodeError as err:
        raise ValueError(f"a tensor's name is not Unicode: {data!r:.80}") from err
    what = f"tensor {name!r:.80}"
    if not is_tensor_name(name):
        raise ValueError(f"{what} has a name with control characters")
    if (rank := source.number("I")) > GGUF_DIMENSIONS or not rank:
        raise ValueError(f"{what} has {rank:,} dimensions, expected 1 to {GGUF_DIMENSIONS}")
    shape = tuple(source.number("Q") for _ in range(rank))[::-1]
    number, offset = source.number("I"), source.number("Q")
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        known = ", ".join(kind.name for kind in TENSOR_TYPES.values())
        raise ValueError(f"{what} has the type {number}, expected one of {known}")
    # Each size first: a product of unbounded ones takes time.
    if max(*shape, offset) > HEADER_NUMBER or math.prod(shape) > HEADER_NUMBER or not all(shape):
        raise ValueError(f"{what} has the impossible shape {list(shape)!r:.80}")
    if shape[-1] % kind.block:
        raise ValueError(f"{what} has {shape[-1]} columns, expected a multiple of {kind.block}")
    return GgufTensor(
        name, kind.name, shape, offset, math.prod(shape) // kind.block * kind.num_bytes
    )


def _place(entries: Sequence[GgufTensor], start: int, file_bytes: int) -> tuple[GgufTensor, ...]:
    """Return the tensors with their places in the file, which leave no gap and do not overlap."""
    placed, names, position = list[GgufTensor](), set[str](), 0
    for entry in sorted(entries, key=lambda entry: entry.offset):
        if entry.name in names:
            raise ValueError(f"tensor {entry.name!r:.80} appears twice")
        if entry.offset != position:
            raise ValueError(
                f"tensor {entry.name!r:.80} leaves a gap or overlaps the one before it"
            )
        names.add(entry.name)
        place = start + position
        placed.append(GgufTensor(entry.name, entry.kind, entry.shape, place, entry.num_bytes))
        position += entry.num_bytes + -entry.num_bytes % ALIGNMENT
    if start + position != file_bytes:
        state = "is truncated" if start + position > file_bytes else "goes on behind its tensors"
        raise ValueError(
            f"the file {state}: got {file_bytes:,} bytes, expected {start + position:,}"
        )
    return tuple(placed)
