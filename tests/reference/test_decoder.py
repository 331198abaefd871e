"""The staged decoder beside transformers' Qwen2 and Llama, and what the walk shows and keeps."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from checkpoint_builders import write_checkpoint
from transformers import AutoModelForCausalLM

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError
from vacc_deploy.models.config import FINAL_NORM, LAYER_LINEARS
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference.decoder import (
    DOWN,
    GATE_UP,
    OUTPUT,
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

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# What each model is built with; sequences of 40 tokens reach into every rotary band.
MODELS = {
    "qwen2": {"model_type": "qwen2"},
    "qwen2-tied": {"model_type": "qwen2", "tied": True},
    "qwen2-grouped": {"model_type": "qwen2", "num_heads": 8, "num_kv_heads": 2},
    "qwen2-multi-head": {"model_type": "qwen2", "num_heads": 4, "num_kv_heads": 4},
    "qwen2-one-kv-head": {"model_type": "qwen2", "num_heads": 8, "num_kv_heads": 1},
    "qwen2-linear-rope": {
        "model_type": "qwen2",
        "config_overrides": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    },
    "qwen2-window-not-reached": {
        "model_type": "qwen2",
        "config_overrides": {"use_sliding_window": True, "sliding_window": 40},
    },
    "llama-llama3-rope": {
        "model_type": "llama",
        "config_overrides": {"rope_scaling": LLAMA3, "rope_theta": 10000.0},
    },
    "llama-plain-rope": {"model_type": "llama", "config_overrides": {"rope_scaling": None}},
    "llama-tied": {"model_type": "llama", "tied": True},
    "llama-biases": {
        "model_type": "llama",
        "config_overrides": {"attention_bias": True, "mlp_bias": True},
    },
    "llama-head-dim": {
        "model_type": "llama",
        "config_overrides": {"head_dim": 24, "rope_scaling": None},
    },
}


def make_checkpoint(directory, *, num_layers=3, **arguments):
    path = write_checkpoint(
        directory,
        dtype=torch.float32,
        num_layers=num_layers,
        with_tokenizer=False,
        **arguments,
    )
    return Checkpoint.open(path)


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


def stage_inputs(checkpoint, tokens):
    """Return the inputs of every stage, a tensor for each layer."""
    positions = Positions.build(checkpoint.config, tokens.shape[1])
    states = embed(checkpoint, tokens)
    seen = {stage: [] for stage in STAGE_LINEARS}
    for index in range(checkpoint.config.num_hidden_layers):
        layer = DecoderLayer(checkpoint.config, index, positions, float_reader(checkpoint))
        seen[QKV].append(layer.attention_input(states))
        seen[OUTPUT].append(layer.attend(seen[QKV][-1]))
        states = states + layer.linear("o_proj")(seen[OUTPUT][-1])
        seen[GATE_UP].append(layer.mlp_input(states))
        seen[DOWN].append(layer.activate(seen[GATE_UP][-1]))
        states = states + layer.linear("down_proj")(seen[DOWN][-1])
    return seen


def stock_model(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.directory, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_walk_layer_equals_transformers_after_every_layer(tmp_path, name):
    checkpoint, tokens = make_checkpoint(tmp_path / "model", **MODELS[name]), make_tokens()
    model = stock_model(checkpoint)
    collected = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: collected.append(output))
        for layer in model.model.layers
    ]
    with torch.inference_mode():
        output = model(tokens, output_hidden_states=True)
        states = walk(checkpoint, tokens)
        norm = checkpoint.read(FINAL_NORM).float()
        final = rms_norm(states[-1], norm, checkpoint.config.rms_norm_eps)
    for hook in hooks:
        hook.remove()
    assert torch.equal(states[0], output.hidden_states[0])
    expected = [value[0] if isinstance(value, tuple) else value for value in collected]
    for got, want in zip(states[1:], expected, strict=True):
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-5)
    assert torch.allclose(final, output.hidden_states[-1], rtol=1e-5, atol=1e-5)
    assert states[-1].std() > 0.5  # not a comparison of nothing


@pytest.mark.parametrize("name", ["qwen2", "qwen2-linear-rope", "llama-llama3-rope"])
def test_rotary_frequencies_equal_transformers(tmp_path, name):
    checkpoint = make_checkpoint(tmp_path / "model", num_layers=1, **MODELS[name])
    rotary = stock_model(checkpoint).model.rotary_emb
    frequencies = rotary_frequencies(checkpoint.config)
    assert torch.allclose(frequencies, rotary.inv_freq, rtol=1e-6, atol=0)
    positions = Positions.build(checkpoint.config, 33)
    cos, sin = rotary(torch.zeros(1), torch.arange(33)[None])
    assert torch.allclose(positions.cos, cos[0], atol=1e-6)
    assert torch.allclose(positions.sin, sin[0], atol=1e-6)


def test_rotary_frequencies_llama3_has_all_three_bands(tmp_path):
    checkpoint = make_checkpoint(
        tmp_path / "model", num_layers=1, **MODELS["llama-llama3-rope"], num_heads=2, num_kv_heads=1
    )
    plain = 1.0 / 10000.0 ** (torch.arange(0, 32, 2) / 32)
    ratio = plain / rotary_frequencies(checkpoint.config)
    assert torch.allclose(ratio[0], torch.tensor(1.0))  # short waves stay
    assert torch.allclose(ratio[-1], torch.tensor(8.0))  # long ones are stretched
    assert ((ratio > 1.01) & (ratio < 7.99)).any()


@pytest.mark.parametrize("name", ["qwen2", "llama-biases"])
def test_stages_of_a_layer_have_the_inputs_of_transformers(tmp_path, name):
    checkpoint, tokens = make_checkpoint(tmp_path / "model", **MODELS[name]), make_tokens()
    model, expected = stock_model(checkpoint), {}

    def record(stage):
        return lambda _, args: expected.setdefault(stage, []).append(args[0].clone())

    for layer in model.model.layers:
        for stage, linear in (
            (QKV, layer.self_attn.q_proj),
            (OUTPUT, layer.self_attn.o_proj),
            (GATE_UP, layer.mlp.gate_proj),
            (DOWN, layer.mlp.down_proj),
        ):
            linear.register_forward_pre_hook(record(stage))
    with torch.inference_mode():
        model(tokens)
        seen = stage_inputs(checkpoint, tokens)
    for stage in STAGE_LINEARS:
        for got, want in zip(seen[stage], expected[stage], strict=True):
            assert torch.allclose(got, want, rtol=1e-5, atol=1e-5)


def test_attend_and_activate_use_deployed_weights_where_told(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "model", num_layers=1)
    positions = Positions.build(checkpoint.config, 40)
    layer = DecoderLayer(checkpoint.config, 0, positions, float_reader(checkpoint))
    inputs = layer.attention_input(embed(checkpoint, make_tokens()))
    for name in LAYER_LINEARS:
        layer.deploy(name, torch.zeros(checkpoint.config.linear_shape(name)))
    assert layer.activate(inputs, layer.deployed).abs().max() == 0
    assert layer.activate(inputs).abs().max() > 0
    bias = layer.linear("v_proj").bias.view(2, 1, 16).expand(2, 2, 16).flatten()
    attended = layer.attend(inputs, layer.deployed)
    assert torch.allclose(attended, bias.expand_as(attended), atol=1e-6)  # only biases are left
    layer.release(QKV)
    with pytest.raises(KeyError):
        layer.deployed("q_proj")


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


def test_float_reader_dequantizes_int8_and_widens_floats(tmp_path):
    source = write_checkpoint(tmp_path / "model", with_tokenizer=False)
    quantize(source, options=QuantizeOptions("rtn"))
    deployed = Checkpoint.open(tmp_path / "model-int8")
    read, name = float_reader(deployed), "model.layers.1.mlp.up_proj"
    codes, scale = deployed.read(f"{name}.weight"), deployed.read(f"{name}.weight_scale")
    assert torch.equal(read(f"{name}.weight"), codes.float() * scale.float()[:, None])
    assert read(FINAL_NORM).dtype == torch.float32


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
