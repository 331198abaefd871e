"""Measure the peak memory of ``quantize`` on checkpoints that differ in their number of layers.

    python benchmarks/memory.py CHECKPOINT CHECKPOINT... [--method gptq] [--num-samples 8]

The checkpoints may hold random weights and no tokenizer; that of the demo model is used then.
Prints seconds and peak memory of each, and the largest peak as a ratio of the smallest.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
from measured import Measured, machine, run_measured

from vacc_deploy.assets import demo_model_dir
from vacc_deploy.demo_task import sample_problems


def link_checkpoint(source: Path, target: Path) -> None:
    """Link a checkpoint's files into ``target`` and give it a tokenizer if it has none."""
    target.mkdir()
    for path in source.resolve().iterdir():
        (target / path.name).symlink_to(path)
    if not (target / "tokenizer.json").exists():
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (target / name).write_bytes((demo_model_dir() / name).read_bytes())


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--method", type=click.Choice(["gptq", "rtn"]), default="gptq", show_default=True)
@click.option("--num-samples", default=8, show_default=True)
@click.option("--seq-len", default=256, show_default=True)
def main(checkpoints: tuple[Path, ...], method: str, num_samples: int, seq_len: int) -> None:
    """Print the peak memory of quantizing each of CHECKPOINTS."""
    peaks: list[Measured] = []
    click.echo(f"quantize --method {method}, {num_samples} x {seq_len} tokens, {machine()}")
    for checkpoint in checkpoints:
        with tempfile.TemporaryDirectory(dir=checkpoint.resolve().parent) as name:
            source, text = Path(name) / "source", Path(name) / "text.txt"
            link_checkpoint(checkpoint, source)
            problems = sample_problems(num_samples * seq_len // 20, seed=0, held_out=False)
            text.write_text("\n".join(p.question + p.response for p in problems), "utf-8")
            command = [sys.executable, "-m", "vacc_deploy", "quantize", str(source)]
            if method == "gptq":
                command += ["--calibration", f"text={text}", "--num-samples", str(num_samples)]
                command += ["--seq-len", str(seq_len)]
            measured = run_measured([*command, "--output", f"{name}/int8"])
        peaks.append(measured)
        gib = measured.peak_bytes / 2**30
        click.echo(f"{checkpoint.name:40} {measured.seconds:8.1f} s {gib:8.3f} GiB")
    ratio = max(p.peak_bytes for p in peaks) / min(p.peak_bytes for p in peaks)
    click.echo(f"largest peak / smallest peak: {ratio:.3f}")


if __name__ == "__main__":
    main()
