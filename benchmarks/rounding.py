"""Measure ``quantize --method rtn`` beside ``cp`` of the same input, in turn.

    python benchmarks/rounding.py CHECKPOINT [--runs 5] [--device cpu] [--work-dir DIR]

CHECKPOINT is any float checkpoint, also one of random weights without a tokenizer. Floor: the input
is read once and the output written once. Prints medians, the ratio of each pair to ``cp``, the time
beyond twice that of ``cp``, and the peak memory.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import click
from measured import machine, run_measured
from stand_ins import link_checkpoint


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--runs", default=5, show_default=True, help="Pairs of cp and quantize.")
@click.option("--device", default="cpu", show_default=True, help="Device to quantize on.")
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path),
    help="Directory to work in.  [default: beside CHECKPOINT]",
)
def main(checkpoint: Path, runs: int, device: str, work_dir: Path | None) -> None:
    """Print the time and memory of rounding CHECKPOINT."""
    copies, quantized = [], []
    with tempfile.TemporaryDirectory(dir=work_dir or checkpoint.resolve().parent) as name:
        source, copy, output = Path(name) / "source", Path(name) / "copy", Path(name) / "int8"
        link_checkpoint(checkpoint, source)
        num_bytes = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        for _ in range(runs + 1):
            copies.append(run_measured(["cp", "-rL", str(source), str(copy)]))
            command = [sys.executable, "-m", "vacc_deploy", "quantize", str(source)]
            command += ["--method", "rtn", "--output", str(output)]
            command += [] if device == "cpu" else ["--device", device]
            quantized.append(run_measured(command, device=device))
            shutil.rmtree(copy)
            shutil.rmtree(output)
    # The first pair only warms the file cache.
    copy_seconds = [m.seconds for m in copies[1:]]
    seconds = [m.seconds for m in quantized[1:]]
    ratios = [q / c for q, c in zip(seconds, copy_seconds, strict=True)]
    beyond = [q - 2 * c for q, c in zip(seconds, copy_seconds, strict=True)]
    median = statistics.median
    click.echo(f"{checkpoint.name}, {num_bytes / 1e9:.2f} GB, {runs} pairs, {machine()}")
    click.echo(f"cp            {median(copy_seconds):.2f} s")
    click.echo(f"quantize rtn  {median(seconds):.2f} s")
    click.echo(f"ratio to cp   {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    click.echo(f"beyond 2 x cp {median(beyond):.2f} s")
    click.echo(f"peak memory   {max(m.peak_bytes for m in quantized) / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
