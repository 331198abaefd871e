"""Measure the solver's parts on one CUDA device: Hessian, factorisation, solve, block kernel.

    python benchmarks/cuda_solver.py [--shape INxOUT]... [--layers 28] [--tokens 262144] [--tune]

The default shapes are the four stages of DeepSeek-R1-Distill-Qwen-7B. The Hessian is timed on one
batch of tokens and scaled to ``--tokens``. Prints seconds and Tflop/s of every part and the sum
over the layers; then checks the result on a small shape against the CPU's solver and the torch
loop, and exits with 1 if it is wrong. ``--tune`` times other sizes of panels, blocks and programs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import click
import torch
from measured import machine

from vacc_deploy.formats.int8 import choose_scale, dequantize, round_to_nearest
from vacc_deploy.solver import hessian as hessian_sums
from vacc_deploy.solver.block import Block, BlockSolver
from vacc_deploy.solver.gptq import (
    Solution,
    choose_block_solver,
    factorize,
    settle_leaf,
    solve,
)
from vacc_deploy.solver.hessian import accumulate_hessian, find_half_product, mirror_upper

STAGES_7B = ("3584x4608", "3584x3584", "3584x37888", "18944x3584")
SMALL = (1024, 3584)
BATCH_TOKENS = 16384
RUNS = 3
TUNED_PROGRAMS = ((32, 1), (32, 2), (32, 4), (32, 8), (64, 2), (64, 4), (128, 4))


@dataclass(frozen=True)
class Timed:
    """Seconds of one part of one shape, and its floating-point operations."""

    part: str
    seconds: float
    flop: float

    def line(self) -> str:
        """Return it as a row: name, milliseconds, rate."""
        rate = self.flop / self.seconds / 1e12
        return f"  {self.part:28} {self.seconds * 1e3:10.2f} ms {rate:8.1f} Tflop/s"


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_part(device: torch.device, work: Callable[[], object]) -> float:
    """Return the median seconds of ``work`` after one run that warms up."""
    work()
    seconds = []
    for _ in range(RUNS):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def make_inputs(num_tokens: int, in_features: int, device: torch.device) -> torch.Tensor:
    """Return correlated inputs of unequal sizes, [num_tokens, in_features]; bfloat16 on CUDA."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator, device=device)

    inputs = draw(num_tokens, 64) @ draw(64, in_features) / 8
    inputs += draw(num_tokens, in_features)
    inputs *= torch.exp(0.5 * draw(1, in_features))
    return inputs.bfloat16() if device.type == "cuda" else inputs


def make_weight(in_features: int, out_features: int, device: torch.device) -> torch.Tensor:
    """Return a random float32 weight [out_features, in_features]."""
    generator = torch.Generator(device).manual_seed(1)
    weight = torch.randn(out_features, in_features, generator=generator, device=device)
    return weight.mul_(0.02)


def output_error(inputs: torch.Tensor, weight: torch.Tensor, codes: torch.Tensor) -> float:
    """Return ‖X·ΔWᵀ‖ of ``codes`` as a ratio of rounding's."""
    scale = choose_scale(weight)
    norms = [
        torch.linalg.vector_norm(inputs.float() @ (dequantize(c, scale) - weight).T).item()
        for c in (codes, round_to_nearest(weight, scale))
    ]
    return norms[0] / norms[1]


def measure_shape(
    in_features: int, out_features: int, device: torch.device, num_batch_tokens: int
) -> list[Timed]:
    """Print and return the parts of one shape: hessian, cholesky, solve, kernel alone."""
    inputs = make_inputs(num_batch_tokens, in_features, device)
    hessian = torch.zeros(in_features, in_features, device=device)
    # The upper triangle, a multiplication and an addition each.
    flop = num_batch_tokens * in_features * (in_features + 1)
    seconds = time_part(device, partial(accumulate_hessian, hessian, inputs))
    timed = [Timed(f"hessian, {num_batch_tokens} tokens", seconds, flop)]
    hessian.zero_()
    accumulate_hessian(hessian, inputs)
    mirror_upper(hessian)
    # Damping an already damped diagonal changes nothing that is timed.
    seconds = time_part(device, partial(factorize, hessian, 0.01))
    timed.append(Timed("cholesky", seconds, in_features**3 / 3))
    factor = factorize(hessian, 0.01)
    assert factor is not None
    del hessian
    weight = make_weight(in_features, out_features, device)
    scale = choose_scale(weight)
    seconds = time_part(device, lambda: solve(weight, scale, factor))
    timed.append(Timed("solve", seconds, in_features**2 * out_features))
    seconds = time_part(device, lambda: solve_blocks(factor.unit_rows, out_features, None))
    solver = choose_block_solver(device, torch.float32)
    flop = in_features * solver.max_columns * out_features
    timed.append(Timed("  blocks alone", seconds, flop))
    solution = solve(weight, scale, factor)
    click.echo(f"{in_features} x {out_features}")
    for part in timed:
        click.echo(part.line())
    error = output_error(inputs[:2048], weight, solution.codes)
    click.echo(f"  error / rounding's {error:.4f}, {solution.num_saturated} codes saturated")
    return timed


