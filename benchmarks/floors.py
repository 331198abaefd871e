"""Measure what the parts of a calibrated run cannot go below on this machine.

One product of the right shape and dtype is timed for every distinct shape of the forward pass, of
the Hessians and of the solve, and one Cholesky for every size; each is then counted as often as
the run needs it. Nothing else is in a floor: no norm, no rounding, no search, no waiting.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name

from vacc_deploy.models.config import LAYER_LINEARS, ModelConfig
from vacc_deploy.reference.decoder import STAGE_LINEARS

# Tokens of one product. A GPU needs more of them to be busy.
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
# A sample of more operations than this is cut, and its time scaled up.
_SAMPLE_FLOPS = {"cpu": 2e11, "cuda": 4e13}
_LARGEST_CHOLESKY = {"cpu": 8192, "cuda": 1 << 20}
_SOLVE_BLOCK = 128
_TRIANGLE_BLOCKS = 8
_REPEATS = 3

Product = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """The size of a run.

    Attributes:
        config: the architecture.
        num_rows: calibration rows.
        sequence_length: tokens of a row.
        with_down: whether down_proj is calibrated too.
        num_float_rows: rows that go through the float layers too.
    """

    config: ModelConfig
    num_rows: int
    sequence_length: int
    with_down: bool = True
    num_float_rows: int = 0

    @property
    def num_tokens(self) -> int:
        """Calibration tokens in all."""
        return self.num_rows * self.sequence_length

    def stages(self) -> list[tuple[int, tuple[str, ...]]]:
        """Return the input width and the linears of each stage that has a Hessian."""
        names = [n for n in STAGE_LINEARS.values() if self.with_down or "down_proj" not in n]
        return [(self.config.linear_shape(linears[0])[1], linears) for linears in names]


def measure_floors(work: Workload, device: str) -> dict[str, float]:
    """Return the floor of each part in seconds: forward, hessian, factor and solve.

    Args:
        work: size of the run.
        device: where to measure, ``cpu`` or a ``cuda`` device.
    """
    meter, layers = _Meter(torch.device(device)), work.config.num_hidden_layers
    forward = sum(meter.linear(*work.config.linear_shape(n)) for n in LAYER_LINEARS)
    float_tokens = work.num_float_rows * work.sequence_length
    # What the quantized layers have changed is multiplied by the inputs, but for down_proj.
    cross = sum(
        meter.linear(width, width) for width, names in work.stages() if "down_proj" not in names
    )
    per_layer = {
        "forward": forward * (work.num_tokens + float_tokens)
        + meter.attention(work) * (1 + work.num_float_rows / work.num_rows),
        "hessian": sum(meter.hessian(width) for width, _ in work.stages()) * work.num_tokens
        + cross * float_tokens,
        "factor": sum(meter.cholesky(width) for width, _ in work.stages()),
        "solve": sum(
            meter.solve(*work.config.linear_shape(name))
            for _, linears in work.stages()
            for name in linears
        ),
    }
    return {part: seconds * layers for part, seconds in per_layer.items()}


class _Meter:
    """Times products on one device; every distinct shape once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._limit, self._batch = _SAMPLE_FLOPS[device.type], BATCH_TOKENS[device.type]
        self._known: dict[tuple[object, ...], float] = {}

    def linear(self, out_features: int, in_features: int) -> float:
        """Return the seconds a token through one linear, bfloat16."""
        rows = self._cut(self._batch, 2 * out_features * in_features)

        def prepare() -> list[Product]:
            inputs = self._random(rows, in_features).bfloat16()
            weight = self._random(out_features, in_features).bfloat16()
            return [lambda: F.linear(inputs, weight)]

        seconds = self._best(("linear", out_features, in_features), prepare)
        return seconds / rows

    def attention(self, work: Workload) -> float:
        """Return the seconds of causal attention of all rows of one layer, bfloat16."""
        config, seq = work.config, work.sequence_length
        heads = config.num_attention_heads
        rows = min(work.num_rows, max(1, self._batch // seq))

        def prepare() -> list[Product]:
            states = [self._random(rows, heads, seq, config.head_dim).bfloat16() for _ in range(3)]
            return [lambda: F.scaled_dot_product_attention(*states, is_causal=True)]

        return self._best(("attention", rows, seq), prepare) * work.num_rows / rows

    def hessian(self, width: int) -> float:
        """Return the seconds a token of XᵀX [width, width]: the fastest of several ways.

        Full squares and the blocks of the upper triangle; float32 and bfloat16 inputs, and on a
        CPU float32 matrices multiplied by its bfloat16 units.
        """
        tokens = self._cut(self._batch, 2 * width * width)

        def prepare() -> list[Product]:
            single = self._random(tokens, width)
            half = single.bfloat16()
            ways = [lambda x=x: x.T @ x for x in (single, half)]
            ways += [lambda x=x: _upper_blocks(x) for x in (single, half)]
            if self._device.type == "cpu":
                ways += [lambda: _mixed(single.T.__matmul__, single)]
                ways += [lambda: _mixed(_upper_blocks, single)]
            return ways

        return self._best(("hessian", width), prepare) / tokens

    def cholesky(self, size: int) -> float:
        """Return the seconds of one Cholesky factorisation [size, size] in float32."""
        measured = min(size, _LARGEST_CHOLESKY[self._device.type])

        def prepare() -> list[Product]:
            base = self._random(measured, min(measured, 256))
            matrix = (base @ base.T / base.shape[1]).add_(torch.eye(measured, device=self._device))
            return [lambda: torch.linalg.cholesky(matrix)]

        return self._best(("cholesky", measured), prepare) * (size / measured) ** 3

    def solve(self, out_features: int, in_features: int) -> float:
        """Return the seconds of the products that carry errors on, half a square, float32.

        One block of columns takes the errors of the finished ones: on average half of all.
        """
        block, done = min(_SOLVE_BLOCK, in_features), max(1, in_features // 2)

        def prepare() -> list[Product]:
            errors = self._random(out_features, done)
            factor = self._random(done, block)
            return [lambda: errors @ factor]

        seconds = self._best(("solve", out_features, in_features), prepare)
        return seconds * in_features / block

    def _cut(self, count: int, flops: int) -> int:
        """Return how many of ``count`` items of ``flops`` each a sample may hold."""
        return max(1, min(count, int(self._limit / flops)))

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self._device)

    def _best(self, key: tuple[object, ...], prepare: Callable[[], list[Product]]) -> float:
        """Return the seconds of the fastest of some ways to compute the same."""
        if key not in self._known:
            with torch.inference_mode():
                self._known[key] = min(self._time(product) for product in prepare())
        return self._known[key]

    def _time(self, product: Product) -> float:
        """Return the median seconds of a few calls, after one that warms up."""
        product()
        if self._device.type == "cuda":
            return statistics.median(self._time_cuda(product) for _ in range(_REPEATS))
        seconds = []
        for _ in range(_REPEATS):
            started = time.perf_counter()
            product()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    def _time_cuda(self, product: Product) -> float:
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started.record()
        product()
        ended.record()
        torch.cuda.synchronize(self._device)
        return started.elapsed_time(ended) / 1000


def _upper_blocks(inputs: torch.Tensor) -> None:
    """Compute XᵀX above the diagonal, by blocks of rows."""
    width = inputs.shape[1]
    step = -(-width // _TRIANGLE_BLOCKS)
    for start in range(0, width, step):
        _ = inputs[:, start : start + step].T @ inputs[:, start:]


def _mixed(product: Callable[[torch.Tensor], object], inputs: torch.Tensor) -> None:
    """Run a float32 product with bfloat16 factors and float32 sums, where the CPU has them."""
    with _bfloat16_units():
        product(inputs)


@contextmanager
def _bfloat16_units() -> Iterator[None]:
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
