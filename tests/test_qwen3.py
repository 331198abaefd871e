"""The whole chain on small Qwen3 models: heads wider than the hidden states, norms of the heads.

What our modeling file computes for Qwen3 is in ``tests/source_code``; here weights, files and
integers are looked at, and transformers' own class is compared.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint_builders import YARN_ROPE, build_config, build_tensors, write_checkpoint
from doubles import StopAfter
from found_forms import TOKENS, found_form
from quantize_runs import make_source, write_words
from reference_logits import decoder_logits
from texts import contents
from tokenizer_builders import BOS_ID, byte_ids
from transformers import AutoModelForCausalLM

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.checkpoint.soundness import find_unsound
from vacc_deploy.datasets.sources import CalibrationSource
from vacc_deploy.errors import CheckpointError, UnsupportedModelError
from vacc_deploy.formats.layouts import FORMATS, GPTQ, GPTQ_ONE_GROUP
from vacc_deploy.formats.linears import codes_from
from vacc_deploy.models.parse import read_config
from vacc_deploy.prepare import prepare
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference.generate import continue_prompts
from vacc_deploy.reference.loader import load_model
from vacc_deploy.reference.verify import verify
from vacc_deploy.text.tokenizer import Tokenizer
from vacc_deploy.vamc.compile_file import make_compile_file
from vacc_deploy.vamc.target import find_target

NORMS = [f"model.layers.1.self_attn.{head}_norm.weight" for head in "qk"]
YARN = {"rope_scaling": YARN_ROPE, "max_position_embeddings": 128}
# The sizes of the small models are no multiples of 128.
HELD = tuple(GPTQ_ONE_GROUP if name == GPTQ else name for name in FORMATS)
RTN = QuantizeOptions("rtn", formats=HELD)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_words(tmp_path_factory.mktemp("text") / "words.txt")


def calibrated(text: Path) -> QuantizeOptions:
    source = CalibrationSource("text", text)
    return replace(RTN, method="gptq", sources=(source,), num_samples=12, sequence_length=32)


LONG_YARN = {
    "rope_scaling": {**YARN_ROPE, "original_max_position_embeddings": 512},
    "max_position_embeddings": 2048,
}


@pytest.mark.parametrize("config_overrides", [{}, {"attention_bias": True}, LONG_YARN])
def test_the_chain_by_rounding(tmp_path, config_overrides):
    source = write_checkpoint(
        tmp_path / "m", model_type="qwen3", config_overrides=config_overrides, tied=True
    )
    prepared = prepare(source, output=tmp_path / "p").output_dir
    assert (prepared / "config_vacc.json").is_file()
    assert make_compile_file(find_target(str(prepared))).content["backend"]["dtype"] == "fp16"
    # llama.cpp reads no biases of Qwen3's attention.
    held = tuple(
        name for name in HELD if name != "gguf" or not config_overrides.get("attention_bias")
    )
    options = replace(RTN, formats=held)
    output = quantize(prepared, options=options, output=tmp_path / "q").output_dir
    assert make_compile_file(find_target(str(output / "vamc"))).content["backend"]["dtype"] == (
        "int8"
    )
    for layout in held:
        result = verify(output / layout, max_tokens=64, sequence_length=32, limits=None)
        # Random weights predict nothing, but both models say nearly the same.
        assert result.scores.mean_kl < 0.02 and not result.failures, layout


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_all_formats_hold_the_same_integers(tmp_path, text, method):
    source = make_source(tmp_path / "m", "qwen3", num_layers=1)
    options = RTN if method == "rtn" else calibrated(text)
    output = quantize(source, options=options, output=tmp_path / "q").output_dir
    opened = {layout: Checkpoint.open(output / layout) for layout in HELD}
    expected = Checkpoint.open(source)
    for name, shape in opened["int8"].config.linear_names().items():
        codes, scale = codes_from("int8", opened["int8"].read, name)
        assert tuple(codes.shape) == shape
        for layout, checkpoint in opened.items():
            got, got_scale = codes_from(layout, checkpoint.read, name, scale)
            assert torch.equal(got, codes) and torch.equal(got_scale, scale), layout
    # Norms stay as they were, those of the heads too.
    norms = [name for name in expected.tensors if name.endswith("norm.weight")]
    assert len(norms) == 5
    for checkpoint in opened.values():
        assert all(torch.equal(checkpoint.read(n), expected.read(n)) for n in norms)


def test_a_calibrated_run_resumes_to_the_same_bytes(tmp_path, text):
    source = make_source(tmp_path / "m", "qwen3", num_layers=3)
    options = replace(calibrated(text), formats=("vamc",))
    whole = quantize(source, options=options, output=tmp_path / "whole").output_dir
    stop = StopAfter(1)
    with pytest.raises(KeyboardInterrupt):
        quantize(source, options=options, output=tmp_path / "q", progress=stop, kept=stop.kept)
    quantize(source, options=options, output=tmp_path / "q", resume=True)
    without = ("quantize_timing.json",)
    assert contents(tmp_path / "q", without=without) == contents(whole, without=without)


@pytest.mark.parametrize("config_overrides", [{}, YARN])
@pytest.mark.parametrize("head_dim", [16, 32])
def test_answers_are_those_of_transformers(tmp_path, config_overrides, head_dim):
    overrides = {**config_overrides, "head_dim": head_dim}
    source = write_checkpoint(
        tmp_path / "m", model_type="qwen3", config_overrides=overrides, dtype=torch.float32
    )
    prompt = [BOS_ID, *byte_ids("hello there " * 4)]
    answers = continue_prompts(
        load_model(source), Tokenizer.from_dir(source), [prompt], max_new_tokens=12
    )
    # As the makers serve it, which is what prepare writes into config.json.
    prepared = prepare(source, output=tmp_path / "p").output_dir
    theirs = AutoModelForCausalLM.from_pretrained(prepared, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = theirs(torch.tensor([prompt])).logits
        ids = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
    assert torch.allclose(decoder_logits(source, torch.tensor([prompt])), logits, atol=1e-5)
    assert answers == [ids[0, len(prompt) :].tolist()]


@pytest.mark.parametrize(
    "kind", ["bare", "peft", "compiled", "multimodal-5", "two-heads", "head-only", "absent-entry"]
)
def test_a_form_is_read_as_the_published_one(tmp_path, kind):
    source, clean, rules = found_form(kind, tmp_path, "qwen3")
    prepared = prepare(source, output=tmp_path / "out").output_dir
    expected = decoder_logits(clean, TOKENS)
    for directory in (source, prepared):
        assert torch.equal(decoder_logits(directory, TOKENS), expected), directory
    assert [rule.rule for rule in Checkpoint.open(source).applied] == rules
    opened = Checkpoint.open(prepared)
    assert opened.tensors.keys() == Checkpoint.open(clean).tensors.keys()
    find_target(str(prepared))


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("whole", [True, False])
def test_norms_of_the_heads_are_judged(tmp_path, name, whole):
    for value, said in ((float("nan"), "row 3 holds NaN"), (0.0, "all of its values are zero")):
        tensors = build_tensors(build_config(model_type="qwen3"))
        tensors[name][3 if said.startswith("row") else slice(None)] = value
        source = write_checkpoint(tmp_path / said[:3], model_type="qwen3", extra_tensors=tensors)
        found = find_unsound(Checkpoint.open(source), whole=whole)
        assert found.faults == [f"{name} in model.safetensors: {said}"]


def test_a_missing_and_a_foreign_norm_of_the_heads_are_told(tmp_path):
    source = write_checkpoint(tmp_path / "m", model_type="qwen3", extra_tensors={NORMS[0]: None})
    with pytest.raises(CheckpointError, match=rf"{NORMS[0]} is missing \(config.json needs it"):
        Checkpoint.open(source)
    # Norms of the heads in a model that says it is Qwen2: another architecture, and not loaded.
    extra = {name: torch.ones(16) for name in NORMS}
    source = write_checkpoint(tmp_path / "q", extra_tensors=extra)
    with pytest.raises(CheckpointError, match="belongs to no part of this config.json") as caught:
        Checkpoint.open(source)
    assert NORMS[0] in str(caught.value)


def test_a_norm_as_wide_as_all_heads_is_another_model(tmp_path):
    # As in other architectures, whose norm spans all heads.
    extra = {NORMS[0]: torch.ones(128)}
    source = write_checkpoint(tmp_path / "m", model_type="qwen3", extra_tensors=extra)
    with pytest.raises(CheckpointError, match="q_norm.weight") as caught:
        Checkpoint.open(source)
    assert "[128]" in str(caught.value) and "[32]" in str(caught.value)


@pytest.mark.parametrize("model_type", ["qwen3_moe", "qwen3_next", "qwen3_vl"])
def test_a_model_of_the_family_that_is_not_dense_is_refused(tmp_path, model_type):
    extra = {"vision_config": {}} if model_type == "qwen3_vl" else {"num_experts": 8}
    source = write_checkpoint(tmp_path / "m", model_type="qwen3")
    values = (source / "config.json").read_text()
    named = values.replace('"qwen3"', f'"{model_type}"').replace("{", "{" + _entries(extra), 1)
    (source / "config.json").write_text(named)
    for read in (read_config, Checkpoint.open):
        with pytest.raises(UnsupportedModelError) as caught:
            read(source)
        message = str(caught.value)
        assert f"has model_type {model_type!r}, expected one of qwen2, qwen3, llama" in message


def _entries(values: dict) -> str:
    return "".join(f'"{key}": {value},' for key, value in values.items())
