"""``verify`` and its command: the figures, the reference it finds, texts and limits."""

import json
import math
import re
import shutil
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

from vacc_deploy.checkpoint.manifest import MANIFEST_NAME
from vacc_deploy.cli import cli
from vacc_deploy.errors import (
    CalibrationError,
    CheckpointError,
    CompileFileError,
    UsageError,
)
from vacc_deploy.prepare import prepare
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference import deployed as deployed_module
from vacc_deploy.reference import verify as verify_module
from vacc_deploy.reference.limits import (
    MAX_KL,
    MAX_KL_FLOAT,
    MIN_TOP1,
    MIN_TOP1_FLOAT,
    Limits,
)
from vacc_deploy.reference.verify import verify
from vacc_deploy.vamc.compile_file import make_compile_file
from vacc_deploy.vamc.options import CompileOptions
from vacc_deploy.vamc.target import find_target

TEXT = "The quick brown fox jumps over the lazy dog. " * 9
# A random model with a tied head says every token again: it knows this text, and no other.
RUNS = "".join(char * 12 for char in TEXT[:90])


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
    result = verify(
        deployed,
        text_file=write_text(tmp_path),
        max_tokens=300,
        sequence_length=64,
        limits=None,
    )
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
    assert (result.failures, result.passed) == ((), None)
    assert not any(word in result.to_text() for word in ("Passed", "Failed", "Next"))


@pytest.mark.parametrize(
    ("link_mode", "same", "words"),
    [
        ("hardlink", "linked", "the same weights, in the same files (links)"),
        ("symlink", "linked", "the same weights, in the same files (links)"),
        ("copy", "equal", "the same weights, in files with equal hashes"),
    ],
)
def test_verify_prepared_directory_equals_its_source_exactly(tmp_path, link_mode, same, words):
    source = write_checkpoint(tmp_path / "model", tied=True)
    out = tmp_path / "prepared"
    prepared = prepare(weights=source, output=out, link_mode=link_mode).output_dir
    text = write_text(tmp_path, RUNS)
    result = verify(
        prepared, text_file=text, sequence_length=64, limits=Limits(max_kl=0.0, min_top1=1.0)
    )
    assert result.reference_dir == source
    assert result.same_weights == same
    assert f"\nAll 2 layers: {words}; the outputs are equal.\n" in result.to_text()
    assert not any(word in result.to_text() for word in ("inf", "SQNR"))
    assert (result.scores.mean_kl, result.scores.top1, result.failures) == (0.0, 1.0, ())
    assert {error.relative_error for error in result.layers} == {0.0}
    assert [error.to_dict()["sqnr_db"] for error in result.layers] == [None, None]


def test_verify_equal_layers_of_other_files_are_no_proof_of_equal_weights(tmp_path):
    source = write_checkpoint(tmp_path / "model", tied=True)
    tensors = read_tensors(source)
    tensors["model.embed_tokens.weight"][5] += 1  # RUNS has no token 5; the head has
    other = write_checkpoint(tmp_path / "other", tied=True, extra_tensors=tensors)
    arguments = {"text_file": write_text(tmp_path, RUNS), "sequence_length": 64}
    result = verify(other, reference_dir=source, **arguments)
    assert result.same_weights == ""
    sentence = "All 2 layers: the hidden states are equal; only the outputs of the head differ."
    assert sentence in result.to_text()
    two = write_checkpoint(tmp_path / "two", tied=True, shards=2)
    sentence = "All 2 layers: the hidden states are equal; the outputs are equal."
    assert sentence in verify(two, reference_dir=source, **arguments).to_text()


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
    assert f"{deployed} has no vacc_deploy.json: its files could not be checked." in result.notes
    assert result.next_command == ""


def test_verify_without_manifest_and_checkpoint_says_what_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match="nosuch does not exist"):
        verify(tmp_path / "nosuch")


@pytest.mark.parametrize("layout", ["vamc", "int8"])
def test_verify_quantized_reference(tmp_path, layout):
    source = write_checkpoint(tmp_path / "model")
    deployed = quantize(source, options=QuantizeOptions("rtn", formats=(layout,))).output_dir
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


def make_known_pair(tmp_path):
    """Return a pair that knows RUNS, and the options that compare on it."""
    pair = make_pair(tmp_path, tied=True)
    return (*pair, ("--text", write_text(tmp_path, RUNS), "--seq-len", 64))


