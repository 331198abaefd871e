"""Tell whether weight files are the same ones, without reading all of a large model.

The one scheme for this question: a resumed run and the cache of a model's own answers both ask it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from vacc_deploy.checkpoint.header import ShardHeader
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.checkpoint.stored import read_pieces
from vacc_deploy.stamps import FileStamp

# Weights of at most this size are hashed whole; of larger ones three pieces of every tensor are.
WHOLE_BYTES = 64 << 20
PIECE_BYTES = 4096


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
    return _hash(path, [(0, path.stat().st_size)])


def _hash_shard(shard: ShardHeader, is_whole: bool) -> str:
    spans = []
    for info in shard.tensors:
        if is_whole:
            spans.append((info.offset, info.num_bytes))
            continue
        size, last = min(PIECE_BYTES, info.num_bytes), max(0, info.num_bytes - PIECE_BYTES)
        # The first, the middle and the last piece of the tensor.
        spans += [(info.offset + start, size) for start in (0, last // 2, last)]
    return _hash(shard.path, spans, shard.stamp, start=shard.header_sha256)


def _hash(
    path: Path,
    spans: Iterable[tuple[int, int]],
    stamp: FileStamp | None = None,
    *,
    start: str = "",
) -> str:
    digest = hashlib.sha256(start.encode())
    for piece in read_pieces(path, spans, stamp):
        digest.update(piece)
    return digest.hexdigest()
