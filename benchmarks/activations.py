"""Measure the largest activations of a model on several texts, and by how much they differ.

    python benchmarks/activations.py CHECKPOINT --text FILE... [--tokens 511]

The first text is the package's own. Prints the audit of ``verify`` for it, and for every kind of
tensor the largest ratio of its maxima in one layer between two texts. There is no floor.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import click
from measured import machine

from vacc_deploy.assets import default_text_file
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.reference.compare import compare_on_tokens
from vacc_deploy.reference.ranges import ActivationRange, describe_ranges, describe_risk
from vacc_deploy.reference.windows import read_windows


def audit(checkpoint: Checkpoint, text: Path, tokens: int) -> list[ActivationRange]:
    """Return the ranges of a checkpoint on a text."""
    windows, _ = read_windows(checkpoint, text, max_tokens=tokens, sequence_length=512)
    return compare_on_tokens(checkpoint, checkpoint, windows, audit=True).ranges


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--text", "texts", multiple=True, type=click.Path(exists=True, path_type=Path))
@click.option("--tokens", default=511, show_default=True, help="Tokens of every text.")
def main(directory: Path, texts: tuple[Path, ...], tokens: int) -> None:
    """Print the audit and the ratios for the checkpoint DIRECTORY."""
    checkpoint = Checkpoint.open(directory)
    click.echo(f"{directory.name}, {tokens} tokens, {machine()}")
    found = [audit(checkpoint, text, tokens) for text in (default_text_file(), *texts)]
    click.echo(f"{describe_ranges(found[0])}\n{describe_risk(found[0])}")
    ratios = defaultdict[tuple[str, str], list[float]](list)
    for same in zip(*found, strict=True):
        sizes = [each.max_abs for each in same]
        ratios[same[0].stage, same[0].tensor].append(max(sizes) / min(sizes))
    for (stage, tensor), values in ratios.items():
        click.echo(f"| {stage} {tensor} | {max(values):.2f} |")


if __name__ == "__main__":
    main()