def test_verify_command_prints_the_figures_and_the_verdict(tmp_path, monkeypatch):
    source, deployed, options = make_known_pair(tmp_path)
    result = run("verify", deployed, *options)
    assert result.exit_code == 0, result.output
    assert f"Verified {deployed} against {source}\n" in result.output
    for words in ("SQNR dB", "tokens compared", "KL(float ‖ deployed)", "same top token"):
        assert words in result.output
    assert re.search(
        r"\nPassed: mean KL 0\.000\d+ \(limit 0\.02\), "
        r"same top token 9\d\.\d\d% \(limit 93\.00%\)\."
        r"\n$",
        result.output,
    )
    assert "Failed" not in result.output
    exit_code, values = run_json("verify", deployed, *options)
    assert exit_code == 0 and values["passed"] is True and values["failures"] == []
    assert values["limits"] == {"max_kl": MAX_KL, "min_top1": MIN_TOP1}
    assert values["text"] == "text.txt" and values["num_tokens"] > 300
    assert values["same_weights"] is None
    assert len(values["layers"]) == 2


@pytest.mark.parametrize(
    ("options", "failure"),
    [
        (("--max-kl", "0"), "mean KL is 0.0"),
        (("--min-top1", "1"), "same top token is 0."),
    ],
)
def test_verify_command_missed_limit_exits_3_after_printing(tmp_path, options, failure):
    _, deployed, common = make_known_pair(tmp_path)
    common = ("verify", deployed, *common, *options)
    plain = run(*common)
    assert plain.exit_code == 3
    assert f"\nFailed: {failure}" in plain.output or f"{failure}\n" in plain.output
    assert "Passed" not in plain.output and "Next" not in plain.output
    assert "give the right float model with --reference. If" in plain.output
    exit_code, values = run_json(*common)
    assert exit_code == 3
    assert values["passed"] is False and len(values["failures"]) == 1
    assert failure in values["failures"][0]


@pytest.mark.parametrize("limit", ["nan", "-1"])
def test_verify_command_refuses_a_limit_that_is_none(tmp_path, limit):
    result = run("verify", tmp_path, "--max-kl", limit)
    assert result.exit_code == 2 and "--max-kl" in result.output


def make_damaged_pair(tmp_path):
    """Return a pair as ``make_known_pair`` does; its scales are wrong, and no hash tells it."""
    source, deployed, options = make_known_pair(tmp_path)
    path = deployed / "model-00003-of-00004.safetensors"
    (deployed / MANIFEST_NAME).unlink()
    tensors = load_file(path)
    tensors["model.layers.1.mlp.down_proj.weight_scale"] *= 1.3
    save_file(tensors, path, metadata={"format": "pt"})
    return source, deployed, ("--reference", source, *options)


def test_verify_command_with_its_limits_off_passes_and_says_so(tmp_path):
    _, deployed, options = make_damaged_pair(tmp_path)
    arguments = ("verify", deployed, *options)
    assert run(*arguments).exit_code == 3
    unlimited = run(*arguments, "--max-kl", "inf", "--min-top1", "0")
    assert unlimited.exit_code == 0, unlimited.output
    assert re.search(r"\nPassed: .* \(no limit\), .* \(no limit\)\.\n$", unlimited.output)
    exit_code, values = run_json(*arguments, "--max-kl", "inf", "--min-top1", "0")
    assert (exit_code, values["limits"]) == (0, {"max_kl": None, "min_top1": None})


def test_verify_command_no_limits_gives_no_verdict(tmp_path):
    _, deployed, options = make_damaged_pair(tmp_path)
    result = run("verify", deployed, *options, "--no-limits")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("\nNot judged: no limits were set.\n")
    assert not any(word in result.stdout for word in ("Passed", "Failed", "Next"))
    exit_code, values = run_json("verify", deployed, *options, "--no-limits")
    assert (exit_code, values["passed"], values["limits"]) == (0, None, None)
    assert values["mean_kl"] > MAX_KL and values["failures"] == []


@pytest.mark.parametrize("limit", [("--max-kl", "0.1"), ("--min-top1", "0.5")])
def test_verify_command_no_limits_excludes_a_limit(tmp_path, limit):
    result = run("verify", tmp_path, "--no-limits", *limit)
    assert result.exit_code == 2
    assert f"--no-limits and {limit[0]} exclude each other. Give one of them." in result.output


