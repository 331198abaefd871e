"""Compare what ``vacc-deploy quantize --dry-run`` predicts with the run itself.

    python benchmarks/prediction.py CHECKPOINT [--device cuda] [--num-samples 32] [--seq-len 512]
        [--calibration NAME=PATH]... [-- OPTIONS OF quantize]

CHECKPOINT and the text are those of ``quantize.py`` here. Both commands run one after the other, so
that they see the same machine. Prints time, that of the layers alone, and memory, each with its
ratio.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from measured import machine
from stand_ins import link_checkpoint, write_sums

TIMING_NAME = "quantize_timing.json"
_GIB = 1 << 30


def compare(plan: dict[str, Any], timing: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the table: quantity, predicted, measured, ratio."""
    predicted = plan["estimated_parts"]["seconds"] or {}
    rows = [_row("seconds", plan["estimated_seconds"], timing["seconds"])]
    if "layers" in predicted:
        rows.append(_row("  layers", predicted["layers"], sum(timing["layer_seconds"])))
    for label, estimated, measured in (
        ("memory in GiB", "estimated_memory_bytes", "peak_memory_bytes"),
        ("device memory in GiB", "estimated_device_memory_bytes", "peak_device_memory_bytes"),
    ):
        if plan[estimated] is not None:
            rows.append(_row(label, plan[estimated] / _GIB, timing[measured] / _GIB))
    return rows


def _row(name: str, predicted: float | None, measured: float) -> tuple[str, str, str, str]:
    if predicted is None:
        return name, "–", f"{measured:.2f}", "–"
    ratio = f"{predicted / measured:.2f}" if measured else "–"
    return name, f"{predicted:.2f}", f"{measured:.2f}", ratio


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--device", default="cpu", show_default=True, help="Device to quantize on.")
@click.option("--num-samples", default=32, show_default=True, help="Calibration rows.")
@click.option("--seq-len", default=512, show_default=True, help="Tokens of a calibration row.")
@click.option(
    "--calibration", "sources", multiple=True, metavar="NAME=PATH", help="Calibrate on this."
)
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path),
    help="Directory to work in.  [default: beside CHECKPOINT]",
)
@click.argument("extra", nargs=-1, type=click.UNPROCESSED)
def main(
    checkpoint: Path,
    device: str,
    num_samples: int,
    seq_len: int,
    sources: tuple[str, ...],
    work_dir: Path | None,
    extra: tuple[str, ...],
) -> None:
    """Predict and run; pass EXTRA (after --) to quantize."""
    from vacc_deploy.results import format_table

    with tempfile.TemporaryDirectory(dir=work_dir or checkpoint.resolve().parent) as name:
        folder = Path(name)
        source, output = folder / "source", folder / "int8"
        link_checkpoint(checkpoint, source)
        if not sources:
            write_sums(folder / "text.txt", num_samples * seq_len)
            sources = (f"text={folder / 'text.txt'}",)
        command = [sys.executable, "-m", "vacc_deploy", "quantize", str(source)]
        command += ["--output", str(output), "--device", device, "--json", *extra]
        if "rtn" not in extra and "--method=rtn" not in extra:
            command += ["--num-samples", str(num_samples), "--seq-len", str(seq_len)]
            command += [part for text in sources for part in ("--calibration", text)]
        planned = subprocess.run([*command, "--dry-run"], stdout=subprocess.PIPE, check=True)
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        timing = json.loads((output / TIMING_NAME).read_text("utf-8"))
    title = f"{checkpoint.name}, {num_samples} x {seq_len} tokens, {device}, {machine(device)}"
    click.echo(" ".join([title, *extra]))
    rows = compare(json.loads(planned.stdout), timing)
    click.echo(format_table(("", "predicted", "measured", "ratio"), rows))


if __name__ == "__main__":
    main()
