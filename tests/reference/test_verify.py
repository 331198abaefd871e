"""``verify`` and its command: the figures, the reference it finds, texts and limits."""

import json
import math
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from checkpoint_builders import read_tensors, write_checkpoint
from click.testing import CliRunner
from reference_logits import edit_json
from safetensors.torch import load_file, save_file
from tokenizer_builders import BOS_ID, byte_ids
from transformers import AutoModelForCausalLM

from vacc_deploy.cli import cli
from vacc_deploy.errors import CheckpointError, UsageError
from vacc_deploy.prepare import prepare
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference.next_tokens import NextTokenScores
from vacc_deploy.reference.verify import Limits, verify

TEXT = "The quick brown fox jumps over the lazy dog. " * 9


def make_pair(tmp_path, model_type="qwen2", **arguments):
    """Return a float directory and its int8 directory."""
    source = write_checkpoint(tmp_path / "model", model_type=model_type, **arguments)
    return source, quantize(source, options=QuantizeOptions("rtn", formats=("int8",))).output_dir


def write_text(tmp_path, content=TEXT):
    path = tmp_path / "text.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def refuse(name):
    pytest.fail(f"{name} is not JSON")


def run(*arguments):
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def run_json(*arguments):
    """Return the exit code and the one object on stdout, which holds no NaN and no Infinity."""
    result = run(*arguments, "--json")
    return result.exit_code, json.loads(result.stdout, parse_constant=refuse)


# ---- figures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [False, True])
def test_verify_equals_two_transformers_models(tmp_path, model_type, tied):
    source, deployed = make_pair(tmp_path, model_type, tied=tied, scale=2.0)
    result = verify(deployed, text_file=write_text(tmp_path), max_tokens=300, sequence_length=64)
    ids = byte_ids(TEXT)[:252]
    tokens = torch.tensor([[BOS_ID, *ids[i : i + 63]] for i in range(0, 252, 63)])
    # The int8 weights written back as floats: what any library computes with them.
    plain = write_checkpoint(
        tmp_path / "plain", model_type=model_type, tied=tied, dtype=torch.float32
    )
    tensors = read_tensors(deployed)
    for name in [name for name in tensors if name.endswith("weight_scale")]:
        scale, base = tensors.pop(name).float(), name.removesuffix("_scale")
        tensors[base] = tensors[base].float() * scale[:, None]
    save_file({n: t.float().contiguous() for n, t in tensors.items()}, plain / "model.safetensors")
    tables, hidden = [], []
    for directory in (source, plain):
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        states = []
        for layer in model.model.layers:
            layer.register_forward_hook(lambda _, __, output, states=states: states.append(output))
        with torch.inference_mode():
            logits = model(tokens).logits.double()
        tables.append(F.log_softmax(logits[:, :-1].flatten(0, 1), -1))
        hidden.append([s[0] if isinstance(s, tuple) else s for s in states])
    targets = tokens[:, 1:].flatten()
    divergence = (tables[0].exp() * (tables[0] - tables[1])).sum(1)
    scores = result.scores
    assert scores.num_tokens == 4 * 63
    perplexities = [F.nll_loss(table, targets).exp().item() for table in tables]
    got = [scores.perplexity_float, scores.perplexity_deployed]
    assert got == pytest.approx(perplexities, rel=1e-5)
    assert scores.mean_kl == pytest.approx(divergence.mean().item(), rel=1e-2)
    assert scores.max_kl == pytest.approx(divergence.max().item(), rel=5e-2)
    agree = (tables[0].argmax(1) == tables[1].argmax(1)).double().mean().item()
    assert scores.top1 == pytest.approx(agree, abs=1.5 / 252)
    for error, left, right in zip(result.layers, *hidden, strict=True):
        relative = ((right - left).norm() / left.norm()).item()
        assert error.relative_error == pytest.approx(relative, rel=1e-2)
        assert error.sqnr_db == pytest.approx(-20 * math.log10(relative), abs=0.1)
    assert [error.layer for error in result.layers] == [0, 1]
    assert result.failures == ()


