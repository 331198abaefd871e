"""Tensor names of several forms in one checkpoint, and indexes that have another form."""

import pytest
import torch
from checkpoint_builders import build_config, build_tensors, write_checkpoint, write_json
from found_forms import assert_means
from safetensors.torch import load_file, save_file
from texts import read_json
from transformers import AutoModelForCausalLM

from vacc_deploy.checkpoint.reader import INDEX_NAME, Checkpoint
from vacc_deploy.checkpoint.tensor_names import published_names
from vacc_deploy.errors import CheckpointError
from vacc_deploy.prepare import prepare

PUBLISHED = build_tensors(build_config(model_type="llama"))
FIRST, LAST = "model.layers.0.", "model.layers.1."


def write_form(directory, change, **options):
    """Write a Llama model under other names."""
    names = {name: None for name in PUBLISHED} | {change(n): t for n, t in PUBLISHED.items()}
    return write_checkpoint(directory, model_type="llama", extra_tensors=names, **options)


def check_form(tmp_path, source):
    """Prepare a form; compare its logits, ours and theirs, with those of the published one."""
    clean = write_checkpoint(tmp_path / "clean", model_type="llama")
    out = prepare(source, output=tmp_path / "out").output_dir
    assert_means(clean, source, out)
    assert not Checkpoint.open(out).applied
    return [rule.rule for rule in Checkpoint.open(source).applied]


MIXED = {
    "bare-layer": lambda n: n.removeprefix("model.") if LAST in n else n,
    "bare-first-layer": lambda n: n.removeprefix("model.") if FIRST in n else n,
    "bare-embedding-and-norm": lambda n: n.removeprefix("model.") if "layers" not in n else n,
    "peft-layer": lambda n: f"base_model.model.{n}" if LAST in n else n,
    "peft-first-layer": lambda n: f"base_model.model.{n}" if FIRST in n else n,
    "peft-but-the-head": lambda n: n if n == "lm_head.weight" else f"base_model.model.{n}",
    "peft-and-language-model": lambda n: f"language_model.{n}" if LAST in n else f"base_model.{n}",
}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", MIXED)
def test_some_names_may_have_another_prefix(tmp_path, kind, shards):
    source = write_form(tmp_path / "m", MIXED[kind], shards=shards)
    assert check_form(tmp_path, source) == ["prefix"]


def test_the_note_gives_a_name_that_differs(tmp_path):
    source = write_form(tmp_path / "m", MIXED["bare-first-layer"])
    (note,) = Checkpoint.open(source).notes
    assert note == (
        "9 names of tensors have another prefix than the others (layers.0.mlp.up_proj.weight); all "
        "are read as if they began with 'model.' (rule prefix)."
    )


def test_a_layer_of_another_model_is_not_taken_for_a_missing_one(tmp_path):
    source = write_form(tmp_path / "m", lambda n: f"vision_tower.{n}" if LAST in n else n)
    with pytest.raises(CheckpointError, match=f"{LAST}input_layernorm.weight is missing"):
        Checkpoint.open(source)


@pytest.mark.parametrize("other", ["norm.weight", "module.model.norm.weight"])
def test_a_tensor_stored_twice_is_one_if_both_are_equal(tmp_path, other):
    twice = {other: PUBLISHED["model.norm.weight"].clone()}
    same = write_checkpoint(tmp_path / "same", model_type="llama", extra_tensors=twice)
    assert prepare(same, output=tmp_path / "out").files[0][2] == "hardlink"
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    twice = {other: PUBLISHED["model.norm.weight"] * 2}
    differ = write_checkpoint(tmp_path / "differ", model_type="llama", extra_tensors=twice)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(differ)
    text = f"model.norm.weight is stored twice, as model.norm.weight and {other}, with different"
    assert text in str(caught.value)


INDEXES = {
    "wrapped": lambda n: f"module.{n}",
    "bare": lambda n: n.removeprefix("model."),
    "peft": lambda n: f"base_model.model.{n}",
}


@pytest.mark.parametrize("kind", INDEXES)
def test_an_index_may_have_the_names_of_another_form(tmp_path, kind):
    source = write_checkpoint(tmp_path / "m", model_type="llama", shards=2)
    index = read_json(source / INDEX_NAME)
    clean = dict(index["weight_map"])
    index["weight_map"] = {INDEXES[kind](name): file for name, file in clean.items()}
    write_json(source / INDEX_NAME, index)
    assert check_form(tmp_path, source) == ["index-names"]
    assert read_json(tmp_path / "out" / INDEX_NAME)["weight_map"] == clean


def test_files_may_have_another_form_than_their_index(tmp_path):
    source = write_checkpoint(tmp_path / "m", model_type="llama", shards=2)
    for path in source.glob("*.safetensors"):
        save_file({f"module.{name}": tensor for name, tensor in load_file(path).items()}, path)
    assert check_form(tmp_path, source) == ["wrappers", "index-names"]


def test_an_index_of_other_names_that_names_another_file_too(tmp_path):
    source = write_checkpoint(tmp_path / "m", model_type="llama", shards=2)
    index = read_json(source / INDEX_NAME)
    files = sorted(set(index["weight_map"].values()))
    index["weight_map"] = {
        f"module.{n}": files[f == files[0]] for n, f in index["weight_map"].items()
    }
    write_json(source / INDEX_NAME, index)
    assert check_form(tmp_path, source) == ["index-names", "index-places"]


def test_a_prefix_of_many_parts_is_cut_in_the_note(tmp_path):
    source = write_form(tmp_path / "m", lambda n: "a." * 200 + n)
    (note,) = Checkpoint.open(source).notes
    assert len(note) < 250


def test_two_heads_of_dtypes_that_cannot_be_compared_are_a_message(tmp_path):
    tensors = {**PUBLISHED, "lm_head.weight": torch.zeros(272, 64, dtype=torch.float8_e4m3fn)}
    overrides = {"tie_word_embeddings": True}
    options = {"config_overrides": overrides, "extra_tensors": tensors}
    source = write_checkpoint(tmp_path / "m", model_type="llama", **options)
    with pytest.raises(CheckpointError, match="quantized already"):
        Checkpoint.open(source)


def test_published_names_stay():
    assert published_names(PUBLISHED) == {name: name for name in PUBLISHED}