def test_verify_command_no_limits_still_fails_for_damaged_files(tmp_path):
    _, deployed, options = make_known_pair(tmp_path)
    path = deployed / "model-00003-of-00004.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    exit_code, values = run_json("verify", deployed, *options, "--no-limits")
    assert (exit_code, values["passed"], values["mean_kl"]) == (3, False, None)
    assert "\nFailed: " in run("verify", deployed, *options, "--no-limits").stdout


@pytest.mark.parametrize("is_prepared", [True, False])
def test_verify_float_weights_have_limits_of_their_own(tmp_path, is_prepared):
    source = write_checkpoint(tmp_path / "model", tied=True)
    if is_prepared:
        deployed = prepare(weights=source, output=tmp_path / "out").output_dir
    else:
        deployed = shutil.copytree(source, tmp_path / "out")
    text = write_text(tmp_path, RUNS)
    result = verify(deployed, reference_dir=source, text_file=text, sequence_length=64)
    assert result.passed and result.scores.mean_kl == 0
    assert result.to_dict()["limits"] == {"max_kl": MAX_KL_FLOAT, "min_top1": MIN_TOP1_FLOAT}
    assert f"(limit {MAX_KL_FLOAT:g})" in result.to_text()


def test_verify_int8_error_in_float_weights_fails(tmp_path):
    """What int8 weights may be off by is too much for float weights."""
    source, deployed, _ = make_known_pair(tmp_path)
    text, tensors = write_text(tmp_path, RUNS), read_tensors(deployed)
    for name in [name for name in tensors if name.endswith("weight_scale")]:
        scale, base = tensors.pop(name).float(), name.removesuffix("_scale")
        error = tensors[base].float().sign() * scale[:, None]
        tensors[base] = tensors[base].float() * scale[:, None] + error
    plain = write_checkpoint(tmp_path / "plain", tied=True, extra_tensors=tensors)
    result = verify(plain, reference_dir=source, text_file=text, sequence_length=64)
    assert MAX_KL_FLOAT < result.scores.mean_kl < MAX_KL
    assert result.failures[0].endswith(f", the limit is {MAX_KL_FLOAT:g}")


# ---- another model ----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["vamc", "int8", "gptq-one-group", "gguf"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_verify_refuses_another_model_before_the_walk(tmp_path, monkeypatch, layout, dtype):
    source = write_checkpoint(tmp_path / "model", tied=True, dtype=dtype)
    options = QuantizeOptions("rtn", formats=(layout,))
    deployed = quantize(source, options=options).output_dir
    text = write_text(tmp_path, RUNS)
    assert verify(deployed, text_file=text, sequence_length=64).passed
    other = write_checkpoint(tmp_path / "other", tied=True, seed=1, dtype=dtype)
    monkeypatch.setattr(verify_module, "compare_on_tokens", None)
    with pytest.raises(CheckpointError) as err:
        verify(deployed, reference_dir=other, text_file=text)
    assert str(err.value) == (
        f"{deployed} was not made from {other}: 12 of its 12 norms, biases and tables, which are "
        "only copied, have other values (model.embed_tokens.weight, "
        "model.layers.0.input_layernorm.weight, model.layers.0.post_attention_layernorm.weight and "
        "9 more). Give the right float model with --reference. With --no-limits the two are "
        "compared all the same."
    )


def test_verify_a_directory_is_not_judged_by_itself(tmp_path):
    source, _, options = make_known_pair(tmp_path)
    (tmp_path / "link").symlink_to(source)
    for other in (source, tmp_path / "link"):
        result = run("verify", source, "--reference", other, *options)
        assert result.exit_code == 2
        assert f"{source} is compared with itself, which proves nothing." in result.output
    result = run("verify", source, "--reference", source, *options, "--no-limits")
    assert (result.exit_code, "Not judged" in result.output) == (0, True)


