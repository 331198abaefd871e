"""Make the one GGUF file of a finished run's shards; memory holds one tensor of them.

The package ``gguf`` writes what stands in front of the tensors, which is small. The tensors follow
here, hashed while they are written, as every other file of an output is.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

import torch

from vacc_deploy.checkpoint.gguf_header import ALIGNMENT, TENSOR_TYPES
from vacc_deploy.checkpoint.header import TensorInfo, read_header
from vacc_deploy.checkpoint.stored import read_spans, read_tensor
from vacc_deploy.formats.q8_0 import BLOCKS, F16, interleave_rows, round_to_blocks
from vacc_deploy.gguf_file.plan import GgufPlan, PlannedTensor
from vacc_deploy.models.gguf_keys import rope_factors
from vacc_deploy.models.gguf_names import interleaved_heads
from vacc_deploy.outputs.writer import WrittenFile, write_bytes

# Elements of an embedding that are converted at a time.
_PIECE_ELEMENTS = 1 << 22
_TYPE_NUMBERS = {kind.name: number for number, kind in TENSOR_TYPES.items()}


def assemble(plan: GgufPlan, shards: Iterable[Path], directory: Path, scratch: Path) -> WrittenFile:
    """Write the GGUF file into ``directory`` and return its record.

    Args:
        plan: of the file; checked.
        shards: the finished shards of the layout ``gguf``.
        directory: where the file goes; it is not there yet.
        scratch: a file that is written and removed.

    Raises:
        CheckpointError: a shard is not what was written.
    """
    infos = {info.name: info for path in shards for info in read_header(path).tensors}
    header = _make_header(plan, scratch)
    data = chain.from_iterable(_padded(_chunks(plan, t, infos), t.num_bytes) for t in plan.tensors)
    return write_bytes(directory / plan.file_name, chain([header], data))


def _make_header(plan: GgufPlan, scratch: Path) -> bytes:
    """Return all that stands in front of the tensors."""
    import gguf

    # It tells every file that it opens.
    logging.getLogger("gguf").setLevel(logging.WARNING)
    scratch.unlink(missing_ok=True)
    writer = gguf.GGUFWriter(scratch, plan.checkpoint.config.model_type)
    try:
        for key, (kind, value) in plan.key_values().items():
            if key != "general.architecture":  # the writer has begun with it
                writer.add_key_value(key, value, gguf.GGUFValueType[kind])
        for tensor in plan.tensors:
            raw = gguf.GGMLQuantizationType[tensor.kind]
            # No numpy type of bytes: the shape is that of the values.
            writer.add_tensor_info(tensor.name, tensor.shape, None, tensor.num_bytes, raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()
    header = scratch.read_bytes()
    scratch.unlink()
    return header + bytes(-len(header) % ALIGNMENT)


def _padded(chunks: Iterator[bytes | memoryview], num_bytes: int) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a tensor, and zeros up to where the next one begins."""
    written = 0
    for chunk in chunks:
        written += len(chunk)
        yield chunk
    assert written == num_bytes, f"{written} bytes instead of {num_bytes}"
    yield bytes(-num_bytes % ALIGNMENT)


def _chunks(
    plan: GgufPlan, tensor: PlannedTensor, infos: Mapping[str, TensorInfo]
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of one tensor."""
    config = plan.checkpoint.config
    if not tensor.source:
        factors = rope_factors(config)
        yield struct.pack(f"<{len(factors)}f", *factors)
        return
    linear = infos.get(f"{tensor.source}.{BLOCKS}")
    info = linear or infos[tensor.source]
    heads = interleaved_heads(config, info.name)
    if linear:
        yield _bytes_of(interleave_rows(read_tensor(linear), heads))
    elif len(tensor.shape) == 1:
        yield _bytes_of(interleave_rows(read_tensor(info).float(), heads))
    else:
        yield from _convert(info, tensor.kind)


def _convert(info: TensorInfo, kind: str) -> Iterator[memoryview]:
    """Yield the rows of an embedding or a head, float16 or Q8_0, some at a time."""
    rows, columns = info.shape
    size, count = info.num_bytes // rows, max(1, _PIECE_ELEMENTS // columns)
    for start in range(0, rows, count):
        number = min(count, rows - start)
        values = read_spans(info, (number, columns), [(start * size, number * size)]).float()
        yield _bytes_of(values.half() if kind == F16 else round_to_blocks(values))


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    # On a little-endian machine the bytes of a number are in the order of the format.
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
