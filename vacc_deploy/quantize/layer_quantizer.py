"""Quantize the linears of one decoder layer while its stages are walked.

For every stage: the sums over its inputs are complete before any of its linears is applied, so each
linear is quantized once, applied once, and the next stage sees the quantized outputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from vacc_deploy.errors import QuantizationError
from vacc_deploy.formats.int8 import dequantize
from vacc_deploy.models.config import linear_name
from vacc_deploy.phases import PhaseClock
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.quantize.ranks import ALONE, Ranks, share_evenly
from vacc_deploy.quantize.result import summarize_linear
from vacc_deploy.quantize.stage_exchange import (
    gather_held_out,
    gather_rows,
    share_solution,
    sum_at_owners,
)
from vacc_deploy.reference.decoder import STAGE_LINEARS, DecoderLayer
from vacc_deploy.solver.correction import regress_shift
from vacc_deploy.solver.gptq import dampening_ladder, factorize
from vacc_deploy.solver.linear import StageSolver, round_linear
from vacc_deploy.solver.records import LinearRecord, QuantizedLinear
from vacc_deploy.solver.stage_sums import StageStatistics

# Held-out tokens on which GPTQ and rounding are compared; enough for two digits of the ratio.
MAX_HELD_OUT_TOKENS = 512


@dataclass(frozen=True)
class Batch:
    """Some rows, all of one kind.

    Attributes:
        rows: where they are.
        is_held_out: whether they judge instead of being fitted.
        has_original: whether the float stream has them too.
    """

    rows: slice
    is_held_out: bool
    has_original: bool


@dataclass(frozen=True)
class SolverSettings:
    """What shapes the codes of a calibrated layer.

    Attributes:
        act_order: settle the columns with the largest inputs first.
        shrinkage: of the Hessian towards its diagonal, 0 to 1.
        dampening_frac: the first damping to try, a fraction of the mean diagonal.
        scale_search: choose each row's scale by its expected error.
        skipped: stages whose linears are rounded.
    """

    act_order: bool = True
    shrinkage: float = 0.3
    dampening_frac: float = 0.1
    scale_search: bool = True
    skipped: tuple[str, ...] = ()


class LayerQuantizer:
    """Sees the inputs of each stage, then replaces the stage's linears by their int8 form.

    Attributes:
        linears: the codes and scales of the finished linears.
        records: one record per finished linear.
        seconds: what each finished linear took, without what its stage shares.
    """

    def __init__(
        self,
        settings: SolverSettings,
        read_exact: Callable[[str], torch.Tensor],
        *,
        num_held_out_tokens: int,
        dtype: torch.dtype,
        clock: PhaseClock,
        ranks: Ranks = ALONE,
        progress: Progress = SILENT,
    ) -> None:
        """Begin a layer.

        Args:
            settings: of the solver.
            read_exact: returns the float32 weight of a name.
            num_held_out_tokens: tokens in the held-out rows of all ranks.
            dtype: of the activations.
            clock: counts the seconds of each part.
            ranks: the processes of the run; each sees some rows and quantizes some outputs.
            progress: told of every linear.
        """
        self.linears: list[QuantizedLinear] = []
        self.records: list[LinearRecord] = []
        self.seconds: list[float] = []
        self._progress = progress
        self._settings, self._read_exact, self._clock = settings, read_exact, clock
        self._dtype, self._ranks = dtype, ranks
        self._stride = max(1, -(-num_held_out_tokens // MAX_HELD_OUT_TOKENS))
        self._statistics = StageStatistics()

    def skips(self, stage: str) -> bool:
        """Return whether the linears of ``stage`` are rounded without looking at their inputs."""
        return stage in self._settings.skipped

    def observe(
        self,
        batch: Batch,
        inputs: torch.Tensor,
        original: torch.Tensor | None,
        *,
        residual: torch.Tensor | None = None,
    ) -> None:
        """Add inputs [rows, seq, in_features] of the current stage.

        Args:
            batch: whose inputs they are.
            inputs: behind quantized layers.
            original: the same rows behind float layers, or None.
            residual: what the stage's output is added to, [rows, seq, hidden]. The next norm
                divides by its size, so an error counts the less the larger it is.
        """
        if batch.is_held_out:
            with self._clock.phase("hessian"):
                self._sample(batch, inputs, original)
            return
        tokens = inputs.flatten(0, 1)
        twin = None if original is None else original.flatten(0, 1)
        with self._clock.phase("hessian"):
            if twin is None:
                self._statistics.end_shared()
            weights = None if residual is None else token_weights(residual.flatten(0, 1))
            self._statistics.add_fit(tokens, twin, weights)

    def _sample(self, batch: Batch, inputs: torch.Tensor, original: torch.Tensor | None) -> None:
        """Keep some tokens of held-out rows: the same ones for any batches and number of ranks."""
        ranks, sequence_length = self._ranks, inputs.shape[1]
        for place, row in enumerate(range(batch.rows.start, batch.rows.stop)):
            before = (ranks.rank + row * ranks.count) * sequence_length
            twin = None if original is None else original[place]
            self._statistics.add_held_out(
                inputs[place], twin, self._stride, first=-before % self._stride
            )

    def complete(self, stage: str, layer: DecoderLayer) -> None:
        """Quantize the linears of ``stage`` and deploy them in ``layer``.

        Raises:
            QuantizationError: a weight or the activations are not finite; names the tensor.
        """
        names = STAGE_LINEARS[stage]
        if self.skips(stage):
            for name in names:
                with self._watch(layer.index, name), self._clock.phase("solve"):
                    full_name = linear_name(layer.index, name)
                    weight = self._read_exact(f"{full_name}.weight")
                    self._deploy(layer, name, *round_linear(full_name, weight))
            return
        statistics, self._statistics = self._statistics, StageStatistics()
        try:
            solver = self._prepare(statistics)
        except QuantizationError as err:
            where = linear_name(layer.index, names[0])
            err.locate(f"The inputs of {where}")
            raise
        del statistics
        for name in names:
            with self._watch(layer.index, name):
                self._solve(layer, name, solver)

    @contextmanager
    def _watch(self, layer: int, name: str) -> Iterator[None]:
        """Tell of a linear and note its seconds."""
        self._progress.note(summarize_linear(layer, name, self.records))
        started = time.perf_counter()
        yield
        self.seconds.append(time.perf_counter() - started)

    def _prepare(self, statistics: StageStatistics) -> StageSolver:
        """Return the solver of a stage; the sums are used up."""
        settings, clock, ranks = self._settings, self._clock, self._ranks
        owners = sum_at_owners(statistics, ranks, clock)
        held_out = gather_held_out(statistics.finish(), ranks, clock)
        _require_finite(held_out.deployed, held_out.original, statistics.cross)
        correction = factor = None
        hessian, statistics.hessian = statistics.hessian, None
        if statistics.cross is not None:
            with clock.phase("correction"):
                shared = statistics.shared_hessian
                if shared is None:
                    assert hessian is not None
                    shared = hessian.clone()
                correction = regress_shift(shared, statistics.cross)
        if hessian is not None:
            with clock.phase("factor"):
                factor = factorize(
                    hessian,
                    act_order=settings.act_order,
                    shrinkage=settings.shrinkage,
                    ladder=dampening_ladder(settings.dampening_frac),
                )
        factor, correction = share_solution(
            factor, correction, owners, ranks, like=held_out.deployed, clock=clock
        )
        return StageSolver(
            factor, correction, held_out, settings.scale_search, clock=clock, ranks=ranks
        )

    def _solve(self, layer: DecoderLayer, name: str, solver: StageSolver) -> None:
        """Quantize this rank's rows of a linear, and deploy all of them."""
        ranks, full_name = self._ranks, linear_name(layer.index, name)
        sizes = share_evenly(layer.config.linear_shape(name)[0], ranks.count)
        first = sum(sizes[: ranks.rank])
        weight = self._read_exact(f"{full_name}.weight")[first : first + sizes[ranks.rank]]
        codes, scale, record = solver.quantize(full_name, weight, first)
        codes, scale = gather_rows(codes, scale, sizes, ranks, self._clock)
        self._deploy(layer, name, codes, scale, record)

    def _deploy(
        self,
        layer: DecoderLayer,
        name: str,
        codes: torch.Tensor,
        scale: torch.Tensor,
        record: LinearRecord,
    ) -> None:
        deploy(layer, name, codes, scale, self._dtype)
        self.linears.append(QuantizedLinear(record.name, codes, scale))
        self.records.append(record)


def deploy(
    layer: DecoderLayer,
    name: str,
    codes: torch.Tensor,
    scale: torch.Tensor,
    dtype: torch.dtype,
) -> None:
    """Let ``layer`` compute with codes int8 [out, in] and scale float16 [out].

    In bfloat16 their products are rounded by 1/256 at most, which adds about 1.5 % to the error
    that rounding to int8 has made; only what later layers see is rounded so.
    """
    layer.deploy(name, dequantize(codes, scale).to(dtype))


def _require_finite(*tensors: torch.Tensor | None) -> None:
    """Refuse NaN and infinity in what ``factorize`` does not see; a sum passes them on.

    Raises:
        QuantizationError: one of the tensors holds one.
    """
    for tensor in tensors:
        if tensor is not None and not torch.isfinite(tensor.sum(dtype=torch.float32)):
            raise QuantizationError("the activations hold NaN or infinity")


def token_weights(residual: torch.Tensor) -> torch.Tensor:
    """Return one over the root mean square of each token's residual [tokens, hidden], float32."""
    length = torch.linalg.vector_norm(residual, dim=-1, dtype=torch.float32)
    return (length.square() / residual.shape[-1] + 1e-6).rsqrt()
