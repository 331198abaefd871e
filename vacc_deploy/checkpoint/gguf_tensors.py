"""The tensors of a GGUF directory as all that reads a ``Checkpoint`` sees them.

Linears are ``<linear>.q8_0`` (uint8 blocks), all others the floats of the published names, an
embedding in Q8_0 among them. Rows that llama.cpp orders in its own way come back in the published
order. Only files that ``quantize`` wrote are read: their ``config.json`` announces them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vacc_deploy.checkpoint.caches import list_all_names
from vacc_deploy.checkpoint.gguf_header import ENDING, GgufHeader, GgufTensor
from vacc_deploy.checkpoint.header import ShardHeader, TensorInfo
from vacc_deploy.checkpoint.stored import read_spans
from vacc_deploy.errors import CheckpointError, name_some
from vacc_deploy.formats.q8_0 import BLOCKS, Q8_0, dequantize_blocks, part_rows, row_bytes
from vacc_deploy.models.config import EMBEDDING, LM_HEAD, ModelConfig
from vacc_deploy.models.gguf_names import ROPE_FACTORS, gguf_names, interleaved_heads

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class GgufTensorInfo(TensorInfo):
    """A tensor of a GGUF file.

    Attributes:
        dtype: as of every tensor, and ``Q8_0`` for the blocks of an embedding, which is used as
            float32. No reader of bytes takes those for numbers: ``DTYPES`` has no such code.
        heads: whose rows llama.cpp has interleaved; 0 where the order is the published one.
    """

    heads: int = 0


def find_gguf_file(directory: Path) -> str:
    """Return the name of the one GGUF file of a directory that announces one.

    Raises:
        CheckpointError: there is none, or it is not the only weight file.
    """
    names = sorted(name for name in list_all_names(directory) if not name.startswith("."))
    found = [name for name in names if name.lower().endswith(ENDING)]
    others = [name for name in names if name.endswith(".safetensors")]
    if len(found) == 1 and not others:
        return found[0]
    if not found:
        raise CheckpointError(
            f"{directory} holds no {ENDING} file, of which its config.json tells. Run the "
            "vacc-deploy quantize that wrote the directory again."
        )
    raise CheckpointError(
        f"{directory} holds several weight files: {name_some(found + others)}. Move away all but "
        "the one that vacc-deploy quantize wrote."
    )


def read_gguf_shard(header: GgufHeader, config: ModelConfig) -> ShardHeader:
    """Return the tensors of a GGUF file under the names under which they are used.

    A tensor that llama.cpp would call otherwise keeps its name, and belongs to no part of the
    model then. The factors of the rotary frequencies are left out: ``config`` says the same.

    Raises:
        CheckpointError: a tensor is Q8_0 that never is.
    """
    path = header.path
    published = {stored: name for name, stored in gguf_names(config).items()}
    linears = {f"{name}.weight": name for name in config.linear_names()}
    infos = list[TensorInfo]()
    for tensor in header.tensors:
        if tensor.name == ROPE_FACTORS:
            continue
        name = published.get(tensor.name, tensor.name)
        dtype, shape = tensor.kind, tensor.shape
        if dtype == Q8_0 and (len(shape) != 2 or name not in linears.keys() | {EMBEDDING, LM_HEAD}):
            raise CheckpointError(
                f"{path}: tensor {tensor.name!r:.80} of shape {list(shape)} has the type {Q8_0}, "
                "expected that of the embedding, the head and the linears only, with rows and "
                "columns. Quantize the model again."
            )
        if dtype == Q8_0 and name in linears:  # they are read as they are
            name, dtype, shape = f"{linears[name]}.{BLOCKS}", "U8", _block_shape(tensor)
        infos.append(
            GgufTensorInfo(
                name=name,
                dtype=dtype,
                shape=shape,
                path=path,
                offset=tensor.offset,
                num_bytes=tensor.num_bytes,
                stored_name=tensor.name,
                stamp=header.stamp,
                heads=interleaved_heads(config, name),
            )
        )
    return ShardHeader(
        path, header.file_bytes, header.header_sha256, tuple(infos), stamp=header.stamp
    )


def _block_shape(tensor: GgufTensor) -> tuple[int, ...]:
    return (*tensor.shape[:-1], row_bytes(tensor.shape[-1]))


def read_gguf(info: GgufTensorInfo, rows: Sequence[int] | None = None) -> torch.Tensor:
    """Return a tensor, or some rows of it, in the published order.

    Args:
        info: of ``read_gguf_shard``.
        rows: which rows; None for all.

    Raises:
        CheckpointError: the file was changed since its header was read.
    """
    if info.heads:  # small enough to be read whole
        tensor = part_rows(read_spans(info, info.shape, [(0, info.num_bytes)]), info.heads)
        return tensor if rows is None else tensor[list(rows)]
    num_rows = info.shape[0]
    size = info.num_bytes // num_rows
    spans = [(0, info.num_bytes)] if rows is None else [(row * size, size) for row in rows]
    count = num_rows if rows is None else len(rows)
    if info.dtype != Q8_0:
        return read_spans(info, (count, *info.shape[1:]), spans)
    return dequantize_blocks(read_spans(info, (count, size), spans, dtype="U8"))
