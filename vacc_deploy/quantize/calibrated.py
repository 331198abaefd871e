"""Quantize every layer by GPTQ, carrying the calibration rows through the quantized layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.decoder import (
    DecoderLayer,
    Positions,
    ReadTensor,
    embed,
    float_reader,
    walk_layer,
)
from vacc_deploy.model_config import LAYER_LINEARS, linear_name
from vacc_deploy.quantize.int8 import dequantize
from vacc_deploy.quantize.layer import LayerQuantizer
from vacc_deploy.quantize.plan import BATCH_TOKENS, KEPT_BYTES, QuantizeOptions
from vacc_deploy.quantize.report import QuantizedLayer

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows

ReadFinished = Callable[[str], tuple[torch.Tensor, torch.Tensor]]


def calibrate_layers(
    checkpoint: Checkpoint,
    options: QuantizeOptions,
    rows: CalibrationRows,
    *,
    finished: int = 0,
    read_finished: ReadFinished | None = None,
) -> Iterator[QuantizedLayer]:
    """Yield every layer from ``finished`` on quantized by GPTQ.

    Args:
        checkpoint: the float weights.
        options: of the run.
        rows: the calibration tokens.
        finished: so many layers were quantized by an earlier run; the rows are only carried
            through them, with the same arithmetic, so that the next layer sees the same inputs.
        read_finished: returns codes int8 [out, in] and scale float16 [out] of a linear of theirs.

    Raises:
        QuantizationError: a weight or an activation is not finite; names the tensor.
    """
    config, tokens = checkpoint.config, torch.from_numpy(rows.tokens)
    num_rows, sequence_length = tokens.shape
    positions = Positions.build(config, sequence_length)
    read = float_reader(checkpoint)
    hidden_states = embed(checkpoint, tokens)
    batch_rows = max(1, BATCH_TOKENS // sequence_length)
    for index in range(finished):
        assert read_finished is not None
        with torch.inference_mode():
            layer = DecoderLayer(config, index, positions, _stored(read, read_finished, index))
            walk_layer(layer, hidden_states, batch_rows=batch_rows)
    for index in range(finished, config.num_hidden_layers):
        quantizer = LayerQuantizer(
            num_fit_rows=rows.num_fit_rows,
            num_held_out_tokens=(num_rows - rows.num_fit_rows) * sequence_length,
            act_order=options.act_order,
        )
        # Closed before the yield: the mode belongs to the thread and would reach the caller.
        with torch.inference_mode():
            walk_layer(
                DecoderLayer(config, index, positions, read),
                hidden_states,
                batch_rows=batch_rows,
                observer=quantizer,
                kept_bytes=KEPT_BYTES,
            )
        yield QuantizedLayer(index, tuple(quantizer.linears), tuple(quantizer.records))


def _stored(read: ReadTensor, read_finished: ReadFinished, index: int) -> ReadTensor:
    """Return a reader that takes the linears of layer ``index`` from ``read_finished``."""
    linears = {f"{linear_name(index, name)}.weight" for name in LAYER_LINEARS}

    def read_stored(name: str) -> torch.Tensor:
        if name not in linears:
            return read(name)
        codes, scale = read_finished(name.removesuffix(".weight"))
        return dequantize(codes, scale)

    return read_stored
