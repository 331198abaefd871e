"""Each format read back: by verify and generate, by stock transformers, and refused elsewhere."""

import json

import pytest
import torch
from checkpoint_builders import read_tensors, write_checkpoint
from click.testing import CliRunner
from format_directories import write_format
from reference_logits import decoder_logits
from transformers import AutoModelForCausalLM

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.cli import cli
from vacc_deploy.errors import CheckpointError
from vacc_deploy.formats.int8 import dequantize, quantize_rounding
from vacc_deploy.formats.layouts import (
    COMPRESSED_TENSORS,
    GPTQ,
    GPTQ_ONE_GROUP,
    INT_QUANTIZED,
    LAYOUTS,
)
from vacc_deploy.graphs.export import export_onnx
from vacc_deploy.prepare import prepare
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference.decoder import float_reader
from vacc_deploy.reference.generate import generate
from vacc_deploy.reference.loader import load_model
from vacc_deploy.reference.verify import verify

PACKED = (GPTQ, GPTQ_ONE_GROUP, COMPRESSED_TENSORS, INT_QUANTIZED)
# Two groups of 128 columns in down_proj, one elsewhere.
SIZES = {"hidden_size": 128, "intermediate_size": 256}
KINDS = [("qwen2", False), ("qwen2", True), ("llama", False), ("llama", True)]
TOKENS = torch.arange(40).view(2, 20)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-tied{kind[1]}")
def directories(request, tmp_path_factory):
    """The float source under ``float``, and one directory per format."""
    root = tmp_path_factory.mktemp("formats")
    model_type, tied = request.param
    source = write_checkpoint(root / "float", model_type=model_type, tied=tied, scale=2.0, **SIZES)
    written = {layout: write_format(source, layout, root / layout) for layout in LAYOUTS}
    return {"float": source, **written}


def run(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def last_logits(model):
    with torch.inference_mode():
        return model(TOKENS).logits[:, -1].float()


# ---- the package's own readers ----------------------------------------------------------------


def test_all_formats_hold_the_same_weights_and_leave_the_rest_as_it_was(directories):
    stored = read_tensors(directories["float"])
    config = Checkpoint.open(directories["float"]).config
    for layout in LAYOUTS:
        checkpoint = Checkpoint.open(directories[layout])
        assert checkpoint.config.quantization_format == ("" if layout == "vamc" else layout)
        assert checkpoint.config.differences(config) == {}
        read, linears = float_reader(checkpoint), config.linear_names()
        for name, tensor in stored.items():
            if name.removesuffix(".weight") not in linears:
                # A GGUF file has float16 tables and float32 norms; of bfloat16 that loses nothing
                # but what is smaller than the smallest step of float16.
                difference = (checkpoint.read(name).float() - tensor.float()).abs().max()
                assert difference <= (2.0**-25 if layout == "gguf" else 0)
                assert layout == "gguf" or checkpoint.read(name).dtype == tensor.dtype
                continue
            expected = dequantize(*quantize_rounding(tensor))
            if layout == "vamc":
                expected = expected.half().float()
            assert torch.equal(read(name), expected)


def test_decoder_and_loader_agree_on_every_format(directories):
    reference = decoder_logits(directories["int8"], TOKENS)[:, -1]
    scale = reference.abs().max()
    for layout in LAYOUTS:
        tolerance = 2e-2 if layout == "vamc" else 1e-5
        for got in (
            decoder_logits(directories[layout], TOKENS)[:, -1],
            last_logits(load_model(directories[layout])),
        ):
            assert (got - reference).abs().max() <= tolerance * scale


@pytest.mark.parametrize("layout", LAYOUTS)
def test_verify_compares_every_format_with_its_float_model(directories, layout):
    # All layouts alike; test_activations has what the inputs of int-quantized are rounded to.
    plain = {"max_tokens": 128, "activations": "float"}
    result = verify(directories[layout], reference_dir=directories["float"], **plain)
    expected = verify(directories["int8"], reference_dir=directories["float"], **plain)
    tolerance = 0.05 if layout == "vamc" else 1e-4
    assert 0 < result.scores.mean_kl < 1
    assert result.scores.mean_kl == pytest.approx(expected.scores.mean_kl, rel=tolerance)
    limits = ("--max-kl", "1", "--min-top1", "0.5")
    output = run("verify", directories[layout], "--reference", directories["float"], *limits)
    # A random model: both limits are met, and the verdict is that neither side knows the text.
    assert output.exit_code == 3, output.output
    failed = [line for line in output.stdout.splitlines() if line.startswith("Failed: ")]
    assert len(failed) == 2 and all("model knows nothing of this text" in line for line in failed)


@pytest.mark.parametrize("layout", PACKED)
def test_generate_answers_as_the_int8_directory_does(directories, layout):
    answers = [
        generate(directories[name], prompt="hello", max_new_tokens=8).text
        for name in ("int8", layout)
    ]
    assert answers[0] == answers[1] != ""


# ---- stock transformers -----------------------------------------------------------------------


def stock_logits(directory, dtype):
    pytest.importorskip("compressed_tensors")
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, attn_implementation="eager", trust_remote_code=False
    ).eval()
    return model, last_logits(model)


