"""Write safetensors shards and their index; the same tensors give the same bytes."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from vacc_deploy.checkpoint.header import TensorInfo
from vacc_deploy.checkpoint.reader import INDEX_NAME
from vacc_deploy.checkpoint.stored import CHUNK_BYTES, read_tensor, stored_bytes
from vacc_deploy.formats.dtypes import DTYPES, dtype_code, used_dtype
from vacc_deploy.outputs.file_system import host_tag, is_running, naming, sync_file
from vacc_deploy.outputs.run_files import is_regular

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WrittenFile:
    """One finished file: its size and the SHA-256 of its bytes."""

    name: str
    num_bytes: int
    sha256: str
    tensors: tuple[str, ...] = ()
    tensor_bytes: int = 0


def shard_name(index: int, count: int) -> str:
    """Return the Hugging Face name of shard ``index`` (from 0) of ``count``."""
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def write_shard(path: Path, tensors: Mapping[str, torch.Tensor | TensorInfo]) -> WrittenFile:
    """Write one safetensors file.

    Tensors are ordered by falling item size, then by name, so that every one starts aligned.

    Args:
        path: a file that does not exist yet.
        tensors: name to tensor; a ``TensorInfo`` is copied from its own file, byte for byte, or
            from float64 to float32.
    """
    header, num_bytes = _make_header(tensors)
    ordered = _in_order(tensors)
    data = chain.from_iterable(_chunks(tensors[name]) for name in ordered)
    record = write_bytes(path, chain([len(header).to_bytes(8, "little"), header], data))
    return replace(record, tensors=tuple(ordered), tensor_bytes=num_bytes)


def shard_bytes(tensors: Mapping[str, torch.Tensor | TensorInfo]) -> int:
    """Return the size of the file that ``write_shard`` writes."""
    header, num_bytes = _make_header(tensors)
    return 8 + len(header) + num_bytes


def _in_order(tensors: Mapping[str, torch.Tensor | TensorInfo]) -> list[str]:
    return sorted(tensors, key=lambda name: (-_item_bytes(tensors[name]), name))


def _make_header(tensors: Mapping[str, torch.Tensor | TensorInfo]) -> tuple[bytes, int]:
    """Return the header of a file, and the bytes of all tensors behind it."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in _in_order(tensors):
        dtype, shape = _dtype_code(tensors[name]), list(tensors[name].shape)
        end = position + math.prod(shape) * _item_bytes(tensors[name])
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    # The data begin at a multiple of 8, so that every tensor is aligned.
    return header + b" " * (-len(header) % 8), position


def write_text(path: Path, text: str) -> WrittenFile:
    """Write one small text file in UTF-8; a lone surrogate becomes its escape, as JSON has it."""
    return write_bytes(path, [text.encode(errors="backslashreplace")])


def write_bytes(path: Path, chunks: Iterable[bytes | memoryview]) -> WrittenFile:
    """Write ``chunks`` to a new file, hashed on the way, and wait until it is on the disk."""
    digest = hashlib.sha256()
    # x: neither over a file that is there nor through a link.
    with path.open("xb", buffering=0) as file:
        for chunk in chunks:
            with naming(path):  # only what this file says, not what the chunks are read from
                _write_all(file, chunk)
            digest.update(chunk)
        sync_file(file.fileno(), path)
        return WrittenFile(path.name, file.tell(), digest.hexdigest())


def _write_all(file: FileIO, chunk: bytes | memoryview) -> None:
    """Write all of ``chunk``; one call may write less."""
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def record_file(path: Path) -> WrittenFile:
    """Return the record of a file that another library wrote, once it is on the disk."""
    with naming(path), path.open("rb") as file:
        sync_file(file.fileno(), path)
        # 3.10 has no hashlib.file_digest.
        digest = hashlib.sha256()
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
        return WrittenFile(path.name, file.tell(), digest.hexdigest())


def write_index(directory: Path, shards: Sequence[WrittenFile]) -> WrittenFile:
    """Write ``model.safetensors.index.json`` for finished shards."""
    weight_map = {tensor: shard.name for shard in shards for tensor in shard.tensors}
    total = sum(shard.tensor_bytes for shard in shards)
    return write_index_map(directory, weight_map, total)


def write_index_map(directory: Path, weight_map: Mapping[str, str], total: int) -> WrittenFile:
    """Write an index from its weight map and the ``total`` bytes of all tensors."""
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return write_text(directory / INDEX_NAME, json.dumps(index, indent=2) + "\n")


def _dtype_code(tensor: torch.Tensor | TensorInfo) -> str:
    if isinstance(tensor, TensorInfo):
        return used_dtype(tensor.dtype)
    return dtype_code(tensor.dtype)


def _item_bytes(tensor: torch.Tensor | TensorInfo) -> int:
    return DTYPES[_dtype_code(tensor)].num_bytes


def _chunks(tensor: torch.Tensor | TensorInfo) -> Iterator[bytes | memoryview]:
    if isinstance(tensor, TensorInfo) and used_dtype(tensor.dtype) == tensor.dtype:
        yield from stored_bytes(tensor)
        return
    import torch

    if isinstance(tensor, TensorInfo):
        tensor = read_tensor(tensor).float()
    # Bytes, flat: numpy has no bfloat16.
    view = memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    for start in range(0, len(view), CHUNK_BYTES):
        yield view[start : start + CHUNK_BYTES]


def remove_abandoned(path: Path) -> None:
    """Remove what processes of this host that were killed while they wrote ``path`` have left."""
    name = re.compile(rf"\.{re.escape(path.name)}\.{host_tag()}[0-9a-f]*\.([0-9]{{1,10}})\.partial")
    for left in path.parent.iterdir():
        match = name.fullmatch(left.name)
        if match and is_regular(left) and not is_running(int(match[1])):
            left.unlink(missing_ok=True)
