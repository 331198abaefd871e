"""Walk one decoder layer stage by stage while it is quantized, or carry the rows through it.

All rows go through the quantized layers. The first ones also go through the float layers: what the
two differ by is what later linears can make up for. Every linear is applied once to each stream,
but for gate and up where their product does not fit the memory that may keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from vacc_deploy.errors import QuantizationError
from vacc_deploy.models.config import ModelConfig, linear_name
from vacc_deploy.phases import PhaseClock
from vacc_deploy.quantize.compute import Compute
from vacc_deploy.quantize.layer_quantizer import Batch, LayerQuantizer
from vacc_deploy.quantize.layer_weights import LayerWeights, locate_file
from vacc_deploy.quantize.maxima import LayerMaxima
from vacc_deploy.quantize.options import FAST, QuantizeOptions
from vacc_deploy.quantize.row_buffers import HiddenRows
from vacc_deploy.reference.decoder import (
    DOWN,
    GATE_UP,
    OUTPUT,
    QKV,
    STAGE_LINEARS,
    DecoderLayer,
)
from vacc_deploy.reference.ranges import INPUT, RESIDUAL

# Of the fitted rows, how many are carried through the float layers too: an eighth, and at least as
# many as make eight tokens for each input of the residual stream.
FLOAT_SHARE = 8
FLOAT_TOKENS_PER_INPUT = 8


def num_float_rows(
    config: ModelConfig, options: QuantizeOptions, num_fit_rows: int, num_held_out: int
) -> int:
    """Return how many rows go through the float layers too, the held-out ones among them."""
    if options.effort == FAST:
        return 0
    if options.num_float_rows is not None:
        return options.num_float_rows
    wanted = -(-FLOAT_TOKENS_PER_INPUT * config.hidden_size // options.sequence_length)
    return num_held_out + min(num_fit_rows, max(-(-num_fit_rows // FLOAT_SHARE), wanted))


@dataclass(frozen=True)
class Streams:
    """The hidden states of the rows: held-out rows first, then fitted ones.

    Attributes:
        quantized_states: every row behind quantized layers, [num_rows, seq, hidden].
        float_states: the first ``num_float_rows`` rows behind float layers; None where no row goes
            through them.
        allocate_attended: returns a buffer for what o_proj is applied to, of all rows.
        num_held_out: rows that no Hessian sees.
        num_float_rows: rows of ``float_states``, the held-out ones among them.
        num_rows: all rows.
    """

    quantized_states: HiddenRows
    float_states: HiddenRows | None
    allocate_attended: Callable[[], HiddenRows]
    num_held_out: int
    num_float_rows: int
    num_rows: int

    def batches(self, batch_rows: int) -> Iterator[Batch]:
        """Yield all rows in batches of one kind each."""
        # No batch crosses an edge, so all rows of one have the same flags.
        edges = sorted({0, self.num_held_out, self.num_float_rows, self.num_rows})
        for start, stop in zip(edges, edges[1:], strict=False):
            for first in range(start, stop, batch_rows):
                yield Batch(
                    slice(first, min(first + batch_rows, stop)),
                    is_held_out=start < self.num_held_out,
                    has_float_states=start < self.num_float_rows,
                )


class LayerWalk:
    """One layer, all rows, stage by stage.

    For each stage: the inputs that the quantizer observes, and how the float states of the layer go
    on meanwhile, which the quantizer never changes.

    qkv      the normed states                       -
    o        attention of the quantized q, k and v   by attention and o, all float
    gate_up  the normed states behind quantized o    by gate, up and down, all float
    down     silu(gate) · up, both quantized         -

    The quantized states are written twice a layer: behind o, when gate_up is observed, and behind
    down, when the layer is done.
    """

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
        seq = streams.quantized_states.buffer.shape[1]  # [num_rows, seq, hidden]
        # At least one row, however long: a row is never cut into batches.
        self._batches = list(streams.batches(max(1, compute.batch_tokens // seq)))

    def quantize(self, quantizer: LayerQuantizer, maxima: LayerMaxima) -> None:
        """Quantize every linear before its one application to the quantized states.

        Args:
            quantizer: sees the inputs of every stage, then quantizes its linears.
            maxima: sees them too, and the residual stream behind each half of the layer.

        Raises:
            QuantizationError: a weight or an activation is not finite; has the tensor, and of a
                weight the row and the file.
        """
        try:
            self._quantize_qkv(quantizer, maxima)
            attended = self._quantize_output(quantizer, maxima)
            self._quantize_gate_up(quantizer, attended, maxima)
            del attended
            self._quantize_down(quantizer, maxima)
        except QuantizationError as err:
            locate_file(err, self._weights.checkpoint)
            raise
        self._release(DOWN)

    def carry(self) -> None:
        """Apply a layer that is quantized already, with the arithmetic of ``quantize``."""
        layer, stored = self._layer, self._streams.quantized_states
        with self._clock.phase("forward"):
            for batch in self._batches:
                states = stored.read(batch.rows)  # [rows, seq, hidden]
                attended = layer.attend(layer.attention_input(states), layer.quantized)
                states = states + layer.quantized("o_proj")(attended)
                inner = layer.activate(layer.mlp_input(states), layer.quantized)
                stored.write(batch.rows, states + layer.quantized("down_proj")(inner))
                if batch.has_float_states:
                    states = self._read_float(batch)
                    attended = layer.attend(layer.attention_input(states))
                    states = states + layer.linear("o_proj")(attended)
                    inner = layer.activate(layer.mlp_input(states))
                    self._write_float(batch, states + layer.linear("down_proj")(inner))

    def _quantize_qkv(self, quantizer: LayerQuantizer, maxima: LayerMaxima) -> None:
        layer, stored = self._layer, self._streams.quantized_states
        for batch in self._batches:
            float_inputs = None
            with self._clock.phase("forward"):
                inputs = layer.attention_input(stored.read(batch.rows))  # [rows, seq, hidden]
                maxima.see(QKV, INPUT, inputs)
                if batch.has_float_states:
                    float_inputs = layer.attention_input(self._read_float(batch))
            quantizer.observe(batch, inputs, float_inputs)
        quantizer.complete(QKV, layer)

    def _quantize_output(self, quantizer: LayerQuantizer, maxima: LayerMaxima) -> HiddenRows:
        """Return what o_proj is to be applied to, [num_rows, seq, heads · head_dim]."""
        layer, stored = self._layer, self._streams.quantized_states
        attended_rows = self._streams.allocate_attended()
        for batch in self._batches:
            float_attended = None
            with self._clock.phase("forward"):
                states = stored.read(batch.rows)  # [rows, seq, hidden]
                # [rows, seq, heads · head_dim]
                attended = layer.attend(layer.attention_input(states), layer.quantized)
                attended_rows.write(batch.rows, attended)
                maxima.see(OUTPUT, INPUT, attended)
                if batch.has_float_states:
                    float_states = self._read_float(batch)
                    float_attended = layer.attend(layer.attention_input(float_states))
            quantizer.observe(batch, attended, float_attended, residual=states)
            if float_attended is not None:
                # Only now: the float weight of o is let go of when its stage is complete.
                with self._clock.phase("forward"):
                    self._write_float(batch, float_states + layer.linear("o_proj")(float_attended))
        self._release(QKV)
        quantizer.complete(OUTPUT, layer)
        return attended_rows

    def _quantize_gate_up(
        self, quantizer: LayerQuantizer, attended_rows: HiddenRows, maxima: LayerMaxima
    ) -> None:
        layer, stored = self._layer, self._streams.quantized_states
        for batch in self._batches:
            float_inputs = None
            with self._clock.phase("forward"):
                states = stored.read(batch.rows)  # [rows, seq, hidden]
                states = states + layer.quantized("o_proj")(attended_rows.read(batch.rows))
                stored.write(batch.rows, states)
                inputs = layer.mlp_input(states)
                maxima.see(OUTPUT, RESIDUAL, states)
                maxima.see(GATE_UP, INPUT, inputs)
                if batch.has_float_states:
                    float_states = self._read_float(batch)
                    float_inputs = layer.mlp_input(float_states)
            quantizer.observe(batch, inputs, float_inputs)
            if float_inputs is not None:
                with self._clock.phase("forward"):
                    # The float states leave the layer here: down observes no float inputs.
                    inner = layer.activate(float_inputs)  # [rows, seq, intermediate]
                    self._write_float(batch, float_states + layer.linear("down_proj")(inner))
        self._release(OUTPUT)
        quantizer.complete(GATE_UP, layer)

    def _quantize_down(self, quantizer: LayerQuantizer, maxima: LayerMaxima) -> None:
        """Observe the inputs of down, keep as many as fit for their second use, apply the MLP."""
        layer, stored = self._layer, self._streams.quantized_states
        inner_of = dict[int, torch.Tensor]()
        if not quantizer.skips(DOWN):
            # The Hessian takes its share of the memory first.
            left_bytes = self._compute.kept_bytes - 4 * layer.config.intermediate_size**2
            for number, batch in enumerate(self._batches):
                with self._clock.phase("forward"):
                    states = stored.read(batch.rows)  # [rows, seq, hidden]
                    # [rows, seq, intermediate]
                    inner = layer.activate(layer.mlp_input(states), layer.quantized)
                quantizer.observe(batch, inner, None, residual=states)
                num_bytes = inner.numel() * inner.element_size()
                if num_bytes <= left_bytes:
                    inner_of[number], left_bytes = inner, left_bytes - num_bytes
            del inner  # else the last batch would stay in memory while down is solved
        quantizer.complete(DOWN, layer)
        self._apply_mlp(inner_of, maxima)

    def _apply_mlp(self, inner_of: dict[int, torch.Tensor], maxima: LayerMaxima) -> None:
        """Add the MLP's output to the quantized states.

        Args:
            inner_of: inputs of down [rows, seq, intermediate] by the number of their batch, of
                those that were kept; used up.
            maxima: sees them, and the states with the output.
        """
        layer, stored = self._layer, self._streams.quantized_states
        with self._clock.phase("forward"):
            for number, batch in enumerate(self._batches):
                states = stored.read(batch.rows)  # [rows, seq, hidden]
                inner = inner_of.pop(number, None)
                if inner is None:
                    inner = layer.activate(layer.mlp_input(states), layer.quantized)
                states = states + layer.quantized("down_proj")(inner)
                stored.write(batch.rows, states)
                maxima.see(DOWN, INPUT, inner)
                maxima.see(DOWN, RESIDUAL, states)
        self._release(GATE_UP)

    def _release(self, stage: str) -> None:
        """Let go of the weights of a stage, quantized and float."""
        self._layer.release(stage)
        for name in STAGE_LINEARS[stage]:
            self._weights.release(linear_name(self._layer.index, name))

    def _read_float(self, batch: Batch) -> torch.Tensor:
        assert self._streams.float_states is not None
        return self._streams.float_states.read(batch.rows)

    def _write_float(self, batch: Batch, states: torch.Tensor) -> None:
        assert self._streams.float_states is not None
        self._streams.float_states.write(batch.rows, states)