def test_verify_prepared_directory_equals_its_source_exactly(tmp_path):
    source = write_checkpoint(tmp_path / "model")
    prepared = prepare(weights=source, output=tmp_path / "prepared").output_dir
    result = verify(
        prepared,
        text_file=write_text(tmp_path),
        sequence_length=64,
        limits=Limits(max_kl=0.0, min_top1=1.0),
    )
    assert result.reference_dir == source
    assert (result.scores.mean_kl, result.scores.top1, result.failures) == (0.0, 1.0, ())
    assert {error.relative_error for error in result.layers} == {0.0}
    assert [error.to_dict()["sqnr_db"] for error in result.layers] == [None, None]


def test_verify_default_text_is_long_enough(tmp_path):
    _, deployed = make_pair(tmp_path, num_layers=1)
    result = verify(deployed)
    assert result.text == "verify.txt"
    assert result.scores.num_tokens > 1500


# ---- the reference ----------------------------------------------------------------------------


def test_verify_finds_the_reference_after_both_were_moved(tmp_path):
    make_pair(tmp_path)
    text, moved = write_text(tmp_path), tmp_path / "elsewhere" / "deep"
    moved.mkdir(parents=True)
    for name in ("model", "model-int8-codes"):
        shutil.move(tmp_path / name, moved / name)
    result = verify(moved / "model-int8-codes", text_file=text, sequence_length=64)
    assert result.reference_dir == moved / "model"
    assert result.model == "model"


def test_verify_finds_the_reference_from_inside_the_directory(tmp_path, monkeypatch):
    source, deployed = make_pair(tmp_path)
    text = write_text(tmp_path)
    monkeypatch.chdir(deployed)
    assert verify(Path("."), text_file=text, sequence_length=64).reference_dir == source


def test_verify_reference_that_is_gone(tmp_path):
    source, deployed = make_pair(tmp_path)
    shutil.rmtree(source)
    with pytest.raises(CheckpointError) as err:
        verify(deployed, text_file=write_text(tmp_path))
    assert str(err.value) == (
        f"{deployed} was made from {source}, which is not there. Give --reference DIR."
    )


def test_verify_unknown_reference(tmp_path):
    source, deployed = make_pair(tmp_path)
    (deployed / "vacc_deploy.json").unlink()
    text = write_text(tmp_path)
    with pytest.raises(UsageError) as err:
        verify(deployed, text_file=text)
    assert str(err.value) == (
        f"{deployed} does not say which float model it was made from (no vacc_deploy.json). Give "
        "--reference DIR."
    )
    assert run("verify", deployed, "--text", text).exit_code == 2
    result = verify(deployed, reference_dir=source, text_file=text, sequence_length=64)
    assert result.scores.mean_kl > 0


def test_verify_quantized_reference(tmp_path):
    _, deployed = make_pair(tmp_path)
    with pytest.raises(CheckpointError) as err:
        verify(deployed, reference_dir=deployed, text_file=write_text(tmp_path))
    assert str(err.value) == f"{deployed} is quantized. Give the float model with --reference."


def test_verify_other_architecture_lists_the_differences(tmp_path):
    _, deployed = make_pair(tmp_path)
    other = write_checkpoint(
        tmp_path / "other", num_layers=3, config_overrides={"rope_theta": 20000}
    )
    with pytest.raises(CheckpointError) as err:
        verify(deployed, reference_dir=other, text_file=write_text(tmp_path))
    assert str(err.value) == (
        "The two directories are different models:\n"
        f"  - num_hidden_layers is 2 in {deployed}, 3 in {other}\n"
        f"  - rope_theta is 10000.0 in {deployed}, 20000.0 in {other}\n"
        "Give the right float model with --reference."
    )


# ---- limits and the command -------------------------------------------------------------------


def test_verify_command_prints_the_figures(tmp_path):
    source, deployed = make_pair(tmp_path)
    text = write_text(tmp_path)
    limits = ("--max-kl", 1, "--min-top1", 0.5)
    result = run("verify", deployed, "--text", text, "--seq-len", 64, *limits)
    assert result.exit_code == 0, result.output
    assert f"Verified {deployed} against {source}\n" in result.output
    for words in ("SQNR dB", "tokens compared", "KL(float ‖ deployed)", "same top token"):
        assert words in result.output
    assert "Failed" not in result.output
    exit_code, values = run_json("verify", deployed, "--text", text, "--seq-len", 64, *limits)
    assert exit_code == 0 and values["passed"] is True and values["failures"] == []
    assert values["text"] == "text.txt" and values["num_tokens"] > 300
    assert len(values["layers"]) == 2