def test_verify_one_changed_norm_is_another_model(tmp_path):
    source, deployed, options = make_known_pair(tmp_path)
    tensors = read_tensors(source)
    tensors["model.norm.weight"][3] *= 1.01
    write_checkpoint(source, tied=True, extra_tensors=tensors)
    result = run("verify", deployed, *options)
    assert result.exit_code == 1
    assert "1 of its 12 norms, biases and tables, which are only copied" in result.output
    exploring = run("verify", deployed, *options, "--no-limits")
    assert exploring.exit_code == 0
    assert f"\nNote: {deployed} was not made from {source}: 1 of its 12" in exploring.output


def test_verify_another_model_of_another_tool_fails_whatever_the_limits(tmp_path):
    source, _, options = make_known_pair(tmp_path)
    # It knows the text as well, but it has other weights.
    other = write_checkpoint(tmp_path / "other", tied=True, seed=1, scale=0.1)
    arguments = ("verify", other, "--reference", source, *options)
    exit_code, values = run_json(*arguments, "--max-kl", "inf", "--min-top1", "0")
    assert (exit_code, values["passed"]) == (3, False)
    assert "rounding to 8 bits never makes more than 1 of a sound model" in values["failures"][0]
    assert any("was not copied from" in note for note in values["notes"])


def test_verify_source_in_another_dtype_is_the_source(tmp_path):
    wide = write_checkpoint(tmp_path / "wide", tied=True, dtype=torch.float32)
    narrow = write_checkpoint(tmp_path / "narrow", tied=True, dtype=torch.float16)
    text = write_text(tmp_path, RUNS)
    for one, other in ((wide, narrow), (narrow, wide)):
        output = tmp_path / f"{one.name}-out"
        deployed = prepare(weights=one, output=output).output_dir
        result = verify(deployed, reference_dir=other, text_file=text, sequence_length=64)
        assert result.passed, result.to_text()


def test_verify_broken_scale_fails_by_default(tmp_path):
    """Damage that the hashes cannot tell: the manifest is gone."""
    _, deployed, options = make_damaged_pair(tmp_path)
    exit_code, values = run_json("verify", deployed, *options)
    assert exit_code == 3 and values["failures"][0].startswith("mean KL is 0.")


def test_verify_damaged_scale_fails_with_valid_json(tmp_path):
    source, deployed = make_pair(tmp_path)
    (deployed / MANIFEST_NAME).unlink()
    path = deployed / "model-00002-of-00004.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight_scale"][3] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    command = ("verify", deployed, "--text", write_text(tmp_path), "--seq-len", 64)
    command += ("--reference", source)
    exit_code, values = run_json(*command)
    assert exit_code == 3
    assert values["failures"] == [
        "the deployed model's output holds NaN or infinity",
        f"the deployed model {deployed} is damaged: model.layers.0.mlp.up_proj.weight_scale in "
        f"{path.name}: row 3 holds NaN",
    ]
    assert values["mean_kl"] is None and values["perplexity_float"] > 1
    assert values["layers"][0] == {"layer": 0, "relative_error": None, "sqnr_db": None}
    plain = run(*command)
    assert plain.exit_code == 3 and "Failed: the deployed model's output holds NaN" in plain.output


# ---- damaged directories ----------------------------------------------------------------------


def test_verify_file_that_is_not_what_was_written_fails_before_the_comparison(
    tmp_path, monkeypatch
):
    source, deployed, options = make_known_pair(tmp_path)

    def compare(*arguments):
        pytest.fail("a damaged directory was compared")

    monkeypatch.setattr(verify_module, "compare_on_tokens", compare)
    path = deployed / "model-00003-of-00004.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    edit_json(deployed / "config_vacc.json", num_hidden_layers=1)
    (deployed / "model-00002-of-00004.safetensors").unlink()
    plain = run("verify", deployed, *options)
    assert plain.exit_code == 3
    assert plain.stdout.startswith(f"Checked the files of {deployed}\nNote: nothing was compared")
    for name, problem in (
        (path.name, "its content is not what quantize wrote (sha256 "),
        ("model-00002-of-00004.safetensors", "it is missing"),
        ("config_vacc.json", "it has "),
    ):
        assert f"\nFailed: {name}: {problem}" in plain.output
    exit_code, values = run_json("verify", deployed, *options)
    assert exit_code == 3 and values["passed"] is False and len(values["failures"]) == 3
    assert values["mean_kl"] is None and values["layers"] == []
    monkeypatch.undo()
    sound = verify(source, reference_dir=source, max_tokens=64, limits=None)
    assert values.keys() == sound.to_dict().keys()


