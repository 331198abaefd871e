"""Quantize every layer by GPTQ, carrying the calibration rows through the quantized layers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.models.config import LAYER_LINEARS, linear_name
from vacc_deploy.phases import PhaseClock
from vacc_deploy.progress import SILENT, Progress, RunControl
from vacc_deploy.quantize.compute import Compute, choose_compute
from vacc_deploy.quantize.layer_quantizer import LayerQuantizer, SolverSettings, set_codes
from vacc_deploy.quantize.layer_walk import LayerWalk, Streams, num_float_rows
from vacc_deploy.quantize.layer_weights import LayerWeights, read_layers
from vacc_deploy.quantize.options import FAST, QuantizeOptions
from vacc_deploy.quantize.ranks import ALONE, Ranks
from vacc_deploy.quantize.row_buffers import HiddenRows, embed_rows
from vacc_deploy.reference.decoder import DOWN, DecoderLayer, Positions
from vacc_deploy.solver.records import QuantizedLayer

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows

ReadFinished = Callable[[str], tuple[torch.Tensor, torch.Tensor]]
MakeQuantizer = Callable[[Callable[[str], torch.Tensor]], LayerQuantizer]


@dataclass(frozen=True)
class Carried:
    """Layers that an earlier run has finished.

    Attributes:
        count: how many, from the first on.
        read: returns codes int8 [out, in] and scale float16 [out] of a linear of theirs; None on
            every rank but the first, which sends them.
        told: called with the index of each one that the rows have passed.
    """

    count: int
    read: ReadFinished | None = None
    told: Callable[[int], None] = lambda index: None


def calibrate_layers(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    rows: CalibrationRows,
    *,
    spool_dir: Path,
    clock: PhaseClock,
    carried: Carried | None = None,
    ranks: Ranks = ALONE,
    progress: Progress = SILENT,
) -> Iterator[QuantizedLayer | None]:
    """Yield every layer, quantized by GPTQ; None for one that is finished. The same on every rank.

    Through finished ones the rows are only carried, with the same arithmetic, so that the next
    layer sees the same inputs.

    Args:
        checkpoint: the float weights.
        options: what shapes the result.
        rows: the calibration tokens, of all ranks.
        spool_dir: directory for the rows if they do not fit the memory.
        clock: counts the seconds of each part.
        carried: layers that an earlier run has finished.
        ranks: the processes of the run; each carries its share of the rows.
        progress: told of every linear.

    Raises:
        QuantizationError: a weight or an activation is not finite; names the tensor.
    """
    compute = choose_compute(options.device, options.compute_dtype)
    compute = compute.shared_by(ranks.local_count)
    # Every mode is left before a yield: it belongs to the thread and would reach the caller.
    with torch.inference_mode():
        positions = Positions.build(checkpoint.config, rows.tokens.shape[1], compute.device)
        streams = _start(checkpoint, options, rows, compute, spool_dir=spool_dir, ranks=ranks)
    make_quantizer = _quantizer_maker(
        options, rows, compute.dtype, clock=clock, ranks=ranks, progress=progress
    )
    layers = read_layers(checkpoint, compute)
    while True:
        with clock.phase("read"):
            weights = next(layers, None)
        if weights is None:
            return
        quantized: QuantizedLayer | None = None
        with torch.inference_mode():
            layer = DecoderLayer(checkpoint.config, weights.index, positions, weights.read)
            walk = LayerWalk(layer, weights, streams, compute, clock)
            if carried and weights.index < carried.count:
                _carry_through(layer, walk, carried, compute, ranks)
            else:
                quantized = _quantize_layer(walk, weights, make_quantizer)
        if compute.synchronize is not None:
            # The writers copy the codes on streams of their own.
            compute.synchronize()
        # Nothing of this layer is left here when the next is asked for: the reader has the next
        # one's weights, the caller this one's codes.
        del layer, walk, weights
        yield quantized
        del quantized


def calibrate_along(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    rows: CalibrationRows,
    *,
    control: RunControl,
    ranks: Ranks,
) -> None:
    """Do as a rank that writes nothing what ``shards.write_shards`` does as the first one.

    Returns early where a rank is asked to stop.

    Raises:
        QuantizationError: a weight or an activation is not finite.
        RankLostError: another rank is gone.
    """
    finished = ranks.share(0)  # as rank 0 has read it
    if finished == checkpoint.config.num_hidden_layers:
        return
    layers = calibrate_layers(
        checkpoint,
        options,
        rows,
        # The output's directory may be on the first rank's machine only.
        spool_dir=Path(tempfile.gettempdir()),
        clock=PhaseClock(),
        carried=Carried(finished) if finished else None,
        ranks=ranks,
    )
    with control.watch():
        for _ in layers:
            if ranks.agree(control.stop_signal()) is not None:
                return


def solver_settings(options: QuantizeOptions) -> SolverSettings:
    """Return what the options mean for the solver."""
    return SolverSettings(
        act_order=options.act_order,
        shrinkage=options.shrinkage,
        dampening_frac=options.dampening_frac,
        scale_search=options.scale_search,
        skipped=(DOWN,) if options.effort == FAST else (),
    )


def _quantizer_maker(
    options: QuantizeOptions,
    rows: CalibrationRows,
    dtype: torch.dtype,
    *,
    clock: PhaseClock,
    ranks: Ranks,
    progress: Progress,
) -> MakeQuantizer:
    """Return what makes the quantizer of one layer, given the reader of its exact weights."""
    return partial(
        LayerQuantizer,
        solver_settings(options),
        # Of all ranks: each samples its share of them.
        num_held_out_tokens=rows.num_held_out * rows.tokens.shape[1],
        dtype=dtype,
        clock=clock,
        ranks=ranks,
        progress=progress,
    )


def _carry_through(
    layer: DecoderLayer, walk: LayerWalk, carried: Carried, compute: Compute, ranks: Ranks
) -> None:
    """Carry the rows through a finished layer and report it."""
    _set_finished(layer, carried, compute, ranks)
    walk.carry()
    carried.told(layer.index)


def _quantize_layer(
    walk: LayerWalk, weights: LayerWeights, make_quantizer: MakeQuantizer
) -> QuantizedLayer:
    quantizer = make_quantizer(weights.read_exact)
    walk.quantize(quantizer)
    return QuantizedLayer(
        weights.index,
        tuple(quantizer.linears),
        tuple(quantizer.records),
        tuple(quantizer.seconds),
    )


def _start(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    rows: CalibrationRows,
    compute: Compute,
    *,
    spool_dir: Path,
    ranks: Ranks,
) -> Streams:
    """Return this rank's rows, embedded: held-out ones first, then those with a float stream.

    Dealt one by one, so that every rank has its share of each kind.
    """
    num_float = num_float_rows(checkpoint.config, options, rows.num_fit_rows, rows.num_held_out)
    mine = slice(ranks.rank, None, ranks.count)
    return open_streams(
        checkpoint,
        torch.from_numpy(rows.tokens)[mine],
        compute,
        spool_dir,
        num_held_out=len(range(rows.num_held_out)[mine]),
        num_float=len(range(num_float)[mine]),
    )


def open_streams(
    checkpoint: Checkpoint,
    tokens: torch.Tensor,
    compute: Compute,
    spool_dir: Path,
    *,
    num_held_out: int,
    num_float: int,
) -> Streams:
    """Return the embeddings of ``tokens`` int64 [rows, seq], which are in the order of Streams."""
    config = checkpoint.config
    quantized_states = embed_rows(checkpoint, tokens, compute, spool_dir)
    float_states = None
    if num_float:
        float_states = quantized_states.clone_first(num_float, compute, spool_dir)
    # What o_proj is applied to: [rows, seq, heads · head_dim]
    shape = (*tokens.shape, config.num_attention_heads * config.head_dim)
    return Streams(
        quantized_states,
        float_states,
        partial(HiddenRows.allocate, shape, compute, spool_dir),
        num_held_out,
        num_float,
        len(tokens),
    )


def _set_finished(layer: DecoderLayer, carried: Carried, compute: Compute, ranks: Ranks) -> None:
    """Deploy the stored linears of a layer; rank 0 reads them for all."""
    for name in LAYER_LINEARS:
        stored = ranks.share(carried.read and carried.read(linear_name(layer.index, name)))
        assert stored is not None
        codes, scale = (tensor.to(compute.device) for tensor in stored)
        set_codes(layer, name, codes, scale, compute.dtype)