@pytest.mark.parametrize(
    ("options", "failure"),
    [
        (("--max-kl", "0"), "mean KL is 0.0"),
        (("--min-top1", "1"), "same top token is 0."),
        (("--max-kl", "nan"), "the limit is nan"),
    ],
)
def test_verify_command_missed_limit_exits_3_after_printing(tmp_path, options, failure):
    _, deployed = make_pair(tmp_path, scale=6.0)
    common = ("verify", deployed, "--text", write_text(tmp_path), "--seq-len", 64, *options)
    plain = run(*common)
    assert plain.exit_code == 3
    assert f"\nFailed: {failure}" in plain.output or f"{failure}\n" in plain.output
    exit_code, values = run_json(*common)
    assert exit_code == 3
    assert values["passed"] is False and len(values["failures"]) == 1
    assert failure in values["failures"][0]


def test_verify_damaged_scale_fails_with_valid_json(tmp_path):
    _, deployed = make_pair(tmp_path)
    path = deployed / "model-00002-of-00004.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight_scale"][3] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    command = ("verify", deployed, "--text", write_text(tmp_path), "--seq-len", 64)
    exit_code, values = run_json(*command)
    assert exit_code == 3
    assert values["failures"] == ["the deployed model's output holds NaN or infinity"]
    assert values["mean_kl"] is None and values["perplexity_float"] > 1
    assert values["layers"][0] == {"layer": 0, "relative_error": None, "sqnr_db": None}
    plain = run(*command)
    assert plain.exit_code == 3 and "Failed: the deployed model's output holds NaN" in plain.output


def test_verify_notes_are_in_text_and_json(tmp_path):
    head = torch.zeros(272, 64)
    head[5] = 1000.0
    extra = {"lm_head.weight": head.bfloat16(), "model.norm.weight": torch.ones(64).bfloat16()}
    extra["model.embed_tokens.weight"] = torch.ones(272, 64).bfloat16()
    _, deployed = make_pair(tmp_path, extra_tensors=extra, scale=0.01)
    result = verify(deployed, text_file=write_text(tmp_path, "a" * 70), sequence_length=64)
    notes = [
        "text.txt has 70 tokens: the last 7 fill no window of 63 and were left out.",
        "the float model's perplexity is above its vocabulary of 272: text.txt means nothing to "
        "this model. Give a text of its kind with --text.",
    ]
    assert result.to_dict()["notes"] == notes
    assert "".join(f"\nNote: {note}" for note in notes) in result.to_text()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_verify_recorded_reference_that_is_damaged_names_the_option(tmp_path, name):
    source, deployed = make_pair(tmp_path)
    (source / name).write_bytes(b"{")
    with pytest.raises(CheckpointError) as err:
        verify(deployed, text_file=write_text(tmp_path))
    assert str(err.value).startswith(f"{deployed} was made from {source}, which cannot be read: ")
    assert str(err.value).endswith("Or give another copy of the float model with --reference DIR.")


def test_verify_config_vacc_of_another_model_is_refused(tmp_path):
    _, deployed = make_pair(tmp_path)
    edit_json(deployed / "config_vacc.json", num_hidden_layers=1)
    with pytest.raises(CheckpointError, match="num_hidden_layers: got 1, config.json has 2"):
        verify(deployed, text_file=write_text(tmp_path))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"perplexity_float": math.nan}, ["float"]),
        ({"perplexity_deployed": math.inf}, ["deployed"]),
        ({"perplexity_float": math.nan, "perplexity_deployed": math.nan}, ["float", "deployed"]),
        ({}, ["float or deployed"]),
    ],
)
def test_failures_say_which_model_holds_no_number(changes, expected):
    values = dict.fromkeys((field.name for field in fields(NextTokenScores)), 2.0)
    scores = NextTokenScores(**{**values, "mean_kl": math.nan, **changes})
    words = [f"the {name} model's output holds NaN or infinity" for name in expected]
    assert list(Limits().failures(scores)) == words
