"""Predict what quantizing each of the six models takes on this machine, preset by preset.

    python benchmarks/presets.py [--model Distill-Qwen-7B]... [--device cpu] [--work-dir DIR]

For each model a checkpoint of random weights with its shapes and two layers is written, and
``vacc-deploy quantize --dry-run`` predicts it. The time of the layers is multiplied by the number
of layers that the model has; memory does not depend on that number. Nothing is downloaded. Disk is
that of the output, by the sizes of the tensors. Prints the table of README.
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
from stand_ins import write_shaped, write_sums

LAYERS = 2
TOKENS = 128 * 2048
PRESETS = {
    "rounding": (),
    "light": ("--preset", "light"),
    "full": ("--preset", "full"),
}


def predict(source: Path, preset: str, text: Path, device: str) -> dict[str, Any]:
    """Return the JSON object of a dry run."""
    options = PRESETS[preset]
    if options:
        options = (*options, "--calibration", f"text={text}", "--device", device)
    command = [sys.executable, "-m", "vacc_deploy", "quantize", str(source), *options]
    done = subprocess.run([*command, "--dry-run", "--json"], stdout=subprocess.PIPE, check=True)
    plan: dict[str, Any] = json.loads(done.stdout)
    return plan


def scaled_seconds(plan: dict[str, Any], num_layers: int) -> float | None:
    """Return the predicted seconds of the whole model; None where no time was predicted."""
    parts = plan["estimated_parts"]["seconds"]
    if parts is None:
        return None
    rest = sum(seconds for name, seconds in parts.items() if name != "layers")
    return rest + parts["layers"] * num_layers / LAYERS


@click.command()
@click.option("--model", "names", multiple=True, help="Predict this model.  [default: all six]")
@click.option("--preset", "presets", multiple=True, type=click.Choice(list(PRESETS)))
@click.option("--device", default="cpu", show_default=True, help="Device to quantize on.")
@click.option("--work-dir", type=click.Path(path_type=Path), help="Directory to work in.")
def main(
    names: tuple[str, ...], presets: tuple[str, ...], device: str, work_dir: Path | None
) -> None:
    """Print the table."""
    from vacc_deploy.models.catalog import find_model, official_models
    from vacc_deploy.results import format_bytes, format_seconds
    from vacc_deploy.vamc.cards import weight_bytes

    click.echo(f"predicted on {machine(device)}\n")
    click.echo("| model | preset | time | memory | device memory | disk |")
    click.echo("|---|---|---:|---:|---:|---:|")
    for model in map(find_model, names) if names else official_models():
        with tempfile.TemporaryDirectory(dir=work_dir) as folder:
            source, text = Path(folder) / "model", Path(folder) / "text.txt"
            write_shaped(source, model.config_values, LAYERS)
            write_sums(text, TOKENS)
            for preset in presets or PRESETS:
                plan = predict(source, preset, text, device)
                seconds = scaled_seconds(plan, model.config.num_hidden_layers)
                cells = [
                    model.aliases[0],
                    preset,
                    "–" if seconds is None else format_seconds(seconds),
                ]
                for key in ("estimated_memory_bytes", "estimated_device_memory_bytes"):
                    cells.append(format_bytes(plan[key]) if plan[key] else "–")
                # Of the default layout: float16 values.
                cells.append(format_bytes(weight_bytes(model.config, "fp16")))
                click.echo(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
