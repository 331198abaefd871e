"""Quantize the result of ``quantize`` again in the ways vamc may work, and count what changes.

    vacc-deploy quantize SOURCE --calibration ... --format vamc --format int8 --output QUANTIZED
    python benchmarks/requantize.py SOURCE QUANTIZED --calibration c4=FILE

vamc is closed. Its published int8 flow quantizes float weights, so it will quantize those of
QUANTIZED/vamc once more. QUANTIZED/int8 holds the integers that should come out. Two tables:

* integers: how many differ after the vendor's published rounding in three dtypes, and after a GPTQ
  whose Hessians are made of the calibration rows (dampening 0.01, scale from the weights);
* output error on the same rows relative to that of plain rounding of SOURCE: as quantized, and
  after quantizers that would not keep the integers. "alone" is such a quantizer over SOURCE.

Inputs of the linears are those of SOURCE in float32, computed by transformers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import click
import torch
from measured import machine
from transformers import AutoModelForCausalLM

from vacc_deploy.api import Tokenizer, build_rows, parse_source
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.formats.int8 import dequantize, quantize_rounding
from vacc_deploy.solver.gptq import factorize, solve

GROUP = 128
Quantizer = Callable[[torch.Tensor], torch.Tensor]


def vendor_codes(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the codes [out, in] of the vendor's published rounding, all of it in ``dtype``.

    Source: the vendor's quantization_vacc.py: absmax / 127 of each row, the quotient rounded,
    cast to int8 without a clamp.
    """
    weight = weight.to(dtype)
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8)


def symmetric(weight: torch.Tensor, low: int, scale_steps: float) -> torch.Tensor:
    """Return ``weight`` [rows, columns] on its rows' symmetric grid with codes ``low`` to 127."""
    scale = (weight.abs().amax(1, keepdim=True) / scale_steps).clamp_min(1e-12)
    return (weight / scale).round().clamp(low, 127) * scale


def asymmetric(weight: torch.Tensor) -> torch.Tensor:
    """Return ``weight`` [rows, columns] on its rows' grid of 256 steps from minimum to maximum."""
    low, high = weight.amin(1, keepdim=True).clamp_max(0), weight.amax(1, keepdim=True).clamp_min(0)
    scale = ((high - low) / 255).clamp_min(1e-12)
    zero = (-low / scale).round()
    return ((weight / scale + zero).round().clamp(0, 255) - zero) * scale


def in_groups(quantizer: Quantizer) -> Quantizer:
    """Return ``quantizer`` over groups of columns, each with a scale of its own."""

    def grouped(weight: torch.Tensor) -> torch.Tensor:
        return quantizer(weight.reshape(-1, GROUP)).view_as(weight)

    return grouped


def per_channel(weight: torch.Tensor) -> torch.Tensor:
    """Return ``weight`` rounded as the published file does, codes within ±127."""
    return symmetric(weight, -127, 127)


WAYS: dict[str, Quantizer] = {
    "per channel, ±127 (published)": per_channel,
    "per channel, -128 to 127, absmax / 128": lambda weight: symmetric(weight, -128, 128),
    "per channel, -128 to 127, absmax / 127.5": lambda weight: symmetric(weight, -128, 127.5),
    "per channel, asymmetric": asymmetric,
    "groups of 128, ±127": in_groups(per_channel),
    "groups of 128, asymmetric": in_groups(asymmetric),
}


