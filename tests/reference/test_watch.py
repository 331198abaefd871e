"""The audit of the activations: what is measured, against torch's own products, and the notes."""

import json
import math
import shutil

import pytest
import torch
from checkpoint_builders import read_tensors, write_checkpoint
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.cli import cli
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference.compare import compare_on_tokens
from vacc_deploy.reference.ranges import (
    FLOAT16_MAX,
    ActivationRange,
    describe_overflows,
    describe_ranges,
    describe_risk,
    names_at_risk,
)
from vacc_deploy.reference.verify import verify

TOKENS = torch.arange(48).view(3, 16) * 5
TENSORS = [
    *(("qkv", name) for name in ("input", "q_proj", "k_proj", "scores", "v_proj")),
    *(("o", name) for name in ("input", "o_proj", "residual")),
    *(("gate_up", name) for name in ("input", "gate_proj", "up_proj")),
    *(("down", name) for name in ("input", "down_proj", "residual")),
]


def audit_of(directory, **options):
    """Return the ranges of a float model over TOKENS by layer, stage and tensor."""
    checkpoint = Checkpoint.open(directory)
    found = compare_on_tokens(checkpoint, checkpoint, TOKENS, audit=True, **options)
    return {(r.layer, r.stage, r.tensor): r for r in found.ranges}


