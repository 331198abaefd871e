"""Measure ``quantize --method rtn`` beside ``cp`` of the same input, in turn.

    python benchmarks/rounding.py CHECKPOINT [--runs 5]

Floor: the input is read once and the output written once. Prints medians, the time beyond twice
that of ``cp``, and the peak memory.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import click
from measured import machine, run_measured


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--runs", default=5, show_default=True)
def main(checkpoint: Path, runs: int) -> None:
    """Print the time and memory of rounding CHECKPOINT."""
    copies, quantized = [], []
    with tempfile.TemporaryDirectory(dir=checkpoint.resolve().parent) as name:
        for _ in range(runs + 1):
            copy, output = Path(name) / "copy", Path(name) / "int8"
            copies.append(run_measured(["cp", "-rL", str(checkpoint), str(copy)]))
            command = [sys.executable, "-m", "vacc_deploy", "quantize", str(checkpoint)]
            quantized.append(run_measured([*command, "--method", "rtn", "--output", str(output)]))
            shutil.rmtree(copy)
            shutil.rmtree(output)
    copy_seconds = [m.seconds for m in copies[1:]]  # the first pair only warms the file cache
    seconds = [m.seconds for m in quantized[1:]]
    beyond = [q - 2 * c for q, c in zip(seconds, copy_seconds, strict=True)]
    click.echo(f"{checkpoint.name}, {runs} pairs, {machine()}")
    click.echo(f"cp            {statistics.median(copy_seconds):.2f} s")
    click.echo(f"quantize rtn  {statistics.median(seconds):.2f} s")
    click.echo(f"beyond 2 x cp {statistics.median(beyond):.2f} s")
    click.echo(f"peak memory   {max(m.peak_bytes for m in quantized) / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
