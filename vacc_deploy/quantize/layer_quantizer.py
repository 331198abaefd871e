"""Quantize the linears of one decoder layer while its stages are walked.

For every stage: the sums over its inputs are complete before any of its linears is applied, so each
linear is quantized once, applied once, and the next stage sees the quantized outputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch

from vacc_deploy.errors import QuantizationError
from vacc_deploy.formats.int8 import dequantize
from vacc_deploy.models.config import linear_name
from vacc_deploy.phases import PhaseClock
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.quantize.options import FAST, QuantizeOptions
from vacc_deploy.quantize.ranks import ALONE, Ranks, join_statistics
from vacc_deploy.quantize.result import summarize_linear
from vacc_deploy.reference.decoder import DOWN, STAGE_LINEARS, DecoderLayer
from vacc_deploy.solver.correction import regress_shift
from vacc_deploy.solver.gptq import Factor, factorize
from vacc_deploy.solver.linear import (
    Candidate,
    Judge,
    choose,
    choose_scales,
    correct_weight,
    round_weight,
    solve_weight,
)
from vacc_deploy.solver.records import LinearRecord, QuantizedLinear
from vacc_deploy.solver.stage_sums import HeldOut, StageStatistics

_DAMAGED_BEFORE = (
    "Weights before it are damaged, or far too large: vacc-deploy verify reads all of them and "
    "names the damaged ones."
)

# Held-out tokens on which GPTQ and rounding are compared; enough for two digits of the ratio.
MAX_HELD_OUT_TOKENS = 512


@dataclass(frozen=True)
class Batch:
    """Some rows, all of one kind.

    Attributes:
        rows: where they are.
        is_held_out: whether they judge instead of being fitted.
        has_float_states: whether they go through the float layers too.
    """

    rows: slice
    is_held_out: bool
    has_float_states: bool


@dataclass(frozen=True)
class Stage:
    """What the linears of one stage share, since they share their inputs.

    Attributes:
        factor: the factored Hessian of the inputs; None leaves only rounding.
        correction: G of ``regress_shift``, float32 [in, in], or None.
        held_out: inputs that the Hessian has not seen.
        scale_search: see ``search_scale``.
    """

    factor: Factor | None
    correction: torch.Tensor | None
    held_out: HeldOut
    scale_search: bool


def quantize_linear(
    name: str, weight: torch.Tensor, stage: Stage, clock: PhaseClock
) -> tuple[Candidate, LinearRecord]:
    """Return the better of rounding and GPTQ on held-out inputs, and what both did.

    Args:
        name: the linear's full name.
        weight: float32 [out, in].
        stage: of the linear.
        clock: counts the seconds of each step.

    Raises:
        QuantizationError: the weight, or what was made of it, is not finite; names the tensor and
            the row.
    """
    with clock.phase("compare"):
        with _locating(f"{name}.weight"):
            rounded = round_weight(weight)
        judge = Judge(weight, stage.held_out)
        rounded = judge.rate(rounded)
    if stage.factor is None:
        return choose(name, rounded)
    target, strength = weight, 0.0
    if stage.correction is not None:
        with clock.phase("correction"):
            target, strength = correct_weight(weight, stage.correction, judge)
    with _locating(f"{name}.weight after its correction"):
        with clock.phase("scale search"):
            scale, shrink = choose_scales(target, stage.factor, search=stage.scale_search)
        with clock.phase("solve"):
            solved = solve_weight(target, scale, stage.factor)
    with clock.phase("compare"):
        # Judged by the stored weight, not by the target: the correction has to pay off too.
        solved = judge.rate(replace(solved, correction=strength, scale_shrink=shrink))
    return choose(name, rounded, solved, stage.factor)


@contextmanager
def _locating(tensor: str, advice: str = "") -> Iterator[None]:
    """Name the tensor in an error that the mathematics raise, and what to do about it."""
    try:
        yield
    except QuantizationError as err:
        err.locate(tensor, advice=advice)
        raise


class LayerQuantizer:
    """Sees the inputs of each stage, then replaces the stage's linears by their int8 form.

    Attributes:
        linears: the codes and scales of the finished linears.
        records: one record per finished linear.
        seconds: what each finished linear took, without what its stage shares.
    """

    def __init__(
        self,
        options: QuantizeOptions,
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
            options: what shapes the codes.
            read_exact: returns the float32 weight of a name.
            num_held_out_tokens: tokens in the held-out rows of all ranks.
            dtype: dtype of the activations.
            clock: counts the seconds of each part.
            ranks: the processes of the run; each sees some rows.
            progress: told of every linear.
        """
        self.linears: list[QuantizedLinear] = []
        self.records: list[LinearRecord] = []
        self.seconds: list[float] = []
        self._progress = progress
        self._options, self._read_exact, self._clock = options, read_exact, clock
        self._dtype, self._ranks = dtype, ranks
        # An ordinary run has no such phase at all.
        self._exchange_phase: Callable[[str], AbstractContextManager[object]] = (
            clock.phase if ranks.count > 1 else nullcontext
        )
        # Rounded up: rounded down, the sample could have nearly twice as many.
        self._stride = max(1, -(-num_held_out_tokens // MAX_HELD_OUT_TOKENS))
        self._statistics = StageStatistics()

    def skips(self, stage: str) -> bool:
        """Return whether the linears of ``stage`` are rounded without looking at their inputs."""
        return stage == DOWN and self._options.effort == FAST

    def observe(
        self,
        batch: Batch,
        inputs: torch.Tensor,
        float_inputs: torch.Tensor | None,
        *,
        residual: torch.Tensor | None = None,
    ) -> None:
        """Add inputs [rows, seq, in_features] of the current stage.

        Args:
            batch: whose inputs they are.
            inputs: behind quantized layers.
            float_inputs: the same rows behind float layers, or None.
            residual: what the stage's output is added to, [rows, seq, hidden]. The next norm
                divides by its size, so an error counts the less the larger it is.
        """
        if batch.is_held_out:
            with self._clock.phase("hessian"):
                self._sample(batch, inputs, float_inputs)
            return
        tokens = inputs.flatten(0, 1)  # [rows · seq, in]
        float_tokens = None if float_inputs is None else float_inputs.flatten(0, 1)
        with self._clock.phase("hessian"):
            if float_tokens is None:
                # Batches with a float stream come before those without.
                self._statistics.end_shared()
            weights = None if residual is None else token_weights(residual.flatten(0, 1))
            self._statistics.add_fit(tokens, float_tokens, weights)

    def _sample(
        self, batch: Batch, inputs: torch.Tensor, float_inputs: torch.Tensor | None
    ) -> None:
        """Keep some tokens of held-out rows: the same ones however the rows are batched."""
        for index, row in enumerate(range(batch.rows.start, batch.rows.stop)):
            num_before = row * inputs.shape[1]
            self._statistics.add_held_out(
                inputs[index],  # [seq, in]
                None if float_inputs is None else float_inputs[index],
                self._stride,
                first=-num_before % self._stride,
            )

    def complete(self, stage: str, layer: DecoderLayer) -> None:
        """Quantize the linears of ``stage`` and let ``layer`` compute with their codes.

        Raises:
            QuantizationError: a weight or the activations are not finite; names the tensor.
        """
        names = STAGE_LINEARS[stage]
        if self.skips(stage):
            for name in names:
                self._round(layer, name)
            return
        # The next stage begins its own sums, while those of this one are used up.
        statistics, self._statistics = self._statistics, StageStatistics()
        with _locating(f"The inputs of {linear_name(layer.index, names[0])}", _DAMAGED_BEFORE):
            prepared = self._prepare(statistics)
        del statistics
        for name in names:
            self._quantize(layer, name, prepared)

    def _round(self, layer: DecoderLayer, name: str) -> None:
        full_name = linear_name(layer.index, name)
        with self._watch(layer.index, name), self._clock.phase("solve"):
            weight = self._read_exact(f"{full_name}.weight")
            with _locating(f"{full_name}.weight"):
                rounded = round_weight(weight)
            self._take(layer, name, *choose(full_name, rounded))

    def _quantize(self, layer: DecoderLayer, name: str, stage: Stage) -> None:
        full_name = linear_name(layer.index, name)
        with self._watch(layer.index, name):
            weight = self._read_exact(f"{full_name}.weight")
            chosen, record = quantize_linear(full_name, weight, stage, self._clock)
            # Every rank has solved the same; what they go on with must not differ by a rounding.
            with self._exchange_phase("exchange"):
                self._ranks.broadcast(chosen.codes, chosen.scale)
            self._take(layer, name, chosen, record)

    @contextmanager
    def _watch(self, layer: int, name: str) -> Iterator[None]:
        """Tell of a linear and note its seconds."""
        self._progress.note(summarize_linear(layer, name, self.records))
        started = time.perf_counter()
        yield
        self.seconds.append(time.perf_counter() - started)

    def _prepare(self, statistics: StageStatistics) -> Stage:
        """Return what the linears of a stage share; the sums are used up."""
        options, clock = self._options, self._clock
        with self._exchange_phase("exchange"):
            held_out = join_statistics(statistics, self._ranks)
        # The factor shows NaN in the Hessian, and nothing else would show it in these.
        _require_finite(held_out.inputs, held_out.float_inputs, statistics.cross)
        hessian, correction = statistics.hessian, None
        assert hessian is not None
        if statistics.cross is not None:
            with clock.phase("correction"):
                shared = statistics.shared_hessian
                # Both are changed in place: the regression and the factor damp it differently.
                shared = hessian.clone() if shared is None else shared
                correction = regress_shift(shared, statistics.cross)
        # The factor needs the memory of the sums.
        shared = statistics.hessian = statistics.shared_hessian = statistics.cross = None
        with clock.phase("factor"):
            factor = factorize(
                hessian,
                options.dampening_frac,
                act_order=options.act_order,
                shrinkage=options.shrinkage,
            )
        return Stage(factor, correction, held_out, options.scale_search)

    def _take(
        self, layer: DecoderLayer, name: str, chosen: Candidate, record: LinearRecord
    ) -> None:
        set_codes(layer, name, chosen.codes, chosen.scale, self._dtype)
        self.linears.append(QuantizedLinear(record.name, chosen.codes, chosen.scale))
        self.records.append(record)


def set_codes(
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
    layer.set_quantized(name, dequantize(codes, scale).to(dtype))


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
    # [tokens]; 1e-6 bounds the weight of an all-zero token at 1000.
    return (length.square() / residual.shape[-1] + 1e-6).rsqrt()
