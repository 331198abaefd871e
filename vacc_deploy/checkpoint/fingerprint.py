"""Tell whether weight files are the same ones, without reading all of a large model.

The one scheme for this question: a resumed run and the cache of a model's own answers both ask it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from vacc_deploy.checkpoint.header import ShardHeader
from vacc_deploy.checkpoint.reader import Checkpoint

# Weights of at most this size are hashed whole; of larger ones three pieces of every tensor are.
WHOLE_BYTES = 64 << 20
PIECE_BYTES = 4096
_READ_BYTES = 1 << 20


def fingerprint_weights(
    checkpoint: Checkpoint, *, whole_bytes: int = WHOLE_BYTES
) -> dict[str, str]:
    """Return the name of every weight file with a hash of its header and of its data.

    Two fine-tunes of one model have equal headers, so the header alone would not do.

    Args:
        checkpoint: the opened directory.
        whole_bytes: weights up to this size are read whole.
    """
    is_whole = checkpoint.weight_bytes <= whole_bytes
    return {name: _hash_shard(shard, is_whole) for name, shard in checkpoint.shards.items()}


def fingerprint_file(path: Path) -> str:
    """Return the SHA-256 of a whole file."""
    return _hash(_read_pieces(path, [(0, path.stat().st_size)]))


def _hash_shard(shard: ShardHeader, is_whole: bool) -> str:
    pieces = []
    for info in shard.tensors:
        if is_whole:
            pieces.append((info.offset, info.num_bytes))
            continue
        size, last = min(PIECE_BYTES, info.num_bytes), max(0, info.num_bytes - PIECE_BYTES)
        # The first, the middle and the last piece of the tensor.
        pieces += [(info.offset + start, size) for start in (0, last // 2, last)]
    return _hash(_read_pieces(shard.path, pieces), shard.header_sha256.encode())


def _hash(pieces: Iterator[bytes], start: bytes = b"") -> str:
    digest = hashlib.sha256(start)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _read_pieces(path: Path, pieces: list[tuple[int, int]]) -> Iterator[bytes]:
    """Yield the bytes at each (offset, size) of a file, a MiB at most at a time."""
    with path.open("rb", buffering=0) as file:
        for offset, size in pieces:
            file.seek(offset)
            while size > 0 and (piece := file.read(min(size, _READ_BYTES))):
                yield piece
                size -= len(piece)
