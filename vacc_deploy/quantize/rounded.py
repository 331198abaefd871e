"""Quantize every layer by rounding to nearest: no forward pass, no calibration."""

from __future__ import annotations

from collections.abc import Iterator

from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.errors import QuantizationError
from vacc_deploy.model_config import LAYER_LINEARS, linear_name
from vacc_deploy.quantize.int8 import quantize_rounding
from vacc_deploy.quantize.report import RTN, LinearRecord, QuantizedLayer, QuantizedLinear


def round_layers(checkpoint: Checkpoint, first: int = 0) -> Iterator[QuantizedLayer]:
    """Yield every layer from ``first`` on quantized by rounding.

    Raises:
        QuantizationError: a weight is not finite; names the tensor, the row and the file.
    """
    for layer in range(first, checkpoint.config.num_hidden_layers):
        names = [linear_name(layer, linear) for linear in LAYER_LINEARS]
        linears = tuple(_round_linear(checkpoint, name) for name in names)
        yield QuantizedLayer(layer, linears, tuple(LinearRecord(name, RTN) for name in names))


def _round_linear(checkpoint: Checkpoint, name: str) -> QuantizedLinear:
    try:
        codes, scale = quantize_rounding(checkpoint.read(f"{name}.weight"))
    except QuantizationError as err:
        raise QuantizationError(
            f"{name}.weight in {checkpoint.directory}: {err}. Download the file "
            f"{checkpoint.info(f'{name}.weight').path.name} again."
        ) from err
    return QuantizedLinear(name, codes, scale)