def test_stock_transformers_loads_compressed_tensors_exactly_in_float32(directories):
    reference = last_logits(load_model(directories["int8"]))
    model, logits = stock_logits(directories[COMPRESSED_TENSORS], torch.float32)
    assert (logits - reference).abs().max() <= 1e-5 * reference.abs().max()
    read = float_reader(Checkpoint.open(directories["int8"]))
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        # Decompressed by the forward pass: every weight is code · scale, with nothing rounded.
        assert torch.equal(model.get_submodule(name).weight, read(f"{name}.weight"))


def test_stock_transformers_follows_the_float16_of_the_config(directories):
    reference = last_logits(load_model(directories["int8"]))
    model, logits = stock_logits(directories[COMPRESSED_TENSORS], "auto")
    assert model.dtype == torch.float16
    linear = model.model.layers[0].mlp.up_proj
    stored = Checkpoint.open(directories["int8"]).read("model.layers.0.mlp.up_proj.weight_scale")
    assert torch.equal(linear.weight_scale.detach()[:, 0], stored)
    assert (logits - reference).abs().max() <= 1e-2 * reference.abs().max()


def test_stock_transformers_loads_vamc_as_a_float_checkpoint(directories):
    weights = read_tensors(directories["vamc"])
    model = AutoModelForCausalLM.from_pretrained(
        directories["vamc"], dtype="auto", attn_implementation="eager"
    )
    assert model.dtype == torch.float16
    for name in Checkpoint.open(directories["vamc"]).config.linear_names():
        assert torch.equal(model.get_submodule(name).weight, weights[f"{name}.weight"])


# ---- refused where the layout cannot serve ----------------------------------------------------


@pytest.mark.parametrize("layout", PACKED)
def test_the_compiler_s_commands_refuse_a_layout_for_stock_loaders(directories, tmp_path, layout):
    directory = directories[layout]
    message = (
        f"{directory} holds weights in the {layout} layout ({LAYOUTS[layout].purpose}); "
        "the compiler's side reads vamc and prepared directories. Give the vamc directory of the "
        "same run of quantize, or the prepared directory."
    )
    with pytest.raises(CheckpointError) as caught:
        export_onnx(directory, output=tmp_path / "onnx")
    assert str(caught.value) == message
    output = run("yaml", directory)
    assert output.exit_code == 1 and message in " ".join(output.output.split())
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize("layout", PACKED)
def test_a_packed_directory_is_not_a_source(directories, tmp_path, layout):
    directory = directories[layout]
    with pytest.raises(CheckpointError, match="is quantized already. Give the float directory"):
        quantize(directory, options=QuantizeOptions("rtn"), output=tmp_path / "out")
    with pytest.raises(CheckpointError, match=rf"holds int8 values already \(format {layout}\)"):
        prepare(weights=directory, output=tmp_path / "out")
    with pytest.raises(CheckpointError, match="is quantized. Give the float model"):
        verify(directories["float"], reference_dir=directory)


@pytest.mark.parametrize(
    ("layout", "suffix"),
    [
        (GPTQ, "qweight"),
        (GPTQ_ONE_GROUP, "g_idx"),
        (COMPRESSED_TENSORS, "weight_shape"),
        (INT_QUANTIZED, "weight_scale"),
    ],
)
def test_a_missing_tensor_of_a_linear_is_named(tmp_path, layout, suffix):
    source = write_checkpoint(tmp_path / "model", **SIZES)
    directory = write_format(source, layout, tmp_path / "packed")
    path = directory / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "num_hidden_layers": 3, "max_window_layers": 3}))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    name = f"model.layers.2.mlp.down_proj.{suffix}"
    assert f"{name} is missing (config.json needs it" in str(caught.value)


def test_float_weights_beside_a_packed_config_are_read_as_floats(tmp_path):
    source = write_checkpoint(tmp_path / "model")
    values = json.loads((source / "config.json").read_text())
    packed = write_format(source, GPTQ, tmp_path / "packed")
    stated = json.loads((packed / "config.json").read_text())["quantization_config"]
    (source / "config.json").write_text(json.dumps({**values, "quantization_config": stated}))
    checkpoint = Checkpoint.open(source)
    assert not checkpoint.config.quantization_format
    assert [rule.rule for rule in checkpoint.applied] == ["left-over-quantization"]


def test_packed_weights_without_their_config_are_refused(tmp_path):
    packed = write_format(write_checkpoint(tmp_path / "model"), GPTQ, tmp_path / "packed")
    values = json.loads((packed / "config.json").read_text())
    del values["quantization_config"]
    (packed / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="down_proj.qweight in .* belongs to no part"):
        Checkpoint.open(packed)