def hook_transformers(directory):
    """Return what transformers computes: the inputs and outputs by module, and the logits."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    seen = {}
    for name, module in model.named_modules():

        def hook(module, inputs, output, name=name):
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, torch.Tensor):
                # Clones: some modules work in place.
                seen[name] = ([i.clone() for i in inputs], first.clone())

        module.register_forward_hook(hook)
    with torch.inference_mode():
        seen["logits"] = model(TOKENS).logits[:, :-1]
    return seen


@pytest.mark.parametrize("model_type", ["qwen2", "llama", "qwen3"])
def test_every_tensor_is_that_of_transformers(tmp_path, model_type):
    directory = write_checkpoint(tmp_path / "model", model_type=model_type, scale=2.0)
    found, seen = audit_of(directory), hook_transformers(directory)
    order = [(layer, *names) for layer in range(2) for names in TENSORS]
    assert sorted(found, key=str) == sorted(
        [*order, (None, "head", "input"), (None, "head", "logits")], key=str
    )
    for layer in range(2):
        block = f"model.layers.{layer}"
        expected = {}
        for stage, part in (("qkv", "self_attn.q"), ("o", "self_attn.o"), ("gate_up", "mlp.gate")):
            expected[stage, "input"] = seen[f"{block}.{part}_proj"][0][0]
        expected["down", "input"] = seen[f"{block}.mlp.down_proj"][0][0]
        for stage, name in TENSORS:
            if name.endswith("_proj"):
                part = "mlp" if name[0] in "gud" else "self_attn"
                expected[stage, name] = seen[f"{block}.{part}.{name}"][1]
        expected["o", "residual"] = seen[f"{block}.post_attention_layernorm"][0][0]
        expected["down", "residual"] = seen[block][1]
        for (stage, name), values in expected.items():
            got = found[layer, stage, name]
            assert got.max_abs == pytest.approx(values.abs().max().item(), rel=1e-4), (stage, name)
            assert got.rms == pytest.approx(values.square().mean().sqrt().item(), rel=1e-4)
    logits = found[None, "head", "logits"]
    assert logits.max_abs == pytest.approx(seen["logits"].abs().max().item(), rel=1e-4)
    assert logits.rms == pytest.approx(seen["logits"].square().mean().sqrt().item(), rel=1e-4)


def test_scores_are_the_products_before_the_scaling(tmp_path, monkeypatch):
    """Those of a first position, which no rotation changes, are q · k themselves."""
    directory = write_checkpoint(tmp_path / "model", scale=2.0)
    checkpoint = Checkpoint.open(directory)
    one = TOKENS[:, :1]
    ranges = compare_on_tokens(checkpoint, checkpoint, one.repeat(1, 2), audit=True).ranges
    seen = hook_transformers(directory)
    config, block = checkpoint.config, "model.layers.0.self_attn"
    query, key = (
        seen[f"{block}.{name}_proj"][1][:, 0].view(3, -1, config.head_dim) for name in "qk"
    )
    key = key.repeat_interleave(config.num_attention_heads // config.num_key_value_heads, 1)
    exact = (query * key).sum(-1).abs().max().item()
    (got,) = (r for r in ranges if (r.layer, r.tensor) == (0, "scores"))
    assert got.max_abs >= exact * (1 - 1e-5)
    # In parts they are the same.
    monkeypatch.setattr("vacc_deploy.reference.watch._NUM_SCORES", 7)
    parts = compare_on_tokens(checkpoint, checkpoint, one.repeat(1, 2), audit=True).ranges
    assert [r.max_abs for r in parts] == pytest.approx([r.max_abs for r in ranges])
    assert [r.rms for r in parts] == pytest.approx([r.rms for r in ranges])


def test_the_audit_changes_no_figure(tmp_path):
    source = write_checkpoint(tmp_path / "model", scale=2.0)
    deployed = quantize(source, options=QuantizeOptions("rtn", formats=("int8",))).output_dir
    pair = Checkpoint.open(source), Checkpoint.open(deployed)
    for activations in ("float", "int8"):
        plain = compare_on_tokens(*pair, TOKENS, activations=activations)
        watched = compare_on_tokens(*pair, TOKENS, activations=activations, audit=True)
        assert watched[:3] == plain[:3] and plain.ranges == []
        assert len(watched.ranges) == 2 * len(TENSORS) + 2
    # It is the deployed model that is measured, not the float one.
    assert watched.ranges != compare_on_tokens(pair[0], pair[0], TOKENS, audit=True).ranges


# ---- figures and sentences --------------------------------------------------------------------


@pytest.mark.parametrize("value", [1.0, 1.99, 2.0, 3.0, 255.0, 256.0, 977.5, 65504.0, 0.37])
def test_the_bfloat16_step_is_torchs(value):
    stored = torch.tensor(value, dtype=torch.bfloat16)
    below = torch.tensor(value).bfloat16().view(torch.int16)
    step = ActivationRange(0, "qkv", "input", value).bfloat16_step
    # The next number towards infinity, of a value that is not rounded up over a power of two.
    following = (below + 1).view(torch.bfloat16).float() - stored.float()
    if math.frexp(stored.item())[1] == math.frexp(value)[1]:
        assert step == following.item()


def make_range(max_abs, layer=3, stage="down", tensor="down_proj"):
    return ActivationRange(layer, stage, tensor, max_abs, 1.0)


def test_what_is_at_risk_begins_at_a_tenth_of_float16():
    below, at = make_range(6550.3), make_range(6550.5)
    assert [below.is_at_risk, at.is_at_risk, at.overflows] == [False, True, False]
    assert [make_range(FLOAT16_MAX).overflows, make_range(65504.1).overflows] == [False, True]
    for value in (math.nan, math.inf):
        broken = make_range(value)
        assert broken.is_at_risk and broken.overflows
        assert broken.to_dict()["max_abs"] is None and broken.to_dict()["bfloat16_step"] is None


def test_names_and_sentences():
    ranges = [
        make_range(100.0, tensor="input"),
        make_range(70000.0),
        make_range(7000.0, tensor="residual"),
        make_range(8000.0, stage="qkv", tensor="scores"),
        ActivationRange(None, "head", "logits", 30.0, 2.0),
        ActivationRange(None, "head", "input", 3.0, None),
    ]
    assert [r.name for r in ranges] == [
        "input of model.layers.3.mlp.down_proj",
        "output of model.layers.3.mlp.down_proj",
        "residual behind model.layers.3.mlp",
        "scores of model.layers.3.self_attn",
        "logits",
        "input of lm_head",
    ]
    assert names_at_risk(ranges) == [r.name for r in ranges[1:4]]
    other = make_range(65504.5, layer=1)
    assert describe_overflows([other, *ranges])[0].endswith(
        " 70,000 (107 %), also 1 more of its kind"
    )
    assert describe_overflows(ranges) == (
        "beyond float16's largest number: output of model.layers.3.mlp.down_proj 70,000 (107 %)",
    )
    assert describe_risk(ranges).startswith(
        "at risk in float16, whose largest number is 65,504: output of "
        "model.layers.3.mlp.down_proj 70,000 (107 %); scores of model.layers.3.self_attn 8,000"
    )
    table = describe_ranges(ranges).splitlines()
    assert table[2].split() == [
        *("output", "of", "model.layers.3.mlp.down_proj", "70,000.0", "1", "106.86", "512"),
    ]
    safe = ranges[4:]
    assert (describe_risk(safe), describe_overflows(safe)) == ("", ())
    sentence = "All 2 tensors stay below 10% of float16's largest number, 65,504."
    assert describe_ranges(safe).endswith(f"\n{sentence}")


# ---- the command ------------------------------------------------------------------------------


def run_audit(directory, *options):
    source = shutil.copytree(directory, directory.parent / "source", dirs_exist_ok=True)
    result = CliRunner().invoke(
        cli,
        [
            *("verify", str(directory), "--reference", str(source), "--max-tokens", "32"),
            *("--seq-len", "16", "--max-kl", "1", "--audit", "--json", *options),
        ],
    )
    return result.exit_code, json.loads(result.stdout)


def test_command_shows_the_audit_and_fails_where_float16_overflows(tmp_path, monkeypatch):
    monkeypatch.setattr("vacc_deploy.reference.limits.guesses", lambda *_: False)
    directory = write_checkpoint(tmp_path / "model", num_layers=1)
    exit_code, values = run_audit(directory)
    assert (exit_code, values["at_risk"]) == (0, [])
    assert len(values["audit"]) == len(TENSORS) + 2
    keys = "name layer stage tensor max_abs rms percent_of_float16 bfloat16_step"
    assert list(values["audit"][0]) == keys.split()
    tensors = read_tensors(directory)
    down = "model.layers.0.mlp.down_proj.weight"
    largest = next(a["max_abs"] for a in values["audit"] if a["tensor"] == "down_proj")
    for factor, is_beyond in ((0.5, False), (2.0, True)):
        scaled = (tensors[down].float() * (factor * FLOAT16_MAX / largest)).bfloat16()
        write_checkpoint(directory, num_layers=1, extra_tensors={**tensors, down: scaled})
        exit_code, values = run_audit(directory)
        assert "output of model.layers.0.mlp.down_proj" in values["at_risk"]
        assert any(note.startswith("at risk in float16") for note in values["notes"])
        assert (exit_code, values["passed"]) == ((3, False) if is_beyond else (0, True))
        assert len(values["failures"]) == (2 if is_beyond else 0)  # with the residual


def test_without_the_option_nothing_is_measured(tmp_path):
    directory = write_checkpoint(tmp_path / "model", num_layers=1)
    result = verify(directory, reference_dir=directory, max_tokens=32, limits=None)
    values = result.to_dict()
    assert (values["audit"], values["at_risk"]) == ([], [])
    assert "float16" not in result.to_text()
    audited = verify(directory, reference_dir=directory, max_tokens=32, limits=None, audit=True)
    assert "\nlargest activations " in audited.to_text()
