"""One layer walked stage by stage: which rows it shows, what it applies, and carrying instead."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from checkpoint_builders import write_checkpoint

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.formats.int8 import dequantize
from vacc_deploy.models.config import LAYER_LINEARS, linear_name
from vacc_deploy.phases import PhaseClock
from vacc_deploy.quantize.compute import choose_compute
from vacc_deploy.quantize.layer_quantizer import LayerQuantizer, set_codes
from vacc_deploy.quantize.layer_walk import LayerWalk, Streams
from vacc_deploy.quantize.layer_weights import read_layers
from vacc_deploy.quantize.maxima import LayerMaxima
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.row_buffers import HiddenRows, embed_rows
from vacc_deploy.reference.decoder import DecoderLayer, Positions

SEQ_LEN, NUM_ROWS, NUM_HELD_OUT, NUM_FLOAT = 16, 11, 2, 7
STAGE_ORDER = ("q_proj", "o_proj", "gate_proj", "down_proj")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = write_checkpoint(tmp_path_factory.mktemp("walk") / "model", scale=2.0)
    return Checkpoint.open(directory)


def make_compute(dtype="float32", *, batch_rows=3, kept_bytes=1 << 31):
    compute = choose_compute("cpu", dtype)
    return replace(compute, batch_tokens=batch_rows * SEQ_LEN, kept_bytes=kept_bytes)


def make_streams(checkpoint, compute, tmp_path, *, num_float=NUM_FLOAT):
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(0, 272, (NUM_ROWS, SEQ_LEN), generator=generator)
    deployed = embed_rows(checkpoint, tokens, compute, tmp_path)
    float_inputs = deployed.clone_first(num_float, compute, tmp_path) if num_float else None
    shape = (NUM_ROWS, SEQ_LEN, 64)
    make_attended = partial(HiddenRows.allocate, shape, compute, tmp_path)
    return Streams(deployed, float_inputs, make_attended, NUM_HELD_OUT, num_float, NUM_ROWS)


class Spy(LayerQuantizer):
    """Keeps what it is shown."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.seen, self.stages = [], []

    def observe(self, batch, inputs, float_inputs, *, residual=None):
        parts = (inputs, float_inputs, residual)
        kept = (None if part is None else part.clone() for part in parts)
        self.seen.append((len(self.stages), batch, *kept))
        super().observe(batch, inputs, float_inputs, residual=residual)

    def complete(self, stage, layer):
        self.stages.append(stage)
        super().complete(stage, layer)


def begin(checkpoint, streams, compute):
    """Return the first layer, its walk and the weights."""
    weights = next(read_layers(checkpoint, compute))
    positions = Positions.build(checkpoint.config, SEQ_LEN)
    layer = DecoderLayer(checkpoint.config, 0, positions, weights.read)
    return layer, LayerWalk(layer, weights, streams, compute, PhaseClock()), weights


@torch.inference_mode()
def quantized(checkpoint, tmp_path, compute, *, effort="full", num_float=NUM_FLOAT):
    """Quantize the first layer; return the quantizer and the streams behind it."""
    streams = make_streams(checkpoint, compute, tmp_path, num_float=num_float)
    layer, walk, weights = begin(checkpoint, streams, compute)
    quantizer = Spy(
        QuantizeOptions("gptq", effort=effort),
        weights.read_exact,
        num_held_out_tokens=NUM_HELD_OUT * SEQ_LEN,
        dtype=compute.dtype,
        clock=PhaseClock(),
    )
    walk.quantize(quantizer, LayerMaxima())
    return quantizer, streams


# ---- batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_rows", [1, 2, 3, 4, 100])
@pytest.mark.parametrize(
    ("num_held_out", "num_float"), [(2, 7), (2, 11), (1, 2), (3, 0), (2, 3), (10, 11)]
)
def test_streams_batches_cover_every_row_once_with_its_kind(batch_rows, num_held_out, num_float):
    streams = Streams(None, None, None, num_held_out, num_float, NUM_ROWS)
    batches = list(streams.batches(batch_rows))
    rows = [row for batch in batches for row in range(batch.rows.start, batch.rows.stop)]
    assert rows == list(range(NUM_ROWS))
    for batch in batches:
        assert 0 < batch.rows.stop - batch.rows.start <= batch_rows
        for row in range(batch.rows.start, batch.rows.stop):
            assert batch.is_held_out is (row < num_held_out)
            assert batch.has_float_states is (row < num_float)


# ---- what is shown -----------------------------------------------------------------------------


def test_walk_shows_every_stage_all_rows_before_it_is_completed(checkpoint, tmp_path):
    quantizer, streams = quantized(checkpoint, tmp_path, make_compute())
    assert quantizer.stages == ["qkv", "o", "gate_up", "down"]
    batches = list(streams.batches(3))
    assert [(stage, batch) for stage, batch, *_ in quantizer.seen] == [
        (stage, batch) for stage in range(4) for batch in batches
    ]
    assert [linear.name for linear in quantizer.linears] == [
        linear_name(0, name) for name in LAYER_LINEARS
    ]
    for stage, batch, inputs, float_inputs, residual in quantizer.seen:
        width = checkpoint.config.linear_shape(STAGE_ORDER[stage])[1]
        shape = (batch.rows.stop - batch.rows.start, SEQ_LEN, width)
        assert inputs.shape == shape
        assert (float_inputs is not None) is (batch.has_float_states and stage != 3)
        assert float_inputs is None or float_inputs.shape == shape
        # What the outputs are added to, where they are added to anything.
        assert (residual is not None) is (stage in (1, 3))


