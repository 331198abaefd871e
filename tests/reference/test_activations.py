"""Inputs rounded to int8 in the walk: the rule, its owners' arithmetic, and what verify tells."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from checkpoint_builders import read_tensors, write_checkpoint, write_weights
from click.testing import CliRunner
from format_directories import write_format
from reference_logits import decoder_logits, make_tokens
from transformers import AutoModelForCausalLM

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.cli import cli
from vacc_deploy.cli.verify import verify_command
from vacc_deploy.models.config import LAYER_LINEARS
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference import activations
from vacc_deploy.reference.activations import (
    ACTIVATIONS,
    RoundedLayer,
    RoundingError,
    describe_rounding,
    round_tokens,
)
from vacc_deploy.reference.decoder import DecoderLayer, Positions, embed, float_reader
from vacc_deploy.reference.generate import Responder
from vacc_deploy.reference.verify import verify

TOKENS = make_tokens()


@pytest.fixture(scope="module", params=["qwen2", "llama", "qwen3"])
def pair(request, tmp_path_factory):
    """A float model and its int-quantized directory."""
    root = tmp_path_factory.mktemp("activations")
    source = write_checkpoint(root / "model", model_type=request.param, scale=2.0)
    return source, write_format(source, "int-quantized", root / "int-quantized")


# ---- the rule -----------------------------------------------------------------------------------


def test_round_tokens_literal_values():
    inputs = torch.tensor([[127.0, 0.5, 1.5, -2.5], [0.0, 0.0, 0.0, 0.0], [-254.0, 1.0, 3.0, 5.0]])
    # Halves go to the even code; the third token has scale 2.
    expected = [[127, 0, 2, -2], [0, 0, 0, 0], [-254, 0, 4, 4]]
    assert round_tokens(inputs).tolist() == expected
    assert inputs[0, 1] == 0.5  # the caller's


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_round_tokens_passes_on_what_is_not_finite(bad):
    rounded = round_tokens(torch.tensor([[1.0, bad], [127.0, 1.0]]))
    assert rounded[0].isnan().any()
    assert rounded[1].tolist() == [127, 1]


def test_the_command_offers_the_activations_of_the_library():
    (option,) = [item for item in verify_command.params if item.name == "activations"]
    assert tuple(option.type.choices) == ACTIVATIONS


# ---- the arithmetic of compressed-tensors -------------------------------------------------------


def load_with_compressed_tensors(directory):
    pytest.importorskip("compressed_tensors")
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    ).eval()
    with torch.inference_mode():
        model(TOKENS)  # decompresses
    return model


def test_every_linear_computes_what_compressed_tensors_computes(pair, monkeypatch):
    # Its rule is that of vLLM with another divisor.
    monkeypatch.setattr(activations, "STEPS", 127.5)
    model, read = load_with_compressed_tensors(pair[1]), float_reader(Checkpoint.open(pair[1]))
    seen = {}
    for name in Checkpoint.open(pair[1]).config.linear_names():

        def see(_module, inputs, output, name=name):
            seen[name] = inputs[0], output

        linear = model.get_submodule(name)
        assert torch.equal(linear.weight, read(f"{name}.weight"))
        linear.register_forward_hook(see)
    with torch.inference_mode():
        model(TOKENS)
    assert len(seen) == 2 * len(LAYER_LINEARS)
    for name, (inputs, output) in seen.items():
        linear = model.get_submodule(name)
        expected = F.linear(round_tokens(inputs), linear.weight, linear.bias)
        assert (expected - output).abs().max() <= 1e-5 * output.abs().max()
        # And it does round.
        exact = F.linear(inputs, linear.weight, linear.bias)
        assert (exact - output).abs().max() > 1e-3 * output.abs().max()


def test_a_whole_model_computes_what_compressed_tensors_computes(pair, monkeypatch):
    """Nearly: an input between two codes may be rounded up by one sum and down by another."""
    with torch.inference_mode():
        expected = load_with_compressed_tensors(pair[1])(TOKENS).logits

    def distance(kind, steps):
        monkeypatch.setattr(activations, "STEPS", steps)
        monkeypatch.setattr("reference_logits.DecoderLayer", kind)
        with torch.inference_mode():
            return (decoder_logits(pair[1], TOKENS) - expected).norm().item()

    same = distance(RoundedLayer, 127.5)
    assert same < 0.3 * distance(DecoderLayer, 127.5)
    assert same < 0.3 * distance(RoundedLayer, 127)


# ---- what is counted ----------------------------------------------------------------------------


def test_errors_are_means_over_tokens_of_each_linear(pair):
    checkpoint = Checkpoint.open(pair[1])
    config, read = checkpoint.config, float_reader(checkpoint)
    positions = Positions.build(config, TOKENS.shape[1])
    rounded, plain = (kind(config, 0, positions, read) for kind in (RoundedLayer, DecoderLayer))
    inputs = plain.attention_input(embed(checkpoint, TOKENS))
    inputs[0, 3, 5] *= 100  # a token with an outlier: it does not hide the others
    for half in inputs:  # batch by batch, and released in between
        rounded.linear("q_proj")(half[None])
        rounded.release("qkv")
    (error,) = rounded.errors()
    weight = read("model.layers.0.self_attn.q_proj.weight")
    exact, got = inputs @ weight.T, round_tokens(inputs) @ weight.T
    ratios = (got - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert error.linear == "model.layers.0.self_attn.q_proj"
    assert error.relative_error == pytest.approx(ratios.mean().item(), rel=1e-4)
    assert ratios[0, 3] > 2 * ratios.mean()


def test_a_token_without_output_has_no_error(pair):
    checkpoint = Checkpoint.open(pair[1])
    layer = RoundedLayer(
        checkpoint.config, 0, Positions.build(checkpoint.config, 4), float_reader(checkpoint)
    )
    layer.linear("down_proj")(torch.zeros(1, 4, checkpoint.config.intermediate_size))
    assert [error.relative_error for error in layer.errors()] == [0.0]


def test_the_worst_linears_are_shown_first():
    errors = [RoundingError(f"l{i}", 0.01 * i) for i in range(8)]
    lines = describe_rounding([RoundingError("nan", math.nan), *errors]).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["nan", "l7", "l6", "l5", "l4"]
    assert lines[3].split() == ["l7", "7.00e-02"]


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_an_error_that_is_no_number_is_null_in_json(error):
    values = RoundingError("l0", error).to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == {
        "linear": "l0",
        "relative_error": None,
    }


def test_generate_says_that_its_inputs_stay_floats(pair):
    source, directory = pair
    (note,) = Responder(directory).notes
    assert note.startswith("other runtimes of this directory round the inputs of the linears")
    assert Responder(source).notes == ()


# ---- verify -------------------------------------------------------------------------------------


def judge(directory, source, **options):
    return verify(directory, reference_dir=source, max_tokens=96, limits=None, **options)


def test_verify_rounds_what_the_runtimes_of_the_layout_round(pair, tmp_path):
    source, directory = pair
    auto = judge(directory, source)
    assert auto.activations == "int8" and len(auto.rounding) == 14
    assert auto.scores == judge(directory, source, activations="int8").scores
    plain = judge(directory, source, activations="float")
    assert (plain.activations, plain.rounding) == ("float", ())
    assert plain.scores.mean_kl < auto.scores.mean_kl
    codes = write_format(source, "int8", tmp_path / "int8")
    same = judge(codes, source)
    assert same.activations == "float" and same.scores == plain.scores
    # The same weights with rounded inputs, asked for.
    assert judge(codes, source, activations="int8").scores == auto.scores


def test_verify_names_the_layer_whose_input_has_an_outlier(tmp_path):
    source = write_checkpoint(tmp_path / "model")
    tensors = read_tensors(source)
    # One channel of the MLP is huge, and down_proj hardly reads it.
    tensors["model.layers.1.mlp.up_proj.weight"][7] *= 1000
    tensors["model.layers.1.mlp.down_proj.weight"][:, 7] /= 1000
    write_weights(source, tensors)
    options = QuantizeOptions("rtn", formats=("int-quantized",))
    directory = quantize(source, options=options).output_dir
    arguments = ("verify", directory, "--max-tokens", "96", "--max-kl", "inf", "--min-top1", "0")
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    lines = result.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("most changed by"))
    assert lines[start + 2].startswith("model.layers.1.mlp.down_proj  ")
    assert "activations           inputs of the linears rounded to int8, token by token" in lines
    values = json.loads(CliRunner().invoke(cli, [*(str(a) for a in arguments), "--json"]).stdout)
    assert values["activations"] == "int8"
    by_name = {entry["linear"]: entry["relative_error"] for entry in values["rounding"]}
    assert by_name["model.layers.1.mlp.down_proj"] > 3 * by_name["model.layers.0.mlp.down_proj"]
