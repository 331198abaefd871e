"""Quantize every layer by GPTQ, carrying the calibration rows through the quantized layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.decoder import DOWN, DecoderLayer, Positions
from vacc_deploy.model_config import LAYER_LINEARS, linear_name
from vacc_deploy.phases import PhaseClock
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.quantize.compute import Compute, choose_compute
from vacc_deploy.quantize.hidden_rows import HiddenRows, embed_rows
from vacc_deploy.quantize.layer import LayerQuantizer, SolverSettings, deploy
from vacc_deploy.quantize.layer_weights import LayerWeights, read_layers
from vacc_deploy.quantize.plan import FAST, QuantizeOptions, num_original_rows
from vacc_deploy.quantize.report import QuantizedLayer
from vacc_deploy.quantize.walk import LayerWalk, Streams

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows

ReadFinished = Callable[[str], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Carried:
    """Layers that an earlier run has finished.

    Attributes:
        count: how many, from the first on.
        read: returns codes int8 [out, in] and scale float16 [out] of a linear of theirs.
        told: called with the index of each one that the rows have passed.
    """

    count: int
    read: ReadFinished
    told: Callable[[int], None]


def calibrate_layers(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    rows: CalibrationRows,
    *,
    spool_dir: Path,
    clock: PhaseClock,
    carried: Carried | None = None,
    progress: Progress = SILENT,
) -> Iterator[QuantizedLayer]:
    """Yield every layer that is not finished, quantized by GPTQ.

    Through finished ones the rows are only carried, with the same arithmetic, so that the next
    layer sees the same inputs.

    Args:
        checkpoint: the float weights.
        options: of the run.
        rows: the calibration tokens.
        spool_dir: where the rows lie if they do not fit the memory.
        clock: counts the seconds of each part; see ``choose_compute`` for its synchronize.
        carried: what an earlier run has finished.
        progress: told of every linear.

    Raises:
        QuantizationError: a weight or an activation is not finite; names the tensor.
    """
    compute = choose_compute(options.device, options.compute_dtype)
    finished = carried.count if carried else 0
    # Every mode is left before a yield: it belongs to the thread and would reach the caller.
    with torch.inference_mode():
        positions = Positions.build(checkpoint.config, rows.tokens.shape[1], compute.device)
        streams = _start(checkpoint, options, rows, compute, spool_dir)
    settings = solver_settings(options)
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
            if carried and weights.index < finished:
                _deploy_finished(layer, carried.read, compute)
                walk.carry()
                carried.told(weights.index)
            else:
                quantized = _quantize_layer(walk, weights, settings, streams, clock, progress)
        if compute.synchronize is not None:
            # The writers copy the codes on streams of their own.
            compute.synchronize()
        # Nothing of this layer is left here when the next is asked for: the reader has the next
        # one's weights, the caller this one's codes.
        del layer, walk, weights
        if quantized is not None:
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


def _quantize_layer(
    walk: LayerWalk,
    weights: LayerWeights,
    settings: SolverSettings,
    streams: Streams,
    clock: PhaseClock,
    progress: Progress,
) -> QuantizedLayer:
    quantizer = LayerQuantizer(
        settings,
        weights.read_exact,
        num_held_out_tokens=streams.num_held_out * streams.deployed.buffer.shape[1],
        dtype=streams.deployed.buffer.dtype,
        clock=clock,
        progress=progress,
    )
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
) -> Streams:
    """Return the embedded rows, held-out ones first."""
    config, tokens = checkpoint.config, torch.from_numpy(rows.tokens)
    num_held_out = len(tokens) - rows.num_fit_rows
    tokens = tokens.roll(num_held_out, 0)
    num_original = num_original_rows(config, options, rows.num_fit_rows, num_held_out)
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
    config, (num_rows, sequence_length) = checkpoint.config, tokens.shape
    deployed = embed_rows(checkpoint, tokens, compute, spool_dir)
    original = None
    if num_original:
        original = deployed.clone_first(num_original, compute, spool_dir)
    shape = (num_rows, sequence_length, config.num_attention_heads * config.head_dim)
    return Streams(
        deployed,
        original,
        partial(HiddenRows.allocate, shape, compute, spool_dir),
        num_held_out,
        num_original,
        num_rows,
    )


def _deploy_finished(layer: DecoderLayer, read: ReadFinished, compute: Compute) -> None:
    for name in LAYER_LINEARS:
        codes, scale = read(linear_name(layer.index, name))
        place = compute.device
        deploy(layer, name, codes.to(place), scale.to(place), compute.dtype)
