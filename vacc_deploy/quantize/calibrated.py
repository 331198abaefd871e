"""Quantize every layer by GPTQ, carrying the calibration rows through the quantized layers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.models.config import LAYER_LINEARS, linear_name
from vacc_deploy.phases import PhaseClock
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.quantize.compute import Compute
from vacc_deploy.quantize.layer_quantizer import LayerQuantizer, set_codes
from vacc_deploy.quantize.layer_walk import LayerWalk, Streams, num_float_rows
from vacc_deploy.quantize.layer_weights import read_layers
from vacc_deploy.quantize.maxima import LayerMaxima
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.ranks import ALONE, Ranks, check_same_source
from vacc_deploy.quantize.row_buffers import HiddenRows, embed_rows
from vacc_deploy.reference.decoder import DecoderLayer, Positions
from vacc_deploy.solver.records import QuantizedLayer

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows

ReadFinished = Callable[[str], tuple[torch.Tensor, torch.Tensor]]


def calibrate_layers(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    rows: CalibrationRows,
    *,
    compute: Compute,
    spool_dir: Path,
    clock: PhaseClock,
    num_finished: int = 0,
    read_finished: ReadFinished | None = None,
    ranks: Ranks = ALONE,
    progress: Progress = SILENT,
) -> Iterator[QuantizedLayer | None]:
    """Yield every layer, quantized by GPTQ; None for one that is finished. The same on every rank.

    Through finished ones the rows are only carried, with the same arithmetic, so that the next
    layer sees the same inputs.

    Args:
        spool_dir: directory for the rows if they do not fit the memory.
        num_finished: layers that an earlier run has finished, the first ones.
        read_finished: returns codes int8 [out, in] and scale float16 [out] of a linear of theirs;
            None on every rank but the first, which sends them.

    Raises:
        QuantizationError: a weight or an activation is not finite; names the tensor.
        CheckpointError: the source of a rank was changed.
    """
    compute = compute.shared_by(ranks.local_count)
    make_quantizer = partial(
        LayerQuantizer,
        options,
        num_held_out_tokens=_count_held_out(rows),
        dtype=compute.dtype,
        clock=clock,
        ranks=ranks,
        progress=progress,
    )
    positions, streams = _start(
        checkpoint, options, rows, compute, spool_dir=spool_dir, ranks=ranks
    )
    # Closed here: what is raised while the collector closes it is lost.
    with closing(read_layers(checkpoint, compute)) as layers:
        for index in range(checkpoint.config.num_hidden_layers):
            with clock.phase("read"):
                weights = next(layers)
            quantized = None
            with torch.inference_mode():  # left before the yield: it is the thread's, not ours
                layer = DecoderLayer(checkpoint.config, index, positions, weights.read)
                walk = LayerWalk(layer, weights, streams, compute, clock)
                if index < num_finished:
                    _replay(layer, walk, read_finished, compute, ranks)
                else:
                    quantized = _quantize(walk, index, make_quantizer(weights.read_exact), ranks)
            check_same_source(checkpoint, ranks)
            if compute.synchronize is not None:
                compute.synchronize()  # the writers copy the codes on streams of their own
            del layer, walk, weights  # the reader has those of the next layer
            yield quantized
            del quantized


def _count_held_out(rows: CalibrationRows) -> int:
    """Return the held-out tokens of all ranks; each samples its share of them."""
    return rows.num_held_out * rows.tokens.shape[1]


def _replay(
    layer: DecoderLayer,
    walk: LayerWalk,
    read_finished: ReadFinished | None,
    compute: Compute,
    ranks: Ranks,
) -> None:
    """Carry the rows through a finished layer; the first rank reads its codes for all."""
    for name in LAYER_LINEARS:
        stored = ranks.share(read_finished and read_finished(linear_name(layer.index, name)))
        assert stored is not None, "rank 0 reads the finished layers"
        codes, scale = (tensor.to(compute.device) for tensor in stored)
        set_codes(layer, name, codes, scale, compute.dtype)
    walk.carry()


def _quantize(
    walk: LayerWalk, index: int, quantizer: LayerQuantizer, ranks: Ranks
) -> QuantizedLayer:
    maxima = LayerMaxima()
    walk.quantize(quantizer, maxima)
    return QuantizedLayer(
        index,
        tuple(quantizer.linears),
        tuple(quantizer.records),
        tuple(quantizer.seconds),
        maxima.join(ranks),
    )


def calibrate_along(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    rows: CalibrationRows,
    *,
    compute: Compute,
    ranks: Ranks,
) -> None:
    """Do as a rank that writes nothing what ``shards.write_shards`` does as the first one.

    Raises:
        QuantizationError: a weight or an activation is not finite.
        CheckpointError: the source of a rank was changed.
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
    for _ in layers:
        pass


@torch.inference_mode()
def _start(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    rows: CalibrationRows,
    compute: Compute,
    *,
    spool_dir: Path,
    ranks: Ranks,
) -> tuple[Positions, Streams]:
    """Return the rotary tables, and this rank's rows, embedded.

    Held-out rows come first, then those that go through the float layers too.

    Dealt one by one, so that every rank has its share of each kind.
    """
    config = checkpoint.config
    num_float = num_float_rows(config, options, rows.num_fit_rows, rows.num_held_out)
    mine = slice(ranks.rank, None, ranks.count)
    # How many of the held-out rows, and of those with a float stream, fall to this rank.
    num_held_out, num_float = (len(range(count)[mine]) for count in (rows.num_held_out, num_float))
    tokens = torch.from_numpy(rows.tokens)[mine]  # [rows, seq]
    quantized_states = embed_rows(checkpoint, tokens, compute, spool_dir)
    float_states = None
    if num_float:
        float_states = quantized_states.clone_first(num_float, compute, spool_dir)
    # What o_proj is applied to: [rows, seq, heads · head_dim]
    shape = (*tokens.shape, config.num_attention_heads * config.head_dim)
    streams = Streams(
        quantized_states,
        float_states,
        partial(HiddenRows.allocate, shape, compute, spool_dir),
        num_held_out,
        num_float,
        len(tokens),
    )
    return Positions.build(config, tokens.shape[1], compute.device), streams
