"""The bounds of the process that reads Parquet files, each tried at its edge."""

import os
from unittest import mock

from vacc_deploy.bounds import PARQUET_CPU_SECONDS, PARQUET_MEMORY
from vacc_deploy.datasets import parquet

MIB = 1 << 20


def read(path, *, seconds=0, memory=0):
    """Read a file as if so much of its time and its memory were used already."""
    start = parquet.worker.read_frames

    def spent(request, **allowed):
        left = {
            "seconds": allowed["seconds"] - seconds,
            "num_bytes": allowed["num_bytes"] - memory,
        }
        return start(request, **left)

    with mock.patch.object(parquet.worker, "read_frames", spent):
        for _ in parquet.read_rows(path, "text", ("text",)):
            pass


def write(tmp_path, column, size=0):
    """Write a column of text, and one of ``size`` bytes that is not read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, rest = tmp_path / "a.parquet", [None] * (len(column) - 1)
    table = pa.table({"text": column, "other": pa.array([os.urandom(size), *rest], pa.binary())})
    pq.write_table(table, path, compression="zstd")
    return path


def endless(tmp_path, over, size=0):
    """Write a file whose rows are few, or take minutes to read."""
    import pyarrow as pa

    indices = pa.array([0] * (1_000_000 if over else 10), pa.int32())
    return write(tmp_path, pa.DictionaryArray.from_arrays(indices, ["x" * 100_000]), size)


def cpu_seconds(tmp_path, over):
    read(endless(tmp_path, over), seconds=PARQUET_CPU_SECONDS)


def cpu_per_mb(tmp_path, over):
    read(endless(tmp_path, over, 1_000_000), seconds=PARQUET_CPU_SECONDS + 1)


def memory(tmp_path, over):
    cell = "x" * (14 * MIB if over else 100)
    read(write(tmp_path, [cell]), memory=PARQUET_MEMORY - 8 * MIB)


def memory_times(tmp_path, over):
    cell = "x" * (15 * MIB if over else 100)
    read(write(tmp_path, [cell], 2 * MIB), memory=PARQUET_MEMORY)


EDGES = {
    "PARQUET_CPU_PER_MB": cpu_per_mb,
    "PARQUET_CPU_SECONDS": cpu_seconds,
    "PARQUET_MEMORY": memory,
    "PARQUET_MEMORY_TIMES": memory_times,
}
