"""Checkpoints in the forms that trainers leave: each is used as if it were the published one."""

import pytest
import torch
from found_forms import (
    EMBEDDING,
    FORMS,
    GENERATION,
    HEAD,
    TOKENS,
    found_form,
    other_head,
    published,
    write_found,
)
from reference_logits import decoder_logits
from safetensors.torch import load_file
from texts import read_json
from tokenizer_builders import ASSISTANT, ASSISTANT_ID, EOS_ID
from transformers import AutoModelForCausalLM

from vacc_deploy.checkpoint.reader import INDEX_NAME, Checkpoint
from vacc_deploy.errors import CheckpointError, UnsupportedModelError
from vacc_deploy.graphs.compare import compare_graphs, run_reference
from vacc_deploy.graphs.export import ExportOptions, export_onnx
from vacc_deploy.prepare import prepare
from vacc_deploy.progress import Progress
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference.loader import load_model
from vacc_deploy.reference.sampling import read_sampling
from vacc_deploy.reference.verify import verify
from vacc_deploy.vamc.target import find_target


def logits_of(directory):
    """Return the logits of the decoder, and of the model that is loaded, last position."""
    with torch.inference_mode():
        return decoder_logits(directory, TOKENS)[:, -1], load_model(directory)(TOKENS).logits[:, -1]


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_a_form_is_used_as_the_published_one(tmp_path, kind, model_type):
    source, clean, rules = found_form(kind, tmp_path, model_type)
    result = prepare(source, output=tmp_path / "out")
    # The source itself, its prepared form, and the int8 values of both.
    expected = logits_of(clean)
    for directory in (source, tmp_path / "out"):
        for got in logits_of(directory):
            assert torch.allclose(got, expected[0], rtol=1e-5, atol=1e-5), directory
    assert torch.allclose(*expected, rtol=1e-5, atol=1e-5)
    if model_type == "llama":  # what stock loaders make of the prepared directory
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        with torch.inference_mode():
            assert torch.allclose(stock(TOKENS).logits[:, -1], expected[0], rtol=1e-5, atol=1e-5)
    assert [rule.rule for rule in Checkpoint.open(source).applied] == rules
    manifest = read_json(tmp_path / "out" / "vacc_deploy.json")
    assert [entry["rule"] for entry in manifest["normalized"]] == rules
    for note, entry in zip(result.notes, manifest["normalized"], strict=False):
        assert note == f"{entry['note'].removesuffix('.')} (rule {entry['rule']})."
    # Nothing downstream can decide otherwise: the prepared files are in the published form.
    prepared = Checkpoint.open(tmp_path / "out")
    assert not prepared.is_config_changed and not prepared.changed_shards()
    assert prepared.tensors.keys() == Checkpoint.open(clean).tensors.keys()
    find_target(str(tmp_path / "out"))


@pytest.mark.parametrize("kind", ["bare", "two-heads", "head-only", "float64", "left-over"])
def test_quantize_writes_the_published_form_of_a_source_that_is_not_prepared(tmp_path, kind):
    source, clean, rules = found_form(kind, tmp_path, "llama")
    options = QuantizeOptions("rtn")
    for directory in (source, clean):
        result = quantize(directory, options=options, output=tmp_path / f"{directory.name}-q")
        assert bool(result.notes) is (directory == source and bool(rules))
    got, expected = logits_of(tmp_path / "found-q"), logits_of(tmp_path / "clean-q")
    for left, right in zip(got, expected, strict=True):
        assert torch.allclose(left, right, rtol=1e-5, atol=1e-5)
    manifest = read_json(tmp_path / "found-q" / "vacc_deploy.json")
    assert [entry["rule"] for entry in manifest["normalized"]] == rules
    assert not Checkpoint.open(tmp_path / "found-q").applied
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 4)
    checked = verify(tmp_path / "found-q", text_file=text, limits=None)
    assert checked.scores.mean_kl < 0.1
    assert [note for note in checked.notes if note in result.notes] == list(result.notes)


