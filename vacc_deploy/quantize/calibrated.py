"""Quantize every layer by GPTQ, carrying the calibration rows through the quantized layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.formats.int8 import SCALE_DTYPE
from vacc_deploy.models.config import LAYER_LINEARS, linear_name
from vacc_deploy.phases import PhaseClock
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.quantize.compute import Compute, choose_compute
from vacc_deploy.quantize.layer_quantizer import LayerQuantizer, SolverSettings, deploy
from vacc_deploy.quantize.layer_walk import LayerWalk, Streams, num_original_rows
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
    read: ReadFinished | None
    told: Callable[[int], None]


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
        options: of the run.
        rows: the calibration tokens.
        spool_dir: where the rows lie if they do not fit the memory.
        clock: counts the seconds of each part; see ``choose_compute`` for its synchronize.
        carried: what an earlier run has finished.
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
        streams = _start(checkpoint, options, rows, compute, spool_dir, ranks)
    make_quantizer = _quantizer_maker(options, rows, compute, clock, ranks, progress)
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
    compute: Compute,
    clock: PhaseClock,
    ranks: Ranks,
    progress: Progress,
) -> MakeQuantizer:
    """Return what makes the quantizer of one layer, given the reader of its exact weights."""
    return partial(
        LayerQuantizer,
        solver_settings(options),
        num_held_out_tokens=rows.num_held_out * rows.tokens.shape[1],
        dtype=compute.dtype,
        clock=clock,
        ranks=ranks,
        progress=progress,
    )


def _carry_through(
    layer: DecoderLayer, walk: LayerWalk, carried: Carried, compute: Compute, ranks: Ranks
) -> None:
    """Carry the rows through a finished layer; tell of it."""
    _deploy_finished(layer, carried.read, compute, ranks)
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
    spool_dir: Path,
    ranks: Ranks,
) -> Streams:
    """Return this rank's rows, embedded: held-out ones first, then those with a float stream.

    Dealt one by one, so that every rank has its share of each kind.
    """
    config, tokens = checkpoint.config, torch.from_numpy(rows.tokens)
    num_original = num_original_rows(config, options, rows.num_fit_rows, rows.num_held_out)
    tokens = tokens[ranks.rank :: ranks.count]
    num_held_out, num_original = (
        len(range(ranks.rank, count, ranks.count)) for count in (rows.num_held_out, num_original)
    )
    return open_streams(checkpoint, tokens, num_held_out, num_original, compute, spool_dir)


def open_streams(
    checkpoint: Checkpoint,
    tokens: torch.Tensor,
    num_held_out: int,
    num_original: int,
    compute: Compute,
    spool_dir: Path,
) -> Streams:
    """Return the embeddings of ``tokens`` int64 [rows, seq], which are in the order of Streams."""
    config = checkpoint.config
    deployed = embed_rows(checkpoint, tokens, compute, spool_dir)
    original = None
    if num_original:
        original = deployed.clone_first(num_original, compute, spool_dir)
    shape = (*tokens.shape, config.num_attention_heads * config.head_dim)
    return Streams(
        deployed,
        original,
        partial(HiddenRows.allocate, shape, compute, spool_dir),
        num_held_out,
        num_original,
        len(tokens),
    )


def _deploy_finished(
    layer: DecoderLayer, read: ReadFinished | None, compute: Compute, ranks: Ranks
) -> None:
    """Deploy the stored linears of a layer; the first rank reads them for all."""
    place = compute.device
    for name in LAYER_LINEARS:
        if read is not None:
            codes, scale = (part.to(place) for part in read(linear_name(layer.index, name)))
        else:
            shape = layer.config.linear_shape(name)
            codes = torch.empty(shape, dtype=torch.int8, device=place)
            scale = torch.empty(shape[0], dtype=SCALE_DTYPE, device=place)
        for part in (codes, scale):
            ranks.broadcast(part, 0)
        deploy(layer, name, codes, scale, compute.dtype)
