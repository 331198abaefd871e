"""Measure ``vacc-deploy quantize`` by phase, beside the floor of each part on this machine.

    python benchmarks/quantize.py CHECKPOINT [--device cuda] [--num-samples 32] [--seq-len 512]
        [--calibration NAME=PATH]... [--layers N] [--runs 1] [-- OPTIONS OF quantize]

CHECKPOINT is any float checkpoint; one of random weights gets the demo model's tokenizer. Without
--calibration the text is made up, which changes the result but not the time. Floors are measured in
the same run (see ``floors``); that of reading and writing is the time of ``cp``. Prints each phase
with its floor and ratio, their sums, tokens per second, and the peak memory of host and device.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from measured import Measured, machine, run_measured
from stand_ins import keep_layers, link_checkpoint, write_sums

TIMING_NAME = "quantize_timing.json"
# The phases of quantize_timing.json whose floor is the time of cp, together.
FILE_PHASES = ("read", "write wait")
FILES = "read + write"
_EMPTY = "–"


@dataclass(frozen=True)
class Sample:
    """One run: the process as measured, what it wrote about itself, and a ``cp`` beside it."""

    process: Measured
    timing: dict[str, Any]
    copy_seconds: float


def run_once(source: Path, folder: Path, options: list[str], device: str) -> Sample:
    """Copy and quantize ``source`` once."""
    copy, output = folder / "copy", folder / "int8"
    copy_seconds = run_measured(["cp", "-rL", str(source), str(copy)]).seconds
    shutil.rmtree(copy)
    command = [sys.executable, "-m", "vacc_deploy", "quantize", str(source)]
    process = run_measured([*command, "--output", str(output), *options], device=device)
    timing = json.loads((output / TIMING_NAME).read_text("utf-8"))
    shutil.rmtree(output)
    return Sample(process, timing, copy_seconds)


def describe_parts(
    phases: dict[str, float], floors: dict[str, float]
) -> list[tuple[object, object, object, object]]:
    """Return the table: part, seconds, floor, ratio; then the sums of what has a floor and of all.

    Reading and writing are one part, because their floor is one.
    """
    files = sum(phases.get(name, 0.0) for name in FILE_PHASES)
    parts = {FILES: files, **{k: v for k, v in phases.items() if k not in FILE_PHASES}}
    rows = [_row(name, seconds, floors.get(name)) for name, seconds in parts.items()]
    rows += [_row(name, None, floor) for name, floor in floors.items() if name not in parts]
    return [*rows, _row("sum of phases", sum(parts.values()), sum(floors.values()))]


def _row(name: str, seconds: float | None, floor: float | None) -> tuple[object, ...]:
    ratio = f"{seconds / floor:.2f}" if seconds is not None and floor else _EMPTY
    shown = [_EMPTY if value is None else f"{value:.2f}" for value in (seconds, floor)]
    return (name, *shown, ratio)


def describe_run(sample: Sample, floors: dict[str, float], num_tokens: int) -> str:
    """Return the table of one run and what is not in it."""
    from vacc_deploy.results import format_pairs, format_table

    floors = {FILES: sample.copy_seconds, **floors}
    seconds, total = sample.process.seconds, sum(floors.values())
    phases = sample.timing.get("phases")
    lines = []
    if isinstance(phases, dict):
        rows = describe_parts(phases, floors)
        unseen = seconds - sum(phases.values())
        rows.append(_row("outside the phases", unseen, None))
    else:
        rows = [_row(name, None, floor) for name, floor in floors.items()]
    rows.append(_row("whole process", seconds, total))
    lines.append(format_table(("part", "seconds", "floor", "ratio"), rows))
    peak = sample.timing.get("peak_memory_bytes", sample.process.peak_bytes)
    pairs = [
        ("tokens per second", f"{num_tokens / seconds:,.0f}"),
        ("beyond cp", f"{seconds - sample.copy_seconds:.1f} s"),
        ("CPU time", f"{sample.process.cpu_seconds:.1f} s"),
        ("peak memory", f"{peak / 2**30:.2f} GiB"),
    ]
    own = sample.timing.get("peak_device_memory_bytes")
    if own:
        pairs.append(("peak device memory", f"{own / 2**30:.2f} GiB by its own count"))
    if sample.process.device_bytes is not None:
        watched = sample.process.device_bytes / 2**30
        pairs.append(("peak device memory", f"{watched:.2f} GiB as the driver sees it"))
    return "\n".join([*lines, format_pairs(pairs)])


def floors_of(source: Path, num_samples: int, seq_len: int, extra: tuple[str, ...], device: str):
    """Return the floors of the calibrated parts."""
    # The first import of torch: what it holds would count in the peak of a measured process.
    from floors import Workload, measure_floors

    from vacc_deploy.calibration.split import HELD_OUT_SHARE
    from vacc_deploy.models.parse import read_config
    from vacc_deploy.quantize.layer_walk import num_float_rows
    from vacc_deploy.quantize.options import QuantizeOptions

    options = " ".join(extra).replace("=", " ")
    if "--method rtn" in options:
        return {}
    config, is_full = read_config(source), "--effort fast" not in options
    num_float = 0
    if is_full:
        asked = QuantizeOptions("gptq", num_samples=num_samples, sequence_length=seq_len)
        held_out = max(1, round(num_samples * HELD_OUT_SHARE))
        num_float = num_float_rows(config, asked, num_samples - held_out, held_out)
    work = Workload(config, num_samples, seq_len, is_full, num_float)
    return measure_floors(work, device)


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--device", default="cpu", show_default=True, help="Device to quantize on.")
@click.option("--num-samples", default=32, show_default=True, help="Calibration rows.")
@click.option("--seq-len", default=512, show_default=True, help="Tokens of a calibration row.")
@click.option(
    "--calibration", "sources", multiple=True, metavar="NAME=PATH", help="Calibrate on this."
)
@click.option(
    "--layers", type=click.IntRange(1), help="Quantize the first N layers only.  [default: all]"
)
@click.option("--runs", default=1, show_default=True, help="How often to run.")
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path),
    help="Directory to work in.  [default: beside CHECKPOINT]",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write all figures here."
)
@click.argument("extra", nargs=-1, type=click.UNPROCESSED)
def main(
    checkpoint: Path,
    device: str,
    num_samples: int,
    seq_len: int,
    sources: tuple[str, ...],
    layers: int | None,
    runs: int,
    work_dir: Path | None,
    json_file: Path | None,
    extra: tuple[str, ...],
) -> None:
    """Print the time of quantizing CHECKPOINT; pass EXTRA (after --) to quantize."""
    num_tokens = num_samples * seq_len
    with tempfile.TemporaryDirectory(dir=work_dir or checkpoint.resolve().parent) as name:
        folder = Path(name)
        source = folder / "source"
        if layers:
            keep_layers(checkpoint, folder / "first", layers)
        link_checkpoint(folder / "first" if layers else checkpoint, source)
        if not sources:
            write_sums(folder / "text.txt", num_tokens)
            sources = (f"text={folder / 'text.txt'}",)
        options = []
        if "rtn" not in extra and "--method=rtn" not in extra:
            options += ["--num-samples", str(num_samples), "--seq-len", str(seq_len)]
            options += [part for text in sources for part in ("--calibration", text)]
        options += extra
        options += [] if device == "cpu" else ["--device", device]
        samples = [run_once(source, folder, options, device) for _ in range(runs)]
        floors = floors_of(source, num_samples, seq_len, extra, device)
    part = f" ({layers} layers)" if layers else ""
    title = (
        f"{checkpoint.name}{part}, {num_samples} x {seq_len} tokens, {device}, {machine(device)}"
    )
    click.echo(" ".join([title, *extra]))
    for sample in samples:
        click.echo(f"\n{describe_run(sample, floors, num_tokens)}")
    if json_file:
        runs_made = [
            {**vars(s.process), "copy_seconds": s.copy_seconds, "timing": s.timing} for s in samples
        ]
        report = {"title": title, "extra": extra, "floors": floors, "runs": runs_made}
        json_file.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
