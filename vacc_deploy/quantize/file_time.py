"""How long the files of a run take to read, round, hash and write; nothing is written to tell.

Reading, rounding and hashing are measured on a small piece. The rate of the disk is assumed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import torch

from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.formats.int8 import SCALE_DTYPE, round_rows
from vacc_deploy.models.config import LAYER_LINEARS, linear_name
from vacc_deploy.quantize.memory import NUM_WRITERS
from vacc_deploy.system import num_cores

# Assumed: what is written goes through the system's memory to a solid-state disk.
WRITTEN_BYTES_PER_SECOND = 2 << 30
_HASHED_BYTES = 16 << 20
_PIECE_WEIGHTS = 1 << 22

Now = Callable[[], float]


def rounding_seconds(
    checkpoint: Checkpoint, output_bytes: int, now: Now = time.perf_counter
) -> dict[str, float]:
    """Return the parts of a run without calibration: every core reads, rounds and hashes.

    Args:
        checkpoint: the source; the first rows of one linear are read and rounded.
        output_bytes: of all formats.
        now: the clock.
    """
    config = checkpoint.config
    weights = sum(out * inp for out, inp in config.linear_names().values())
    rounding = weights * _seconds_per_weight(checkpoint, now)
    return {
        "reading and rounding": rounding / num_cores(),
        "hashing and writing": writing_seconds(output_bytes, now),
    }


def writing_seconds(
    output_bytes: int, now: Now = time.perf_counter, *, num_writers: int = NUM_WRITERS
) -> float:
    """Return the seconds that hashing and writing take on cores that do nothing else.

    Args:
        output_bytes: of all formats.
        now: the clock.
        num_writers: shards that are written at a time.
    """
    hashing = output_bytes / _hashed_bytes_per_second(now)
    return hashing / min(num_cores(), num_writers) + output_bytes / WRITTEN_BYTES_PER_SECOND


def _hashed_bytes_per_second(now: Now) -> float:
    data = bytes(_HASHED_BYTES)
    started = now()
    hashlib.sha256(data).digest()
    return _HASHED_BYTES / max(now() - started, 1e-9)


def _seconds_per_weight(checkpoint: Checkpoint, now: Now) -> float:
    """Return what reading and rounding take on one core, by one piece after a first one."""
    linear = LAYER_LINEARS[-1]
    out_features, in_features = checkpoint.config.linear_shape(linear)
    rows = min(out_features, max(1, _PIECE_WEIGHTS // in_features))
    codes = torch.empty((rows, in_features), dtype=torch.int8)
    scale = torch.empty(rows, dtype=SCALE_DTYPE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(2):
            started = now()
            name = f"{linear_name(0, linear)}.weight"
            round_rows(checkpoint.read_slice(name, 0, rows), codes, scale)
            seconds = now() - started
    finally:
        torch.set_num_threads(threads)
    return seconds / (rows * in_features)
