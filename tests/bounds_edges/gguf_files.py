"""GGUF headers at the edge of each bound."""

import struct
from pathlib import Path
from unittest.mock import patch

from vacc_deploy import bounds
from vacc_deploy.checkpoint import gguf_header
from vacc_deploy.checkpoint.gguf_header import read_gguf_header


def _text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def _write(tmp_path: Path, pairs: list[bytes], tensors: list[bytes], num_bytes: int = 0) -> Path:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    head += b"".join((*pairs, *tensors))
    path = tmp_path / "a.gguf"
    path.write_bytes(head + bytes(-len(head) % 32 + num_bytes))
    return path


def _tensor(name: bytes = b"a", rank: int = 1, offset: int = 0) -> bytes:
    return _text(name) + struct.pack(f"<I{rank}QIQ", rank, *[1] * rank, 0, offset)


def _header(tmp_path: Path, over: bool) -> None:
    # A small bound in place of the large one: no test writes 64 MiB.
    path = _write(tmp_path, [], [])
    limit = 24 - over
    with patch.object(gguf_header, "GGUF_HEADER_BYTES", bounds.Bound(limit, "bytes", "a", "b")):
        read_gguf_header(path)


def _tensors(tmp_path: Path, over: bool) -> None:
    count = bounds.GGUF_TENSORS + over
    tensors = [_tensor(str(number).encode(), offset=32 * number) for number in range(count)]
    read_gguf_header(_write(tmp_path, [], tensors, 32 * count))


def _keys(tmp_path: Path, over: bool) -> None:
    pairs = [
        _text(str(n).encode()) + struct.pack("<IB", 0, 1) for n in range(bounds.GGUF_KEYS + over)
    ]
    read_gguf_header(_write(tmp_path, pairs, []))


def _pair(kind: int, value: bytes, tmp_path: Path, key: bytes = b"a") -> None:
    read_gguf_header(_write(tmp_path, [_text(key) + struct.pack("<I", kind) + value], []))


def _key(tmp_path: Path, over: bool) -> None:
    _pair(0, b"\1", tmp_path, b"a" * (bounds.GGUF_KEY_BYTES + over))


def _text_value(tmp_path: Path, over: bool) -> None:
    _pair(8, _text(bytes(bounds.GGUF_TEXT_BYTES + over)), tmp_path)


def _list(tmp_path: Path, over: bool) -> None:
    count = bounds.GGUF_ARRAY_VALUES + over
    _pair(9, struct.pack("<IQ", 0, count) + bytes(count), tmp_path)


def _texts(tmp_path: Path, over: bool) -> None:
    # In two lists: it is the whole header's.
    count = bounds.GGUF_TEXTS // 2
    pairs = [
        _text(key) + struct.pack("<IIQ", 9, 8, number) + bytes(8 * number)
        for key, number in ((b"a", count), (b"b", bounds.GGUF_TEXTS - count + over))
    ]
    read_gguf_header(_write(tmp_path, pairs, []))


def _rank(tmp_path: Path, over: bool) -> None:
    read_gguf_header(_write(tmp_path, [], [_tensor(rank=bounds.GGUF_DIMENSIONS + over)], 32))


EDGES = {
    "GGUF_HEADER_BYTES": _header,
    "GGUF_TENSORS": _tensors,
    "GGUF_KEYS": _keys,
    "GGUF_KEY_BYTES": _key,
    "GGUF_ARRAY_VALUES": _list,
    "GGUF_TEXTS": _texts,
    "GGUF_TEXT_BYTES": _text_value,
    "GGUF_DIMENSIONS": _rank,
}
