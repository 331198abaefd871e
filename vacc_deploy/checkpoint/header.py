"""Read and check the header of one safetensors file, without reading its data.

The format: eight bytes little-endian header length, a JSON object, then the tensors' bytes.
Our own reader, because messages must give the bytes got and expected, and because plain reads keep
the resident memory at one tensor where a mapped file grows with every page touched.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import HEADER_BYTES, HEADER_NUMBER, HEADER_RANK, HEADER_TENSORS, TENSOR_NAME
from vacc_deploy.errors import CheckpointError
from vacc_deploy.formats.dtypes import DTYPES
from vacc_deploy.json_files import STAND_IN_BYTES, name_stand_in, parse_json
from vacc_deploy.permissions import explain_unreadable
from vacc_deploy.stamps import FileStamp, open_ordinary

# What is wrong with a name that a message cannot print as it is.
UNPRINTABLE = f"a name with control characters, or of more than {TENSOR_NAME} characters"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor is: ``num_bytes`` bytes from ``offset`` of the file ``path``.

    Attributes:
        name: under which it is used.
        dtype: in which it is stored.
        stored_name: its name in the file.
        stamp: of the file when its header was read; None where nobody has kept it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    num_bytes: int
    stored_name: str
    stamp: FileStamp | None = None


@dataclass(frozen=True)
class ShardHeader:
    """One file's tensors, in the order of their bytes, and the hash of its header.

    Attributes:
        metadata: texts of its ``__metadata__``. For a tensor that shares its memory with another
            one, safetensors' ``save_model`` notes here under which name it is stored.
        stamp: of the file when its header was read.
    """

    path: Path
    file_bytes: int
    header_sha256: str
    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    stamp: FileStamp | None = None


def _is_size(value: Any) -> bool:
    # Not isinstance: JSON's true would count as 1.
    return type(value) is int and 0 <= value <= HEADER_NUMBER


def is_tensor_name(name: str) -> bool:
    """Return whether a name can be that of a tensor, so that messages may print it as it is."""
    return len(name) <= TENSOR_NAME and name.isprintable()


def _parse_entry(
    name: str, entry: Any, path: Path, data_start: int, stamp: FileStamp
) -> TensorInfo:
    """Return one header entry; a ``ValueError`` says what is wrong with it."""
    what = f"tensor {name!r:.80}"
    if not is_tensor_name(name):
        raise ValueError(f"{what} has {UNPRINTABLE}")
    if not isinstance(entry, dict):
        raise ValueError(f"{what} is described by {type(entry).__name__}, not an object")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{what} has the unknown dtype {dtype!r:.80}")
    if isinstance(shape, list) and len(shape) > HEADER_RANK:
        raise ValueError(f"{what} has {len(shape):,} dimensions, expected at most {HEADER_RANK}")
    if not isinstance(shape, list) or not all(_is_size(size) for size in shape):
        raise ValueError(f"{what} has the impossible shape {shape!r:.80}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise ValueError(f"{what} has the impossible data_offsets {offsets!r:.80}")
    begin, end = offsets
    # Without this a shape would be read from the bytes of other tensors.
    expected = DTYPES[dtype].num_bytes
    for size in shape:
        expected *= size
        # Before a zero behind it too: so the library of safetensors counts.
        if expected > HEADER_NUMBER:
            raise ValueError(f"{what} has the impossible shape {shape!r:.80}")
    if end - begin != expected:
        raise ValueError(
            f"{what} {dtype} {shape} needs {expected:,} bytes, its data_offsets give "
            f"{end - begin:,}"
        )
    return TensorInfo(name, dtype, tuple(shape), path, data_start + begin, expected, name, stamp)


def _check_count(count: int) -> None:
    if count > HEADER_TENSORS:
        raise ValueError(f"it has {count:,} tensors, expected at most {HEADER_TENSORS:,}")


def _parse_header(header: bytes, path: Path, data_start: int, stamp: FileStamp) -> ShardHeader:
    """Return what a header says, its tensors in the order of their bytes."""
    _check_count(header.count(b'"data_offsets"'))  # before any of them takes memory
    # Strict: what the library of safetensors would refuse is refused here.
    entries = parse_json(header, is_strict=True)
    if not isinstance(entries, dict):
        raise ValueError("its header is not a JSON object")
    metadata = entries.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"its __metadata__ is not an object of texts: {metadata!r:.80}")
    _check_count(len(entries))
    # Each entry is given back as soon as it is checked: a header may have many.
    tensors = [
        _parse_entry(name, entries.pop(name), path, data_start, stamp) for name in [*entries]
    ]
    # Of two at one offset the empty one goes first: behind the other it would seem to overlap.
    tensors.sort(key=lambda info: (info.offset, info.num_bytes))
    sha256 = hashlib.sha256(header).hexdigest()
    return ShardHeader(path, 0, sha256, tuple(tensors), metadata, stamp)


def _check_layout(tensors: Sequence[TensorInfo], data_start: int, file_bytes: int) -> None:
    """Refuse gaps, overlaps and a file of another length than its header says."""
    position = data_start
    for info in tensors:
        if info.offset != position:
            raise ValueError(f"tensor {info.name!r:.80} leaves a gap or overlaps the one before it")
        position += info.num_bytes
    if position > file_bytes:
        raise ValueError(f"the file is truncated: got {file_bytes:,} bytes, expected {position:,}")
    if position < file_bytes:
        raise ValueError(f"{file_bytes - position:,} bytes follow the last tensor")


def read_header(path: Path) -> ShardHeader:
    """Return the checked header of ``path``.

    Raises:
        CheckpointError: the file cannot be read, is truncated or contradicts itself.
    """
    try:
        with open_ordinary(path) as file:
            # Of what is open here: what reads the tensors later compares it.
            stamp = FileStamp.of(os.fstat(file.fileno()))
            file_bytes = file.seek(0, 2)
            file.seek(0)
            # Eight bytes: the length of the header, which must fit the file before it is read.
            prefix = file.read(8)
            if stand_in := name_stand_in(prefix + file.read(STAND_IN_BYTES - len(prefix))):
                raise CheckpointError(f"{path}: it {stand_in}")
            file.seek(len(prefix))
            length = int.from_bytes(prefix, "little")
            if not file_bytes:
                raise ValueError("it is empty (0 bytes), as where a download failed at once")
            if len(prefix) < 8 or length > file_bytes - 8:
                raise ValueError(
                    f"the file is truncated or not a safetensors file: got {file_bytes:,} bytes, "
                    f"its header alone asks for {8 + length:,}"
                )
            if length > HEADER_BYTES:
                raise ValueError(f"its header of {length:,} bytes is above the format's limit")
            header = file.read(length)
        shard = _parse_header(header, path, 8 + length, stamp)
        shard = replace(shard, file_bytes=file_bytes)
        _check_layout(shard.tensors, 8 + length, file_bytes)
    except OSError as err:
        raise CheckpointError(explain_unreadable(path, err)) from err
    except ValueError as err:
        raise CheckpointError(f"{path}: {err}. Download it again.") from err
    return shard