def test_verify_wrong_input_is_said_before_the_files_are_hashed(tmp_path, monkeypatch):
    _, deployed = make_pair(tmp_path)
    other = write_checkpoint(tmp_path / "other", model_type="llama")

    def hash_all(*arguments):
        pytest.fail("files were hashed for nothing")

    monkeypatch.setattr(deployed_module, "find_damages", hash_all)
    with pytest.raises(CheckpointError, match="nosuch does not exist"):
        verify(deployed, reference_dir=tmp_path / "nosuch")
    with pytest.raises(CheckpointError, match="two directories are different models"):
        verify(deployed, reference_dir=other)
    with pytest.raises(CalibrationError, match="nosuch.txt cannot be read"):
        verify(deployed, text_file=tmp_path / "nosuch.txt")
    (tmp_path / "records.txt").write_text('{"text": "a"}')
    with pytest.raises(CalibrationError, match=", not plain text. "):
        verify(deployed, text_file=tmp_path / "records.txt")


# ---- the next command -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "layout", "is_known"),
    [
        *(("qwen2", "vamc", True), ("llama", "vamc", True)),
        *(("qwen2", "int8", False), ("llama", "int8", False), ("qwen2", "gptq-one-group", False)),
    ],
)
def test_verify_proposes_a_compile_file_only_of_what_yaml_accepts(
    tmp_path, model_type, layout, is_known
):
    source = write_checkpoint(tmp_path / "my model", model_type=model_type, tied=True, scale=0.5)
    options = QuantizeOptions("rtn", formats=(layout,))
    deployed = quantize(source, options=options).output_dir
    text = verify(deployed, text_file=write_text(tmp_path, RUNS), sequence_length=64).to_text()
    assert "\nPassed: " in text
    expected = f"Next: vacc-deploy yaml '{deployed}' --output 'my model-int8.yaml'"
    assert text.splitlines()[-1].startswith("Next: ") is is_known
    if is_known:
        assert text.endswith(f"\n{expected}")
        target = find_target(str(deployed))
        make_compile_file(target, CompileOptions(tensor_parallel_size=2))
    else:
        with pytest.raises((CompileFileError, UsageError, CheckpointError)):
            make_compile_file(find_target(str(deployed)), CompileOptions(tensor_parallel_size=2))


def test_verify_notes_are_in_text_and_json(tmp_path):
    _, deployed = make_pair(tmp_path, tied=True)
    text = write_text(tmp_path, "a" * 70)
    result = verify(deployed, text_file=text, sequence_length=64, limits=None)
    notes = ["text.txt has 70 tokens: the last 7 fill no window of 63 and were left out."]
    assert result.to_dict()["notes"] == notes
    assert "".join(f"\nNote: {note}" for note in notes) in result.to_text()


def test_verify_model_that_knows_nothing_of_the_text_never_passes(tmp_path):
    _, deployed = make_pair(tmp_path)
    options = ("--text", write_text(tmp_path), "--max-kl", "inf", "--min-top1", "0")
    exit_code, values = run_json("verify", deployed, *options)
    assert exit_code == 3
    assert [line.partition(" of this")[0] for line in values["failures"]] == [
        "the float model knows nothing",
        "the deployed model knows nothing",
    ]
    assert values["failures"][0].endswith(", guessing among its vocabulary gives 272")
    assert "was trained on with --text" in values["notes"][-1]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_verify_recorded_reference_that_is_damaged_names_the_option(tmp_path, name):
    source, deployed = make_pair(tmp_path)
    (source / name).write_bytes(b"{")
    with pytest.raises(CheckpointError) as err:
        verify(deployed, text_file=write_text(tmp_path))
    assert str(err.value).startswith(f"{deployed} was made from {source}, which cannot be read: ")
    assert str(err.value).endswith("Or give another copy of the float model with --reference DIR.")


def test_verify_config_vacc_of_another_model_is_refused(tmp_path):
    source, deployed = make_pair(tmp_path)
    (deployed / MANIFEST_NAME).unlink()  # with it, the edited file is told by its hash
    edit_json(deployed / "config_vacc.json", num_hidden_layers=1)
    with pytest.raises(CheckpointError, match="num_hidden_layers: got 1, config.json has 2"):
        verify(deployed, reference_dir=source, text_file=write_text(tmp_path))
