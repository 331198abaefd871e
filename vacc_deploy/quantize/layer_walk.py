"""Walk one decoder layer stage by stage while it is quantized, or carry the rows through it.

All rows go through the quantized layers. The first ones also go through the float layers: what
the two differ by is what later linears can make up for. Every linear is applied once to each
stream, but for gate and up where their product does not fit the memory that may keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vacc_deploy.errors import QuantizationError
from vacc_deploy.models.config import ModelConfig, linear_name
from vacc_deploy.phases import PhaseClock
from vacc_deploy.quantize.compute import Compute
from vacc_deploy.quantize.layer_quantizer import Batch, LayerQuantizer
from vacc_deploy.quantize.layer_weights import LayerWeights, locate_file
from vacc_deploy.quantize.options import FAST, QuantizeOptions
from vacc_deploy.quantize.row_buffers import HiddenRows
from vacc_deploy.reference.decoder import DOWN, GATE_UP, OUTPUT, QKV, STAGE_LINEARS, DecoderLayer

if TYPE_CHECKING:
    pass

# Of the fitted rows, how many are carried through the float layers too: an eighth, and at least as
# many as make eight tokens for each input of the residual stream.
ORIGINAL_SHARE = 8
ORIGINAL_TOKENS_PER_INPUT = 8


def num_original_rows(
    config: ModelConfig, options: QuantizeOptions, num_fit_rows: int, num_held_out: int
) -> int:
    """Return how many rows go through the float layers too, the held-out ones among them."""
    if options.effort == FAST:
        return 0
    if options.num_float_rows is not None:
        return options.num_float_rows
    wanted = -(-ORIGINAL_TOKENS_PER_INPUT * config.hidden_size // options.sequence_length)
    return num_held_out + min(num_fit_rows, max(-(-num_fit_rows // ORIGINAL_SHARE), wanted))


@dataclass(frozen=True)
class Streams:
    """The rows on their way: held-out rows first, then fitted ones.

    Attributes:
        deployed: every row, behind quantized layers.
        original: the first ``num_original`` rows behind float layers; None where there are none.
        make_attended: returns room for what o_proj is applied to, of all rows.
        num_held_out: rows that no Hessian sees.
        num_original: rows of ``original``, the held-out ones among them.
        num_rows: all of them.
    """

    deployed: HiddenRows
    original: HiddenRows | None
    make_attended: Callable[[], HiddenRows]
    num_held_out: int
    num_original: int
    num_rows: int

    def batches(self, batch_rows: int) -> Iterator[Batch]:
        """Yield all rows in batches of one kind each."""
        edges = sorted({0, self.num_held_out, self.num_original or 0, self.num_rows})
        for start, stop in zip(edges, edges[1:], strict=False):
            for first in range(start, stop, batch_rows):
                yield Batch(
                    slice(first, min(first + batch_rows, stop)),
                    is_held_out=start < self.num_held_out,
                    has_original=start < self.num_original,
                )


class LayerWalk:
    """One layer, all rows, stage by stage."""

    def __init__(
        self,
        layer: DecoderLayer,
        weights: LayerWeights,
        streams: Streams,
        compute: Compute,
        clock: PhaseClock,
    ) -> None:
        """Bind a layer to its weights and to the rows."""
        self._layer, self._weights, self._streams = layer, weights, streams
        self._compute, self._clock = compute, clock
        seq = streams.deployed.buffer.shape[1]
        self._batches = list(streams.batches(max(1, compute.batch_tokens // seq)))

    def quantize(self, quantizer: LayerQuantizer) -> None:
        """Quantize every linear before its one application to the deployed stream.

        Raises:
            QuantizationError: a weight or an activation is not finite; names the tensor, and of a
                weight the row and the file.
        """
        try:
            self._quantize(quantizer)
        except QuantizationError as err:
            locate_file(err, self._weights.checkpoint)
            raise

    def _quantize(self, quantizer: LayerQuantizer) -> None:
        self._settle_qkv(quantizer)
        attended = self._settle_output(quantizer)
        self._settle_gate_up(quantizer, attended)
        del attended
        if quantizer.skips(DOWN):
            quantizer.complete(DOWN, self._layer)
            self._apply_mlp()
        else:
            self._settle_down(quantizer)
        self._release(DOWN)

    def carry(self) -> None:
        """Apply a layer whose linears are deployed already, with the arithmetic of ``quantize``."""
        layer, deployed = self._layer, self._streams.deployed
        with self._clock.phase("forward"):
            for batch in self._batches:
                states = deployed.read(batch.rows)
                attended = layer.attend(layer.attention_input(states), layer.deployed)
                states = states + layer.deployed("o_proj")(attended)
                inner = layer.activate(layer.mlp_input(states), layer.deployed)
                deployed.write(batch.rows, states + layer.deployed("down_proj")(inner))
                if batch.has_original:
                    states = self._original(batch)
                    attended = layer.attend(layer.attention_input(states))
                    states = states + layer.linear("o_proj")(attended)
                    inner = layer.activate(layer.mlp_input(states))
                    self._write_original(batch, states + layer.linear("down_proj")(inner))

    def _settle_qkv(self, quantizer: LayerQuantizer) -> None:
        layer = self._layer
        for batch in self._batches:
            with self._clock.phase("forward"):
                inputs = layer.attention_input(self._streams.deployed.read(batch.rows))
                original = (
                    layer.attention_input(self._original(batch)) if batch.has_original else None
                )
            quantizer.observe(batch, inputs, original)
        quantizer.complete(QKV, layer)

    def _settle_output(self, quantizer: LayerQuantizer) -> HiddenRows:
        layer, streams = self._layer, self._streams
        room = streams.make_attended()
        for batch in self._batches:
            original = None
            with self._clock.phase("forward"):
                states = streams.deployed.read(batch.rows)
                attended = layer.attend(layer.attention_input(states), layer.deployed)
                room.write(batch.rows, attended)
                if batch.has_original:
                    before = self._original(batch)
                    original = layer.attend(layer.attention_input(before))
            quantizer.observe(batch, attended, original, residual=states)
            if original is not None:
                with self._clock.phase("forward"):
                    self._write_original(batch, before + layer.linear("o_proj")(original))
        self._release(QKV)
        quantizer.complete(OUTPUT, layer)
        return room

    def _settle_gate_up(self, quantizer: LayerQuantizer, attended: HiddenRows) -> None:
        layer, streams = self._layer, self._streams
        for batch in self._batches:
            original = None
            with self._clock.phase("forward"):
                states = streams.deployed.read(batch.rows)
                states = states + layer.deployed("o_proj")(attended.read(batch.rows))
                streams.deployed.write(batch.rows, states)
                inputs = layer.mlp_input(states)
                if batch.has_original:
                    before = self._original(batch)
                    original = layer.mlp_input(before)
            quantizer.observe(batch, inputs, original)
            if original is not None:
                with self._clock.phase("forward"):
                    inner = layer.activate(original)
                    self._write_original(batch, before + layer.linear("down_proj")(inner))
        self._release(OUTPUT)
        quantizer.complete(GATE_UP, layer)

    def _settle_down(self, quantizer: LayerQuantizer) -> None:
        """Observe the inputs of down, keeping as many as fit for their second use."""
        layer, streams = self._layer, self._streams
        kept = dict[int, torch.Tensor]()
        left = self._compute.kept_bytes - 4 * layer.config.intermediate_size**2
        for number, batch in enumerate(self._batches):
            with self._clock.phase("forward"):
                states = streams.deployed.read(batch.rows)
                inner = layer.activate(layer.mlp_input(states), layer.deployed)
            quantizer.observe(batch, inner, None, residual=states)
            num_bytes = inner.numel() * inner.element_size()
            if num_bytes <= left:
                kept[number], left = inner, left - num_bytes
        del inner
        quantizer.complete(DOWN, layer)
        self._apply_mlp(kept)

    def _apply_mlp(self, kept: dict[int, torch.Tensor] | None = None) -> None:
        """Add the MLP's output to the deployed stream; ``kept`` has inputs of down by batch."""
        layer, deployed = self._layer, self._streams.deployed
        with self._clock.phase("forward"):
            for number, batch in enumerate(self._batches):
                states = deployed.read(batch.rows)
                inner = kept.pop(number, None) if kept else None
                if inner is None:
                    inner = layer.activate(layer.mlp_input(states), layer.deployed)
                deployed.write(batch.rows, states + layer.deployed("down_proj")(inner))
        self._release(GATE_UP)

    def _release(self, stage: str) -> None:
        self._layer.release(stage)
        for name in STAGE_LINEARS[stage]:
            self._weights.release(linear_name(self._layer.index, name))

    def _original(self, batch: Batch) -> torch.Tensor:
        assert self._streams.original is not None
        return self._streams.original.read(batch.rows)

    def _write_original(self, batch: Batch, states: torch.Tensor) -> None:
        assert self._streams.original is not None
        self._streams.original.write(batch.rows, states)
