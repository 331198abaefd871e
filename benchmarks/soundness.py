"""Measure the check for dead weights beside reading the same files, in turn.

    python benchmarks/soundness.py CHECKPOINT [--runs 5]

CHECKPOINT is any float checkpoint; its files should fit the file cache. Floor: every byte of the
weights is read once, into the same memory. Prints the rate of both, of the shorter check that
``quantize`` makes at its start, and the memory that the check adds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
from measured import machine

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.checkpoint.soundness import check_weights
from vacc_deploy.checkpoint.stored import stored_bytes
from vacc_deploy.system import peak_memory_bytes


def read_all(checkpoint: Checkpoint) -> None:
    """Read every tensor and look at nothing."""
    for info in checkpoint.tensors.values():
        for _ in stored_bytes(info):
            pass


def seconds_of(work: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--runs", default=5, show_default=True, help="Times that each is measured.")
def main(directory: Path, runs: int) -> None:
    """Print the rates for the checkpoint DIRECTORY."""
    checkpoint = Checkpoint.open(directory)
    works: dict[str, Callable[[], object]] = {
        "read only": lambda: read_all(checkpoint),
        "prepare's check": lambda: check_weights(checkpoint),
        "quantize's check": lambda: check_weights(checkpoint, whole=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    read_all(checkpoint)  # fills the file cache
    before = peak_memory_bytes()
    for _ in range(runs + 1):
        for name, work in works.items():
            seconds[name].append(seconds_of(work))
    num_bytes = checkpoint.weight_bytes
    click.echo(f"{directory.name}, {num_bytes / 1e9:.2f} GB, {runs} runs, {machine()}")
    for name, values in seconds.items():
        # The first run also imports what it needs.
        median = statistics.median(values[1:])
        click.echo(f"{name:16}  {median:.3f} s  {num_bytes / median / 1e9:.2f} GB/s")
    click.echo(f"memory added      {(peak_memory_bytes() - before) / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
