"""Damaged weights in each command: what is refused before anything is written, and what is said."""

import json

import pytest
import torch
from checkpoint_builders import build_config, build_tensors, write_checkpoint
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.cli import cli

LAYER = "model.layers.1."
COPIED = ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"]
COPIED += [f"{LAYER}input_layernorm.weight", f"{LAYER}self_attn.q_proj.bias"]
LINEARS = [f"{LAYER}{linear}.weight" for linear in ("self_attn.k_proj", "mlp.up_proj")]
TEXT = "The quick brown fox jumps over the lazy dog. " * 9


def run(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    return result.exit_code, result.stderr if result.exit_code == 1 else result.stdout


def write_with(directory, name, value, row=slice(None)):
    tensors = build_tensors(build_config(), scale=2.0)
    tensors[name][row] = value
    return write_checkpoint(directory, extra_tensors=tensors)


def damage(directory, name, value):
    """Change the first value of a stored tensor."""
    path = Checkpoint.open(directory).info(name).path
    tensors = load_file(path)
    tensors[name].view(-1)[0] = value
    save_file(tensors, path, metadata={"format": "pt"})
    return path.name


@pytest.mark.parametrize("name", [*COPIED, *LINEARS])
def test_prepare_refuses_nan_and_writes_nothing(tmp_path, name):
    source, output = write_with(tmp_path / "m", name, float("nan"), 7), tmp_path / "out"
    code, text = run("prepare", source, "--output", output)
    assert code == 1 and f"  - {name} in model.safetensors: row 7 holds NaN\n" in text
    assert "Download again: model.safetensors." in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
    # A plan reads no weights.
    assert run("prepare", source, "--output", output, "--dry-run")[0] == 0


def test_prepare_notes_what_a_model_can_work_with(tmp_path):
    source = write_with(tmp_path / "m", f"{LAYER}mlp.down_proj.weight", 0.0)
    code, text = run("prepare", source, "--output", tmp_path / "out")
    assert (
        code == 0 and f"Note: {LAYER}mlp.down_proj.weight: all of its values are zero, so" in text
    )


@pytest.mark.parametrize("method", ["rtn", "gptq", "dry-run"])
@pytest.mark.parametrize("name", [*COPIED, *LINEARS])
def test_quantize_refuses_dead_weights_and_writes_nothing(tmp_path, name, method):
    is_linear = name in LINEARS
    value = 0.0 if is_linear else float("nan")
    source = write_with(tmp_path / "m", name, value, slice(None) if is_linear else 7)
    (tmp_path / "text.txt").write_text(TEXT * 20)
    options = ["--method", "rtn", *(["--dry-run"] if method == "dry-run" else [])]
    if method == "gptq":
        options = ["--calibration", f"text={tmp_path / 'text.txt'}", "--seq-len", "32"]
        options += ["--num-samples", "24"]
    code, text = run("quantize", source, "--output", tmp_path / "out", *options)
    problem = "all of its values are zero" if is_linear else "row 7 holds NaN"
    assert code == 1 and f"  - {name} in model.safetensors: {problem}\n" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "text.txt"]


def test_quantize_of_a_prepared_directory_says_to_prepare_again(tmp_path):
    source, prepared = write_checkpoint(tmp_path / "m"), tmp_path / "p"
    assert run("prepare", source, "--output", prepared, "--link-mode", "copy")[0] == 0
    damage(prepared, "model.norm.weight", float("inf"))
    code, text = run("quantize", prepared, "--method", "rtn")
    assert code == 1 and "model.norm.weight in model.safetensors: row 0 holds infinity" in text
    assert f"\n  vacc-deploy prepare {source} --output {prepared}\n" in f"{text}\n"


def test_quantize_warns_of_a_part_of_a_layer_that_adds_nothing(tmp_path):
    source = write_with(tmp_path / "m", f"{LAYER}self_attn.o_proj.weight", 0.0)
    code, text = run("quantize", source, "--method", "rtn", "--output", tmp_path / "out")
    assert code == 0 and f"Warning: {LAYER}self_attn.o_proj.weight: all of its values are" in text


def make_pair(tmp_path, layout="int8"):
    source, deployed = write_checkpoint(tmp_path / "m", scale=2.0), tmp_path / "q"
    options = ("--method", "rtn", "--format", layout, "--output", deployed)
    assert run("quantize", source, *options)[0] == 0
    (deployed / "vacc_deploy.json").unlink()  # it would tell that files were changed since
    (tmp_path / "text.txt").write_text(TEXT)
    return source, deployed


def verify(tmp_path, source, deployed):
    options = ("--reference", source, "--text", tmp_path / "text.txt", "--max-kl", "inf")
    return run("verify", deployed, *options, "--min-top1", "0")


@pytest.mark.parametrize("name", [*COPIED, f"{LAYER}self_attn.q_proj.bias"])
def test_verify_names_the_dead_tensor_of_the_float_side(tmp_path, name):
    source, deployed = make_pair(tmp_path)
    if name == "model.embed_tokens.weight":
        tensors = load_file(source / "model.safetensors")
        tensors[name][:] = float("nan")  # whichever of its rows the text uses
        save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    damage(source, name, float("nan"))
    code, text = verify(tmp_path, source, deployed)
    damaged = f"Failed: the float model {source} is damaged: {name} in model.safetensors: row 0"
    assert code == 3 and damaged in text and "the deployed model" not in text
    assert "same top token        0.00%" in text
    assert "Note: Download again: model.safetensors." in text


@pytest.mark.parametrize("part", ["weight_scale", "bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_verify_names_the_dead_tensor_of_the_deployed_side(tmp_path, part, value):
    source, deployed = make_pair(tmp_path)
    name = f"{LAYER}self_attn.v_proj.{part}"
    file = damage(deployed, name, value)
    code, text = verify(tmp_path, source, deployed)
    assert code == 3 and "Failed: the float model" not in text
    damaged = f"Failed: the deployed model {deployed} is damaged: {name} in {file}: row 0 holds "
    assert damaged in text


def test_verify_names_both_sides_and_three_tensors_of_each(tmp_path):
    source, deployed = make_pair(tmp_path, "vamc")
    for directory in (source, deployed):
        for path in directory.glob("*.safetensors"):
            tensors = load_file(path)
            for tensor in tensors.values():
                tensor.zero_()
            save_file(tensors, path, metadata={"format": "pt"})
    code, text = verify(tmp_path, source, deployed)
    assert code == 3 and text.count("is damaged: ") == 2
    assert "knows nothing of this text: its perplexity is 272," in text
    assert "model.safetensors is zero from byte " in text


def test_verify_of_a_sound_pair_that_fails_names_no_tensor(tmp_path):
    source, deployed = make_pair(tmp_path)
    options = ("--reference", source, "--max-kl", "0", "--json")
    code, text = run("verify", deployed, *options)
    failures = json.loads(text)["failures"]
    assert code == 3 and not [line for line in failures if "damaged" in line]


def test_nan_predicts_no_token(tmp_path):
    source, deployed = make_pair(tmp_path)
    for directory in (source, deployed):
        damage(directory, "lm_head.weight", float("nan"))
    options = ("--reference", source, "--text", tmp_path / "text.txt", "--json")
    code, text = run("verify", deployed, *options)
    assert code == 3 and json.loads(text)["top1"] == 0 and json.loads(text)["mean_kl"] is None
    assert torch.isnan(Checkpoint.open(source).read("lm_head.weight")).any()
