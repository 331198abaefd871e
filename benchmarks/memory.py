"""Measure the peak memory of ``quantize`` on checkpoints that differ in their number of layers.

    python benchmarks/memory.py CHECKPOINT CHECKPOINT... [--method gptq] [--num-samples 8]
        [--device cuda] [--work-dir DIR]

The checkpoints may hold random weights and no tokenizer; that of the demo model is used then.
Prints seconds and peak memory of each, and the largest peak as a ratio of the smallest.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
from measured import Measured, machine, run_measured
from stand_ins import link_checkpoint, write_sums


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--method",
    type=click.Choice(["gptq", "rtn"]),
    default="gptq",
    show_default=True,
    help="How to quantize.",
)
@click.option("--num-samples", default=8, show_default=True, help="Calibration rows.")
@click.option("--seq-len", default=256, show_default=True, help="Tokens of a calibration row.")
@click.option("--device", default="cpu", show_default=True, help="Device to quantize on.")
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path),
    help="Directory to work in.  [default: beside each checkpoint]",
)
def main(
    checkpoints: tuple[Path, ...],
    method: str,
    num_samples: int,
    seq_len: int,
    device: str,
    work_dir: Path | None,
) -> None:
    """Print the peak memory of quantizing each of CHECKPOINTS."""
    peaks: list[Measured] = []
    click.echo(f"quantize --method {method}, {num_samples} x {seq_len} tokens, {machine()}")
    for checkpoint in checkpoints:
        with tempfile.TemporaryDirectory(dir=work_dir or checkpoint.resolve().parent) as name:
            source, text = Path(name) / "source", Path(name) / "text.txt"
            link_checkpoint(checkpoint, source)
            write_sums(text, num_samples * seq_len)
            command = [sys.executable, "-m", "vacc_deploy", "quantize", str(source)]
            if method == "gptq":
                command += ["--calibration", f"text={text}", "--num-samples", str(num_samples)]
                command += ["--seq-len", str(seq_len)]
            if device != "cpu":
                command += ["--device", device]
            measured = run_measured([*command, "--output", f"{name}/int8"], device=device)
        peaks.append(measured)
        gib = measured.peak_bytes / 2**30
        line = f"{checkpoint.name:40} {measured.seconds:8.1f} s {gib:8.3f} GiB"
        if measured.device_bytes is not None:
            line += f" {measured.device_bytes / 2**30:8.3f} GiB on the device"
        click.echo(line)
    ratio = max(p.peak_bytes for p in peaks) / min(p.peak_bytes for p in peaks)
    click.echo(f"largest peak / smallest peak: {ratio:.3f}")


if __name__ == "__main__":
    main()