# One form of each rule.
GRAPHS = {
    **dict.fromkeys(("bare", "spare", "two-heads", "alias-tied", "left-over", "pad-id"), "llama"),
    **dict.fromkeys(("compiled", "head-only", "absent-entry", "float64", "run-flags"), "qwen2"),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_the_graph_of_a_form_computes_the_clean_model(tmp_path, kind):
    source, clean, _ = found_form(kind, tmp_path, GRAPHS[kind])
    directory = source
    if GRAPHS[kind] == "qwen2":
        directory = prepare(source, output=tmp_path / "out").output_dir
    options = ExportOptions(sequence_length=16, max_sequence_length=32, num_steps=1)
    result = export_onnx(directory, output=tmp_path / "onnx", options=options)
    files = {stage: tmp_path / "onnx" / f"{stage}.onnx" for stage in ("prefill", "decode")}
    reference = run_reference(load_model(clean), TOKENS[:1, :16], 1)
    assert compare_graphs(files, result.shape, reference).max_difference < 1e-5
    assert all(note in result.notes for note in Checkpoint.open(directory).notes)
    assert bool(result.notes) is (directory == source)


def test_two_heads_of_a_float_and_an_int8_directory_are_one_truth(tmp_path):
    source, _, _ = found_form("two-heads", tmp_path)
    prepare(source, output=tmp_path / "out")
    for name in ("config.json", "config_vacc.json"):
        assert read_json(tmp_path / "out" / name)["tie_word_embeddings"] is False
    note = Checkpoint.open(source).notes[0]
    assert note.startswith("config.json ties the head to the embedding, but lm_head.weight is stor")


def test_a_second_head_that_is_no_float_is_named(tmp_path):
    config, tensors = published(tied=True)
    tensors[HEAD] = torch.zeros(tensors[EMBEDDING].shape, dtype=torch.uint16)
    with pytest.raises(CheckpointError, match=f"{HEAD} in .* is U16, expected"):
        Checkpoint.open(write_found(tmp_path / "m", config, tensors))


def test_changed_shards_are_written_and_the_others_linked(tmp_path):
    config, tensors = published("llama", tied=True)
    tensors[HEAD] = tensors.pop(EMBEDDING)  # the last one: the second file
    source, out = write_found(tmp_path / "m", config, tensors, shards=2), tmp_path / "out"
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    result = prepare(source, output=out)
    assert [how for name, _, how in result.files if name in names] == ["hardlink", "changed"]
    assert (out / names[0]).samefile(source / names[0])
    assert EMBEDDING in load_file(out / names[1]) and HEAD not in load_file(out / names[1])
    assert read_json(out / INDEX_NAME)["weight_map"][EMBEDDING] == names[1]
    dry = prepare(source, output=tmp_path / "other", dry_run=True)
    assert [how for name, _, how in dry.files if name in names] == ["hardlink", "changed"]
    assert dry.notes == result.notes
    weights = [[file for file in of.files if file[0] in names] for of in (dry, result)]
    assert weights[0] == weights[1] and not (tmp_path / "other").exists()


def test_sizes_of_a_dry_run_and_of_the_index_are_those_of_what_is_written(tmp_path):
    config, tensors = published("llama")
    double = {name: tensor.double() for name, tensor in tensors.items()}
    source, out = write_found(tmp_path / "m", config, double, shards=2), tmp_path / "out"
    dry = prepare(source, output=out, dry_run=True)
    sizes = {name: size for name, size, how in dry.files if how == "changed"}
    assert len(sizes) == 2
    prepare(source, output=out)
    assert sizes == {name: (out / name).stat().st_size for name in sizes}
    total = sum(4 * tensor.numel() for tensor in tensors.values())
    assert read_json(out / INDEX_NAME)["metadata"]["total_size"] == total


def test_a_vendor_s_program_never_reads_a_form_that_it_may_misread(tmp_path):
    source, _, _ = found_form("two-heads", tmp_path, "llama")
    with pytest.raises(CheckpointError) as caught:
        find_target(str(source))
    assert str(caught.value).endswith(
        f"Prepare it, which writes that form: vacc-deploy prepare {source}"
    )


def test_the_generation_config_is_settled_too(tmp_path):
    config, tensors = published()
    stated = {"eos_token_id": [ASSISTANT, EOS_ID, "none"], "pad_token_id": -1, "top_k": -1}
    source = write_found(tmp_path / "m", config, tensors, generation=stated)
    result = prepare(source, output=tmp_path / "out")
    quantize(source, options=QuantizeOptions("rtn"), output=tmp_path / "q")
    for directory in (tmp_path / "out", tmp_path / "q"):
        settled = read_json(directory / "generation_config.json")
        expected = {**GENERATION, "eos_token_id": [ASSISTANT_ID, EOS_ID], "top_k": 0}
        assert settled == expected
        rules = [e["rule"] for e in read_json(directory / "vacc_deploy.json")["normalized"]]
        assert rules == ["token-ids", "token-ids", "top-k"]
    assert "generation_config.json: top_k -1 is read as 0, no limit (rule top-k)." in result.notes
    assert read_sampling(source)["top_k"] == 0
    for directory in (source, tmp_path / "out"):
        model = load_model(directory)
        assert model.generation_config.eos_token_id == [ASSISTANT_ID, EOS_ID]


@pytest.mark.parametrize("value", [272, -1, True, "none", 1.5, [], {}, [272]])
def test_a_token_id_outside_the_vocabulary_is_left_out(tmp_path, value):
    config, tensors = published()
    source = write_found(tmp_path / "m", {**config, "pad_token_id": value}, tensors)
    assert "pad_token_id" not in Checkpoint.open(source).config.raw


def test_a_plain_checkpoint_is_left_as_it_is(tmp_path):
    config, tensors = published()
    checkpoint = Checkpoint.open(write_found(tmp_path / "m", config, tensors))
    assert checkpoint.applied == () and not checkpoint.is_config_changed
    assert checkpoint.config.raw == config


@pytest.mark.parametrize(
    "extra",
    [
        {"quantization_config": {"quant_method": "fp8"}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    ],
)
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight_scale_inv", "a.qweight"])
def test_weights_that_are_quantized_stay_refused(tmp_path, extra, name):
    config, tensors = published()
    tensors[name] = torch.ones(1)
    with pytest.raises(UnsupportedModelError, match="quantized already"):
        Checkpoint.open(write_found(tmp_path / "m", {**config, **extra}, tensors))


def test_two_names_for_one_tensor_are_refused(tmp_path):
    config, tensors = published()
    tensors[f"module.{EMBEDDING}"] = other_head(tensors)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(write_found(tmp_path / "m", config, tensors))
    assert f"{EMBEDDING} is stored twice, as " in str(caught.value)


def test_of_two_models_in_one_file_the_plain_one_counts_and_the_other_is_refused(tmp_path):
    config, tensors = published()
    tensors |= {f"reference.{name}": tensor.clone() for name, tensor in tensors.items()}
    with pytest.raises(CheckpointError, match="reference.lm_head.weight in .* belongs to no part"):
        Checkpoint.open(write_found(tmp_path / "m", config, tensors))


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_tie_word_embeddings_of_another_type(tmp_path, value):
    config, tensors = published()
    source = write_found(tmp_path / "m", {**config, "tie_word_embeddings": value}, tensors)
    if value is None:
        assert Checkpoint.open(source).config.tie_word_embeddings is False
    else:
        with pytest.raises(CheckpointError, match="tie_word_embeddings: got"):
            Checkpoint.open(source)


def test_a_broken_tokenizer_settles_what_needs_none(tmp_path):
    config, tensors = published()
    source = write_found(tmp_path / "m", {**config, "eos_token_id": [EOS_ID, ASSISTANT]}, tensors)
    (source / "tokenizer.json").write_text("{}")
    assert Checkpoint.open(source).config.raw["eos_token_id"] == [EOS_ID]


def test_the_progress_of_a_changed_file_ends_at_its_total(tmp_path):
    class Placing(Progress):
        def start(self, description, total, unit):
            self.total, self.done = total, 0

        def advance(self, amount=1, note=""):
            self.done += amount

    source, _, _ = found_form("float64", tmp_path)
    progress = Placing()
    prepare(source, output=tmp_path / "out", progress=progress)
    assert progress.done == progress.total