class Tally:
    """Adds up what the linears give."""

    def __init__(self, source: Checkpoint, vamc: Checkpoint, int8: Checkpoint) -> None:
        """Take the float model, the float16 weights to quantize again, and the true integers."""
        self.source, self.vamc, self.int8 = source, vamc, int8
        self.num_codes, self.largest_move = 0, 0
        self.changed: defaultdict[str, int] = defaultdict(int)
        self.ratios: defaultdict[str, list[float]] = defaultdict(list)

    def add(self, name: str, inputs: torch.Tensor, *, is_compared: bool) -> None:
        """Take one linear and its ``inputs`` [tokens, in]; compare the errors if asked to."""
        weight = self.source.read(f"{name}.weight").float()
        stored = self.vamc.read(f"{name}.weight")
        codes = self.int8.read(f"{name}.weight")
        hessian = inputs.T @ inputs  # [in, in]
        self._count(stored, codes, hessian)
        if is_compared:
            scale = self.int8.read(f"{name}.weight_scale")
            self._compare(weight, stored.float(), codes, scale, hessian)

    def _count(self, stored: torch.Tensor, codes: torch.Tensor, hessian: torch.Tensor) -> None:
        self.num_codes += codes.numel()
        for dtype in (torch.float16, torch.float32, torch.bfloat16):
            label = f"rounding in {str(dtype).removeprefix('torch.')}"
            self.changed[label] += int((vendor_codes(stored, dtype) != codes).sum())
        rounded = vendor_codes(stored.to(torch.bfloat16), torch.float32)
        self.changed["rounding in float32 of weights loaded as bfloat16"] += int(
            (rounded != codes).sum()
        )
        again = stored.float()
        scale = again.abs().amax(1) / 127
        found = solve(again, scale, factorize(hessian.clone(), 0.01)).codes
        move = (found.int() - codes.int()).abs()
        self.changed["GPTQ"] += int((move > 0).sum())
        self.largest_move = max(self.largest_move, int(move.max()))

    def _compare(
        self,
        weight: torch.Tensor,
        stored: torch.Tensor,
        codes: torch.Tensor,
        scale: torch.Tensor,
        hessian: torch.Tensor,
    ) -> None:
        def error(other: torch.Tensor) -> float:
            gap = other - weight
            return float(((gap @ hessian) * gap).sum().clamp_min(0).sqrt())

        rounding = error(dequantize(*quantize_rounding(weight)))
        self.ratios["as quantized"].append(error(dequantize(codes, scale)) / rounding)
        self.ratios["as quantized, products in float16"].append(error(stored) / rounding)
        for label, way in WAYS.items():
            self.ratios[label].append(error(way(stored)) / rounding)
            self.ratios[f"{label}, alone"].append(error(way(weight)) / rounding)

    def show(self) -> None:
        """Print both tables."""
        click.echo(f"{self.num_codes:,} integers\n\n| quantized again | differ | share |")
        click.echo("|---|---:|---:|")
        for label, count in self.changed.items():
            click.echo(f"| {label} | {count:,} | {count / self.num_codes:.4%} |")
        click.echo(f"\nGPTQ moves an integer by at most {self.largest_move}.\n")
        click.echo(
            "| quantizer | output error relative to plain rounding | alone |\n|---|---:|---:|"
        )
        mean = {label: sum(values) / len(values) for label, values in self.ratios.items()}
        for label in ("as quantized", "as quantized, products in float16", *WAYS):
            alone = mean.get(f"{label}, alone")
            shown = "" if alone is None else f"{alone:.3f}"
            click.echo(f"| {label} | {mean[label]:.3f} | {shown} |")


@click.command()
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("quantized", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--calibration", required=True, help="NAME=PATH of the text that gives the inputs.")
@click.option("--num-samples", default=9, show_default=True, help="Rows of text.")
@click.option("--seq-len", default=512, show_default=True, help="Tokens in a row.")
@click.option(
    "--compare-every", default=1, show_default=True, help="Compare errors in one layer of so many."
)
@click.option("--seed", default=1, show_default=True, help="Seed for choosing documents.")
def main(
    source: Path,
    quantized: Path,
    calibration: str,
    num_samples: int,
    seq_len: int,
    compare_every: int,
    seed: int,
) -> None:
    """Quantize QUANTIZED/vamc again and compare with QUANTIZED/int8 and SOURCE."""
    directories = (source, quantized / "vamc", quantized / "int8")
    tally = Tally(*(Checkpoint.open(path) for path in directories))
    rows = build_rows(
        (parse_source(calibration),),
        Tokenizer.from_dir(source),
        num_samples=num_samples,
        sequence_length=seq_len,
        seed=seed,
        vocab_size=tally.source.config.vocab_size,
    )
    tokens = torch.from_numpy(rows.tokens)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    for name in tally.source.config.linear_names():
        # All rows pass at once, so that a linear is called once and its inputs are all there.
        is_compared = int(name.split(".")[2]) % compare_every == 0
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name, is_compared=is_compared: tally.add(
                name, inputs[0].flatten(0, 1), is_compared=is_compared
            )
        )
    with torch.inference_mode():
        model.model(tokens)
    click.echo(f"{source.name}, {tokens.numel():,} tokens of {calibration.partition('=')[0]}")
    click.echo(f"{machine()}\n")
    tally.show()


if __name__ == "__main__":
    main()
