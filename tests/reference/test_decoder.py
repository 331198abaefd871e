"""The staged decoder beside transformers' own classes, and what the walk shows and keeps."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from checkpoint_builders import LLAMA3_ROPE, YARN_ROPE, write_checkpoint
from transformers import AutoModelForCausalLM

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError
from vacc_deploy.models.config import FINAL_NORM, LAYER_LINEARS
from vacc_deploy.reference.decoder import (
    QKV,
    STAGE_LINEARS,
    DecoderLayer,
    Positions,
    batches,
    embed,
    float_reader,
    rms_norm,
    rotary_frequencies,
    walk_layer,
)

# The attention factor is explicit, so that transformers reads it too; see test_rope.
YARN = {**YARN_ROPE, "attention_factor": 1.0}
LLAMA3 = {**LLAMA3_ROPE, "original_max_position_embeddings": 64}
# What each model is built with: sizes, and what its config.json says. Sequences of 40 tokens reach
# into every rotary band.
MODELS = {
    "qwen2": ({}, {}),
    "qwen2-tied": ({"tied": True}, {}),
    "qwen2-grouped": ({"num_heads": 8, "num_kv_heads": 2}, {}),
    "qwen2-multi-head": ({"num_heads": 4, "num_kv_heads": 4}, {}),
    "qwen2-one-kv-head": ({"num_heads": 8, "num_kv_heads": 1}, {}),
    "qwen2-linear-rope": ({}, {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "qwen2-window-not-reached": ({}, {"use_sliding_window": True, "sliding_window": 40}),
    "qwen2-yarn": ({}, {"rope_scaling": YARN, "max_position_embeddings": 128}),
    "qwen3": ({}, {}),
    "qwen3-tied": ({"tied": True}, {}),
    "qwen3-heads-as-wide-as-hidden": ({}, {"head_dim": 16}),
    "qwen3-biases": ({}, {"attention_bias": True}),
    "qwen3-window-not-reached": ({}, {"use_sliding_window": True, "sliding_window": 40}),
    "qwen3-yarn": ({}, {"rope_scaling": YARN, "max_position_embeddings": 128}),
    "llama-yarn": ({}, {"rope_scaling": YARN, "max_position_embeddings": 128}),
    "llama-llama3-rope": ({}, {"rope_scaling": LLAMA3, "rope_theta": 10000.0}),
    "llama-plain-rope": ({}, {"rope_scaling": None}),
    "llama-tied": ({"tied": True}, {}),
    "llama-biases": ({}, {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ({}, {"head_dim": 24, "rope_scaling": None}),
}


def make_checkpoint(directory, *, num_layers=3, **arguments):
    options = {"dtype": torch.float32, "with_tokenizer": False, **arguments}
    return Checkpoint.open(write_checkpoint(directory, num_layers=num_layers, **options))


def make_model(directory, name, **arguments):
    sizes, overrides = MODELS[name]
    options = {"model_type": name.partition("-")[0], "config_overrides": overrides}
    return make_checkpoint(directory, **options, **sizes, **arguments)


def make_tokens(rows=3, seq=40, vocab_size=272):
    return torch.randint(0, vocab_size, (rows, seq), generator=torch.Generator().manual_seed(5))


def walk(checkpoint, tokens, *, batch_rows=2):
    """Return the hidden states after the embedding and after every layer."""
    positions = Positions.build(checkpoint.config, tokens.shape[1])
    states = [embed(checkpoint, tokens)]
    for index in range(checkpoint.config.num_hidden_layers):
        states.append(states[-1].clone())
        layer = DecoderLayer(checkpoint.config, index, positions, float_reader(checkpoint))
        walk_layer(layer, states[-1], batch_rows=batch_rows)
    return states


@pytest.mark.parametrize("name", MODELS)
def test_walk_layer_equals_transformers_after_every_layer(tmp_path, name):
    checkpoint, tokens = make_model(tmp_path / "model", name), make_tokens()
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(checkpoint.directory, **options).eval()
    collected = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, __, output: collected.append(output))
    with torch.inference_mode():
        output = model(tokens, output_hidden_states=True)
        states = walk(checkpoint, tokens)
        norm = checkpoint.read(FINAL_NORM).float()
        final = rms_norm(states[-1], norm, checkpoint.config.rms_norm_eps)
    assert torch.equal(states[0], output.hidden_states[0])
    expected = [value[0] if isinstance(value, tuple) else value for value in collected]
    for got, want in zip(states[1:], expected, strict=True):
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-5)
    assert torch.allclose(final, output.hidden_states[-1], rtol=1e-5, atol=1e-5)
    assert states[-1].std() > 0.5  # not a comparison of nothing


def test_rotary_frequencies_llama3_has_all_three_bands(tmp_path):
    options = {"num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
    checkpoint = make_model(tmp_path / "model", "llama-llama3-rope", **options)
    plain = 1.0 / 10000.0 ** (torch.arange(0, 32, 2) / 32)
    ratio = plain / rotary_frequencies(checkpoint.config)
    assert torch.allclose(ratio[0], torch.tensor(1.0))  # short waves stay
    assert torch.allclose(ratio[-1], torch.tensor(8.0))  # long ones are stretched
    assert ((ratio > 1.01) & (ratio < 7.99)).any()


def test_attend_and_activate_use_deployed_weights_where_told(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "model", num_layers=1)
    positions = Positions.build(checkpoint.config, 40)
    layer = DecoderLayer(checkpoint.config, 0, positions, float_reader(checkpoint))
    inputs = layer.attention_input(embed(checkpoint, make_tokens()))
    for name in LAYER_LINEARS:
        layer.set_quantized(name, torch.zeros(checkpoint.config.linear_shape(name)))
    assert layer.activate(inputs, layer.quantized).abs().max() == 0
    assert layer.activate(inputs).abs().max() > 0
    bias = layer.linear("v_proj").bias.view(2, 1, 16).expand(2, 2, 16).flatten()
    attended = layer.attend(inputs, layer.quantized)
    assert torch.allclose(attended, bias.expand_as(attended), atol=1e-6)  # only biases are left
    layer.release(QKV)
    with pytest.raises(KeyError):
        layer.quantized("q_proj")


def test_walk_layer_batch_rows_do_not_matter(tmp_path):
    checkpoint, tokens = make_checkpoint(tmp_path / "model"), make_tokens(rows=5)
    expected = walk(checkpoint, tokens, batch_rows=5)[-1]
    for batch_rows in (1, 2, 3, 64):
        got = walk(checkpoint, tokens, batch_rows=batch_rows)[-1]
        assert torch.allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_walk_layer_lets_go_of_every_linear_after_its_stage(tmp_path):
    checkpoint, tokens = make_checkpoint(tmp_path / "model", num_layers=2), make_tokens()
    plain_read, holders, alive = float_reader(checkpoint), {}, {}

    def read(name):
        tensor = plain_read(name)
        if name.endswith("_proj.weight"):
            assert name not in holders  # each is read once
            holders[name] = weakref.ref(tensor)
            linear = name.split(".")[-2]
            alive[linear] = sum(ref() is not None for ref in holders.values())
        return tensor

    positions = Positions.build(checkpoint.config, tokens.shape[1])
    hidden_states = embed(checkpoint, tokens)
    for index in range(2):
        layer = DecoderLayer(checkpoint.config, index, positions, read)
        walk_layer(layer, hidden_states, batch_rows=2)
        assert all(ref() is None for ref in holders.values())  # while the layer itself lives
    assert len(holders) == 14
    # Gate and up are still wanted for the next rows.
    assert alive == {
        "q_proj": 1, "k_proj": 2, "v_proj": 3, "o_proj": 1,
        "gate_proj": 1, "up_proj": 2, "down_proj": 3,
    }  # fmt: skip


def test_embed_reads_only_the_rows_that_occur(tmp_path):
    checkpoint, asked = make_checkpoint(tmp_path / "model", num_layers=1), []

    def read_rows(name, rows):
        asked.extend(rows)
        return checkpoint.read_rows(name, rows)

    tokens = torch.tensor([[5, 271, 5], [0, 7, 271]])
    got = embed(SimpleNamespace(read_rows=read_rows), tokens)
    assert torch.equal(got, checkpoint.read("model.embed_tokens.weight")[tokens])
    assert asked == [0, 5, 7, 271]


@pytest.mark.parametrize(
    ("overrides", "limit"),
    [
        ({"max_position_embeddings": 32}, 32),
        ({"use_sliding_window": True, "sliding_window": 16}, 16),
        ({"use_sliding_window": False, "sliding_window": 16}, 131072),
    ],
)
def test_positions_build_refuses_what_the_model_cannot_see(tmp_path, overrides, limit):
    config = make_checkpoint(tmp_path / "model", num_layers=1, config_overrides=overrides).config
    assert Positions.build(config, min(limit, 64)).cos.shape == (min(limit, 64), 16)
    with pytest.raises(CheckpointError) as err:
        Positions.build(config, limit + 1)
    assert str(err.value) == (
        f"Sequences of {limit + 1} tokens are longer than the model's context or sliding window of "
        f"{limit}. Use a shorter --seq-len."
    )


def test_batches_cover_every_row_once():
    assert batches(5, 2) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert batches(2, 8) == [slice(0, 2)]
    assert batches(0, 8) == []


def test_stage_linears_are_all_seven():
    names = [name for linears in STAGE_LINEARS.values() for name in linears]
    assert sorted(names) == sorted(LAYER_LINEARS)
