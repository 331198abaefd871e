"""Quantize every layer by GPTQ, carrying the calibration rows through the quantized layers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.models.config import LAYER_LINEARS, linear_name
from vacc_deploy.phases import PhaseClock
from vacc_deploy.progress import SILENT, Progress, RunControl
from vacc_deploy.quantize.compute import Compute
from vacc_deploy.quantize.layer_quantizer import LayerQuantizer, set_codes
from vacc_deploy.quantize.layer_walk import LayerWalk, Streams, num_float_rows
from vacc_deploy.quantize.layer_weights import LayerWeights, read_layers
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.ranks import ALONE, Ranks
from vacc_deploy.quantize.row_buffers import HiddenRows, embed_rows
from vacc_deploy.reference.decoder import DecoderLayer, Positions
from vacc_deploy.solver.records import QuantizedLayer

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows


def calibrate_layers(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    rows: CalibrationRows,
    *,
    compute: Compute,
    spool_dir: Path,
    clock: PhaseClock,
    num_finished: int = 0,
    read_finished: Callable[[str], tuple[torch.Tensor, torch.Tensor]] | None = None,
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
        compute: the device and the precision.
        spool_dir: directory for the rows if they do not fit the memory.
        clock: counts the seconds of each part.
        num_finished: layers that an earlier run has finished, the first ones.
        read_finished: returns codes int8 [out, in] and scale float16 [out] of a linear of theirs;
            None on every rank but the first, which sends them.
        ranks: the processes of the run; each carries its share of the rows.
        progress: told of every linear.

    Raises:
        QuantizationError: a weight or an activation is not finite; names the tensor.
    """
    compute = compute.shared_by(ranks.local_count)
    # Every mode is left before a yield: it belongs to the thread and would reach the caller.
    with torch.inference_mode():
        positions = Positions.build(checkpoint.config, rows.tokens.shape[1], compute.device)
        streams = _open_streams(
            checkpoint, options, rows, compute, spool_dir=spool_dir, ranks=ranks
        )

    def compute_layer(weights: LayerWeights) -> QuantizedLayer | None:
        layer = DecoderLayer(checkpoint.config, weights.index, positions, weights.read)
        walk = LayerWalk(layer, weights, streams, compute, clock)
        if weights.index < num_finished:
            for name in LAYER_LINEARS:
                stored = read_finished and read_finished(linear_name(weights.index, name))
                stored = ranks.share(stored)
                assert stored is not None, "rank 0 reads the finished layers"
                codes, scale = (tensor.to(compute.device) for tensor in stored)
                set_codes(layer, name, codes, scale, compute.dtype)
            walk.carry()
            return None
        quantizer = LayerQuantizer(
            options,
            weights.read_exact,
            # Of all ranks: each samples its share of them.
            num_held_out_tokens=rows.num_held_out * rows.tokens.shape[1],
            dtype=compute.dtype,
            clock=clock,
            ranks=ranks,
            progress=progress,
        )
        walk.quantize(quantizer)
        return QuantizedLayer(
            weights.index,
            tuple(quantizer.linears),
            tuple(quantizer.records),
            tuple(quantizer.seconds),
        )

    layers = read_layers(checkpoint, compute)
    for _ in range(checkpoint.config.num_hidden_layers):
        with clock.phase("read"):
            weights = next(layers)
        with torch.inference_mode():
            quantized = compute_layer(weights)
        if compute.synchronize is not None:
            # The writers copy the codes on streams of their own.
            compute.synchronize()
        # Nothing of this layer is left here when the next is asked for: the reader has the next
        # one's weights, the caller this one's codes.
        del weights
        yield quantized
        del quantized


def calibrate_along(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    rows: CalibrationRows,
    *,
    compute: Compute,
    control: RunControl,
    ranks: Ranks,
) -> None:
    """Do as a rank that writes nothing what ``shards.write_shards`` does as the first one.

    Returns early where a rank is asked to stop.

    Raises:
        QuantizationError: a weight or an activation is not finite.
        RankLostError: another rank is gone.
    """
    num_finished = ranks.share(0)  # as rank 0 has read it
    if num_finished == checkpoint.config.num_hidden_layers:
        return
    layers = calibrate_layers(
        checkpoint,
        options,
        rows,
        compute=compute,
        # The output's directory may be on the first rank's machine only.
        spool_dir=Path(tempfile.gettempdir()),
        clock=PhaseClock(),
        num_finished=num_finished,
        ranks=ranks,
    )
    with control.watch():
        for _ in layers:
            if ranks.agree(control.stop_signal()) is not None:
                return


def _open_streams(
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
    config = checkpoint.config
    num_float = num_float_rows(config, options, rows.num_fit_rows, rows.num_held_out)
    mine = slice(ranks.rank, None, ranks.count)
    num_held_out, num_float = (len(range(count)[mine]) for count in (rows.num_held_out, num_float))
    tokens = torch.from_numpy(rows.tokens)[mine]  # [rows, seq]
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