def solve_blocks(
    unit_rows: torch.Tensor,
    out_features: int,
    solve_block: Callable[[Block], None] | None,
    *,
    max_columns: int | None = None,
) -> None:
    """Solve every diagonal block of a factor, on values that do not matter."""
    solver = choose_block_solver(unit_rows.device, unit_rows.dtype)
    solve_block, width = solve_block or solver.solve, max_columns or solver.max_columns
    targets = unit_rows.new_full((width, out_features), 3.3)
    errors, codes = targets.clone(), torch.empty_like(targets, dtype=torch.int8)
    count = torch.zeros(1, dtype=torch.int32, device=unit_rows.device)
    for start in range(0, len(unit_rows) - width + 1, width):
        columns = slice(start, start + width)
        solve_block(Block(unit_rows[columns, columns], targets, errors, codes, count))


def print_totals(
    shapes: list[list[Timed]], num_layers: int, num_tokens: int, num_batch_tokens: int
) -> None:
    """Print the seconds of all layers, part by part."""
    hessian, cholesky, solving, blocks = (
        num_layers * sum(part.seconds for part in parts) for parts in zip(*shapes, strict=True)
    )
    hessian *= num_tokens / num_batch_tokens
    click.echo(
        f"{num_layers} layers, {num_tokens} tokens: hessian {hessian:.2f} s, cholesky "
        f"{cholesky:.2f} s, solve {solving:.2f} s (blocks {blocks:.2f} s), "
        f"together {hessian + cholesky + solving:.2f} s"
    )


def solve_small(device: torch.device, solver: BlockSolver | None) -> tuple[float, Solution]:
    """Return seconds and solution of the small shape; the same numbers on every device."""
    in_features, out_features = SMALL
    cpu = torch.device("cpu")
    inputs = make_inputs(4096, in_features, cpu).to(device)
    weight = make_weight(in_features, out_features, cpu).to(device)
    hessian = torch.zeros(in_features, in_features, device=device)
    accumulate_hessian(hessian, inputs)
    mirror_upper(hessian)
    factor, scale = factorize(hessian, 0.01), choose_scale(weight)
    assert factor is not None
    seconds = time_part(device, lambda: solve(weight, scale, factor, block_solver=solver))
    return seconds, solve(weight, scale, factor, block_solver=solver)


def check_small(device: torch.device) -> list[str]:
    """Print the small shape on the device, in the torch loop, on the CPU; return the problems."""
    seconds, fused = solve_small(device, None)
    seconds_loop, loop = solve_small(device, BlockSolver(16, settle_leaf))
    seconds_cpu, reference = solve_small(torch.device("cpu"), None)
    cpu = torch.device("cpu")
    inputs, weight = make_inputs(4096, SMALL[0], cpu), make_weight(*SMALL, cpu)
    errors = [output_error(inputs, weight, s.codes.cpu()) for s in (fused, loop, reference)]
    same = (fused.codes.cpu() == reference.codes).float().mean().item()
    click.echo(f"check on {SMALL[0]} x {SMALL[1]}")
    click.echo(
        f"  solve {seconds * 1e3:.1f} ms, torch loop {seconds_loop * 1e3:.1f} ms "
        f"({seconds_loop / seconds:.1f}x), CPU {seconds_cpu * 1e3:.0f} ms"
    )
    click.echo(
        f"  error / rounding's: {errors[0]:.5f}, torch loop {errors[1]:.5f}, CPU {errors[2]:.5f}; "
        f"{same:.4%} of the codes equal the CPU's"
    )
    problems = []
    for name, error in (("the torch loop", errors[1]), ("the CPU", errors[2])):
        if abs(errors[0] / error - 1) > 0.01:
            problems.append(f"the error differs from that of {name} by more than 1 %")
    if int(fused.codes.abs().max()) > 127:
        problems.append("a code is outside ±127")
    allowed_before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    _, again = solve_small(device, None)
    torch.backends.cuda.matmul.allow_tf32 = allowed_before
    if not torch.equal(again.codes, fused.codes):
        problems.append("the codes change with TF32 allowed, or from run to run")
    return problems


