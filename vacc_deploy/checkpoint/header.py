"""Read and check the header of one safetensors file, without reading its data.

The format: eight bytes little-endian header length, a JSON object, then the tensors' bytes.
Our own reader, because messages must give the bytes got and expected, and because plain reads keep
the resident memory at one tensor where a mapped file grows with every page touched.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vacc_deploy.errors import CheckpointError
from vacc_deploy.formats.dtypes import DTYPES
from vacc_deploy.json_files import STAND_IN_BYTES, name_stand_in
from vacc_deploy.permissions import explain_unreadable
from vacc_deploy.stamps import FileStamp, open_ordinary

# The limit of the safetensors library itself. Without it a damaged length reads gigabytes.
MAX_HEADER_BYTES = 100_000_000
# Of a dimension and of an offset in bytes: 1 TiB, more than any file of weights.
MAX_DIMENSION = 1 << 40


@dataclass(frozen=True)
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


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        # json takes the last of two equal keys, another reader may take the first.
        if key in result:
            raise ValueError(f"key {key!r} appears twice")
        result[key] = value
    return result


def _is_size(value: Any) -> bool:
    # Not isinstance: JSON's true would count as 1.
    return type(value) is int and 0 <= value <= MAX_DIMENSION


def _parse_entry(
    name: str, entry: Any, path: Path, data_start: int, stamp: FileStamp
) -> TensorInfo:
    """Return one header entry; a ``ValueError`` says what is wrong with it."""
    if not isinstance(entry, dict):
        raise ValueError(f"tensor {name!r} is described by {type(entry).__name__}, not an object")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"tensor {name!r} has the unknown dtype {dtype!r}")
    if not isinstance(shape, list) or not all(_is_size(size) for size in shape):
        raise ValueError(f"tensor {name!r} has the impossible shape {shape!r}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise ValueError(f"tensor {name!r} has the impossible data_offsets {offsets!r}")
    begin, end = offsets
    # Without this a shape would be read from the bytes of other tensors.
    expected = math.prod(shape) * DTYPES[dtype].num_bytes
    if end - begin != expected:
        raise ValueError(
            f"tensor {name!r} {dtype} {shape} needs {expected:,} bytes, its data_offsets give "
            f"{end - begin:,}"
        )
    return TensorInfo(name, dtype, tuple(shape), path, data_start + begin, expected, name, stamp)


def _check_layout(tensors: list[TensorInfo], data_start: int, file_bytes: int) -> None:
    """Refuse gaps, overlaps and a file of another length than its header says."""
    position = data_start
    for info in tensors:
        if info.offset != position:
            raise ValueError(f"tensor {info.name!r} leaves a gap or overlaps the one before it")
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
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"its header of {length:,} bytes is above the format's limit")
            header = file.read(length)
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_refuse_duplicates)
        if not isinstance(entries, dict):
            raise ValueError("its header is not a JSON object")
        metadata = entries.pop("__metadata__", None)
        metadata = metadata if isinstance(metadata, dict) else {}
        tensors = [_parse_entry(name, e, path, 8 + length, stamp) for name, e in entries.items()]
        # Of two at one offset the empty one goes first: behind the other it would seem to overlap.
        tensors.sort(key=lambda info: (info.offset, info.num_bytes))
        _check_layout(tensors, 8 + length, file_bytes)
    except OSError as err:
        raise CheckpointError(explain_unreadable(path, err)) from err
    # RecursionError: JSON nested too deeply.
    except (ValueError, RecursionError) as err:
        raise CheckpointError(f"{path}: {err}. Download it again.") from err
    texts = {key: value for key, value in metadata.items() if isinstance(value, str)}
    digest = hashlib.sha256(header).hexdigest()
    return ShardHeader(path, file_bytes, digest, tuple(tensors), texts, stamp)
