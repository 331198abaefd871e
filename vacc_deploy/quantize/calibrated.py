"""Quantize every layer by GPTQ, carrying the calibration rows through the quantized layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.decoder import DecoderLayer, Positions, embed, float_reader, walk_layer
from vacc_deploy.quantize.layer import LayerQuantizer
from vacc_deploy.quantize.plan import BATCH_TOKENS, KEPT_BYTES, QuantizeOptions
from vacc_deploy.quantize.report import QuantizedLayer

if TYPE_CHECKING:
    from vacc_deploy.calibration.rows import CalibrationRows


def calibrate_layers(
    checkpoint: Checkpoint, options: QuantizeOptions, rows: CalibrationRows
) -> Iterator[QuantizedLayer]:
    """Yield every layer quantized by GPTQ.

    Raises:
        QuantizationError: a weight or an activation is not finite; names the tensor.
    """
    config, tokens = checkpoint.config, torch.from_numpy(rows.tokens)
    num_rows, sequence_length = tokens.shape
    positions = Positions.build(config, sequence_length)
    read = float_reader(checkpoint)
    hidden_states = embed(checkpoint, tokens)
    for index in range(config.num_hidden_layers):
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
                batch_rows=max(1, BATCH_TOKENS // sequence_length),
                observer=quantizer,
                kept_bytes=KEPT_BYTES,
            )
        yield QuantizedLayer(index, tuple(quantizer.linears), tuple(quantizer.records))