def check_hessian(device: torch.device) -> list[str]:
    """Print the error of a Hessian beside float64; return the problems."""
    inputs = make_inputs(8192, 2500, device)
    hessian = torch.zeros(2500, 2500, device=device)
    accumulate_hessian(hessian, inputs)
    exact = inputs.double().T @ inputs.double()
    sizes = exact.diagonal().sqrt()
    error = ((hessian.double() - exact) / sizes[:, None] / sizes).triu().abs().max().item()
    click.echo(f"  largest error of a Hessian's entry {error:.1e} of its diagonal's")
    return ["the Hessian is not summed in float32"] if error > 1e-4 else []


def tune(device: torch.device) -> None:
    """Print the time of other sizes than the chosen ones."""
    from vacc_deploy.solver.triton_kernel import LaunchConfig, solve_block

    click.echo("panels of a Hessian of 18944 and 3584 inputs, ms for 16384 tokens")
    for size in (18944, 3584):
        inputs = make_inputs(BATCH_TOKENS, size, device)
        hessian = torch.zeros(size, size, device=device)
        for rows in (512, 1024, 2048, 4096):
            hessian_sums._PANEL_ROWS = rows  # read at each call
            seconds = time_part(device, partial(accumulate_hessian, hessian, inputs))
            click.echo(f"  {size} panel {rows}: {seconds * 1e3:.2f}")
    click.echo("blocks, microseconds a launch")
    unit_rows = torch.eye(3584, device=device)
    for num_outputs in (3584, 4608, 37888):
        for width in (64, 128):
            for block_outputs, num_warps in TUNED_PROGRAMS:
                config = LaunchConfig(width, block_outputs, num_warps)
                tuned = partial(solve_block, config=config)
                work = partial(solve_blocks, unit_rows, num_outputs, tuned, max_columns=width)
                micros = time_part(device, work) * 1e6 / (3584 // width)
                click.echo(
                    f"  {num_outputs} outputs, {width} columns, programs of {block_outputs} "
                    f"with {num_warps} warps: {micros:.1f}"
                )


def describe(device: torch.device) -> str:
    """Return one line that names the device and what runs on it."""
    if device.type != "cuda":
        return machine()
    product = find_half_product(device, torch.bfloat16)
    solver = choose_block_solver(device, torch.float32)
    return (
        f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, bfloat16 products by "
        f"{product.__name__ if product else 'float32'}, blocks of {solver.max_columns} by "
        f"{solver.solve.__name__}"
    )


def parse_shapes(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> list[tuple[int, int]]:
    """Return the shapes as pairs of numbers."""
    shapes = []
    for value in values:
        parts = value.split("x")
        if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
            raise click.BadParameter(f"{value!r} is not IN_FEATURESxOUT_FEATURES, as 3584x4608")
        shapes.append((int(parts[0]), int(parts[1])))
    return shapes


@click.command()
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    default=STAGES_7B,
    callback=parse_shapes,
    metavar="INxOUT",
    help="Measure this shape; may be repeated.",
)
@click.option("--layers", "num_layers", default=28, show_default=True, help="Layers to add up.")
@click.option(
    "--tokens",
    "num_tokens",
    default=128 * 2048,
    show_default=True,
    help="Tokens to scale the Hessian to.",
)
@click.option(
    "--batch-tokens",
    "num_batch_tokens",
    default=BATCH_TOKENS,
    show_default=True,
    help="Tokens that are timed.",
)
@click.option(
    "--device", "device_name", default="cuda", show_default=True, help="Device to measure on."
)
@click.option("--tune", "is_tuning", is_flag=True, help="Time other sizes too.")
def main(
    shapes: list[tuple[int, int]],
    num_layers: int,
    num_tokens: int,
    num_batch_tokens: int,
    device_name: str,
    is_tuning: bool,
) -> None:
    """Print what the solver's parts cost on a CUDA device, and check them."""
    device = torch.device(device_name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("no CUDA device; --device cpu runs the same on the CPU")
    click.echo(describe(device))
    with torch.inference_mode():
        timed = [measure_shape(*shape, device, num_batch_tokens) for shape in shapes]
        print_totals(timed, num_layers, num_tokens, num_batch_tokens)
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device) / 2**30
            click.echo(f"peak device memory {peak:.2f} GiB")
        problems = check_small(device) + check_hessian(device)
        if is_tuning and device.type == "cuda":
            tune(device)
    if problems:
        raise click.ClickException("; ".join(problems))
    click.echo("all checks passed")


if __name__ == "__main__":
    main()
