"""Measure what the default limits of ``verify`` have to let through, and what not.

    python benchmarks/limits.py CHECKPOINT [--tokens 511] [--case NAME]...

CHECKPOINT is a float checkpoint. Every case compares two forms of its weights, made while they are
read; nothing is written. The cases of float weights store the same numbers in another dtype; the
others round the linears to fewer bits, with one scale for each row. There is no floor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import click
import torch
from measured import machine

from vacc_deploy.assets import default_text_file
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.reference.compare import compare_on_tokens
from vacc_deploy.reference.windows import read_windows

Alter = Callable[[str, torch.Tensor], torch.Tensor]


class Altered(Checkpoint):
    """A checkpoint whose tensors are altered when they are read."""

    alter: Alter

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor."""
        return self.alter(name, super().read(name))

    def read_rows(self, name, rows):
        """Return some rows of a matrix."""
        return self.alter(name, super().read_rows(name, rows))

    def read_slice(self, name, start, stop):
        """Return the rows from ``start`` to ``stop``."""
        return self.alter(name, super().read_slice(name, start, stop))


def altered(checkpoint: Checkpoint, alter: Alter) -> Checkpoint:
    """Return a checkpoint that reads through ``alter``."""
    copy = Altered(**{f.name: getattr(checkpoint, f.name) for f in fields(Checkpoint)})
    object.__setattr__(copy, "alter", alter)
    return copy


def keep(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor as it is stored."""
    return tensor


def widen(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a float32 tensor that rounds to this bfloat16 one: what it may have been made from."""
    # Within 0.49 of half a bfloat16 step, which is 1/256 of a number at most. A function of the
    # value alone, so that a row is the same however it is read.
    values = tensor.float()
    noise = torch.frac(values.abs().double() * 1e7 * 0.6180339887).float() - 0.5
    _, exponent = torch.frexp(values)
    # A zero is one in every dtype.
    return values + torch.where(values == 0, 0.0, torch.ldexp(noise * 0.98, exponent - 8))


def to_dtype(dtype: torch.dtype, before: Alter = keep) -> Alter:
    """Return what stores every tensor in another dtype."""
    return lambda name, tensor: before(name, tensor).to(dtype)


def to_bits(bits: int) -> Alter:
    """Return what rounds the linears of the layers to so many bits."""
    steps = 2 ** (bits - 1) - 1

    def alter(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not name.endswith("_proj.weight"):
            return tensor
        values = tensor.float()
        scale = values.abs().amax(1, keepdim=True) / steps
        return (values / scale).round_() * scale

    return alter


# Name to what the float model and the deployed one are.
CASES: dict[str, tuple[Alter, Alter]] = {
    "bfloat16 stored as float16": (keep, to_dtype(torch.float16)),
    "float32 stored as bfloat16": (widen, keep),
    "float32 stored as float16": (widen, to_dtype(torch.float16, widen)),
    **{f"codes of {bits} bits": (keep, to_bits(bits)) for bits in (8, 6, 5, 4, 3)},
}


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--tokens", default=511, show_default=True, help="Tokens of the package's text.")
@click.option("--case", "names", multiple=True, help="Measure these only.")
def main(directory: Path, tokens: int, names: tuple[str, ...]) -> None:
    """Print KL and top-1 of every case for the checkpoint DIRECTORY."""
    checkpoint = Checkpoint.open(directory)
    windows, _ = read_windows(
        checkpoint, default_text_file(), max_tokens=tokens, sequence_length=512
    )
    click.echo(f"{directory.name}, {windows.numel():,} tokens, {machine()}")
    for name in names or CASES:
        pair = [altered(checkpoint, alter) for alter in CASES[name]]
        scores = compare_on_tokens(*pair, windows).scores
        click.echo(
            f"| `{directory.name}`, {name} | {scores.num_tokens} | {scores.mean_kl:.6f} ± "
            f"{scores.kl_standard_error:.6f} | {scores.top1:.2%} |"
        )


if __name__ == "__main__":
    main()