def test_walk_streams_are_the_layer_with_and_without_quantized_linears(checkpoint, tmp_path):
    """The residual stream in plain torch: one sum after attention, one after the MLP."""
    compute = make_compute()
    with torch.inference_mode():
        start = make_streams(checkpoint, compute, tmp_path)
        before = start.quantized_states.buffer.clone()
    quantizer, streams = quantized(checkpoint, tmp_path, compute)
    codes = {linear.name: (linear.codes, linear.scale) for linear in quantizer.linears}
    positions = Positions.build(checkpoint.config, SEQ_LEN)
    cases = (
        (streams.float_states.buffer, lambda name: checkpoint.read(name).float(), NUM_FLOAT),
        (
            streams.quantized_states.buffer,
            lambda name: (
                dequantize(*codes[name.removesuffix(".weight")])
                if name.removesuffix(".weight") in codes
                else checkpoint.read(name).float()
            ),
            NUM_ROWS,
        ),
    )
    for got, read, count in cases:
        layer = DecoderLayer(checkpoint.config, 0, positions, read)
        states = before[:count]
        states = states + layer.linear("o_proj")(layer.attend(layer.attention_input(states)))
        states = states + layer.linear("down_proj")(layer.activate(layer.mlp_input(states)))
        assert torch.allclose(got, states, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(states, before[:count], rtol=0.1)
    difference = streams.quantized_states.buffer[:NUM_FLOAT] - streams.float_states.buffer
    assert 1e-4 < difference.norm() / streams.float_states.buffer.norm() < 0.05


def test_walk_keeps_the_stored_weights_of_a_layer_no_longer_than_needed(checkpoint, tmp_path):
    compute = make_compute()
    with torch.inference_mode():
        streams = make_streams(checkpoint, compute, tmp_path)
        layer, walk, weights = begin(checkpoint, streams, compute)
        quantizer = LayerQuantizer(
            QuantizeOptions("gptq"),
            weights.read_exact,
            num_held_out_tokens=NUM_HELD_OUT * SEQ_LEN,
            dtype=compute.dtype,
            clock=PhaseClock(),
        )
        walk.quantize(quantizer, LayerMaxima())
    for name in LAYER_LINEARS:
        with pytest.raises(KeyError):
            weights.read(f"{linear_name(0, name)}.weight")
        with pytest.raises(KeyError):
            layer.quantized(name)


# ---- the same results by other ways ------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("effort", "num_float"), [("full", NUM_FLOAT), ("full", NUM_ROWS), ("fast", 0)]
)
def test_carry_after_quantize_gives_the_same_bits(checkpoint, tmp_path, dtype, effort, num_float):
    compute = make_compute(dtype)
    arguments = {"effort": effort, "num_float": num_float}
    quantizer, expected = quantized(checkpoint, tmp_path, compute, **arguments)
    with torch.inference_mode():
        streams = make_streams(checkpoint, compute, tmp_path, num_float=num_float)
        layer, walk, _ = begin(checkpoint, streams, compute)
        for name, linear in zip(LAYER_LINEARS, quantizer.linears, strict=True):
            assert linear.name == linear_name(0, name)
            set_codes(layer, name, linear.codes, linear.scale, compute.dtype)
        before = streams.quantized_states.buffer.clone()
        walk.carry()
    assert torch.equal(streams.quantized_states.buffer, expected.quantized_states.buffer)
    assert not torch.equal(streams.quantized_states.buffer, before)
    if num_float:
        assert torch.equal(streams.float_states.buffer, expected.float_states.buffer)
        assert not torch.equal(
            streams.float_states.buffer, streams.quantized_states.buffer[:num_float]
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_bytes_do_not_change_the_result(checkpoint, tmp_path, dtype, monkeypatch):
    """All inputs of down kept, some of them, or none: computed again they are the same."""
    width = checkpoint.config.intermediate_size
    one_batch = 3 * SEQ_LEN * width * (4 if dtype == "float32" else 2)
    results, calls = [], []
    plain = DecoderLayer.activate

    def activate(self, inputs, apply=None):
        calls.append(apply is not None)
        return plain(self, inputs, apply)

    monkeypatch.setattr(DecoderLayer, "activate", activate)
    for kept_bytes in (0, 4 * width**2 + 2 * one_batch, 1 << 31):
        calls.clear()
        compute = make_compute(dtype, kept_bytes=kept_bytes)
        results.append((*quantized(checkpoint, tmp_path, compute), sum(calls)))
    (first, streams, _), *others = results
    # Batches of 2, 3, 2, 3 and 1 rows; of six rows' room 2, 3 and 1 take it all.
    assert [count for *_, count in results] == [10, 7, 5]
    for quantizer, other_streams, _ in others:
        assert quantizer.records == first.records
        for got, want in zip(quantizer.linears, first.linears, strict=True):
            assert torch.equal(got.codes, want.codes) and torch.equal(got.scale, want.scale)
        assert torch.equal(other_streams.quantized_states.buffer, streams.quantized_states.buffer)
        assert torch.equal(other_streams.float_states.buffer, streams.float_states.buffer)
