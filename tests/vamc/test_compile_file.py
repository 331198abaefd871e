import dataclasses
import json
import os

import pytest
import yaml

from vacc_deploy.errors import (
    CheckpointError,
    CompileFileError,
    OutputError,
    UnsupportedModelError,
)
from vacc_deploy.models.catalog import ALIGN_QKV, MODELS, PLAIN, find_model, tensor_parallel_rule
from vacc_deploy.models.parse import parse_config
from vacc_deploy.models.vacc_config import vacc_config
from vacc_deploy.vamc.cards import CARDS, GIB, plan_memory
from vacc_deploy.vamc.committed import (
    committed_files,
    default_tensor_parallel_size,
    write_all,
)
from vacc_deploy.vamc.compile_file import (
    build_compile_file,
    compile_environment,
    compile_notes,
    dump_compile_file,
    load_compile_file,
    make_compile_file,
    write_compile_file,
)
from vacc_deploy.vamc.options import CompileOptions
from vacc_deploy.vamc.target import Target, catalog_target, find_target

QWEN_7B = find_model("Distill-Qwen-7B")
QWEN_15B = find_model("Distill-Qwen-1.5B")

# The two compile files that the vendor publishes for R1-Distill; the checkpoint is a path there.
VENDOR_FP16 = {
    "name": "DeepSeek-R1-Distill-Qwen-7B-fp16-tp4-1024-2048",
    "frontend": {
        "checkpoint": "/models/DeepSeek-R1-Distill-Qwen-7B",
        "type": "huggingface",
        "shape": {"input_ids": [[1024], [2048]]},
        "model_kwargs": {"b2s": True, "tp": 4, "model_arch": "vacc"},
    },
    "backend": {
        "type": "tvm_vacc",
        "dtype": "fp16",
        "merge_params": True,
        "compile": {"data_type": 0, "gather_data_vccl_dsp_enable": True},
    },
    "workspace": {"path": "./vacc_deploy", "workers": 4},
}
VENDOR_INT8 = {
    "name": "DeepSeek-R1-Distill-Qwen-7B-int8-tp4-1024-2048",
    "frontend": {**VENDOR_FP16["frontend"], "quantize": {"type": "w8a16_gptq"}},
    "backend": {**VENDOR_FP16["backend"], "dtype": "int8"},
    "workspace": {"path": "./vacc_deploy", "workers": 4},
}


def build(model=QWEN_7B, *, checkpoint="./x", **options):
    target = Target(model.name, checkpoint, model.config)
    return build_compile_file(target, CompileOptions(**options))


@pytest.mark.parametrize(("dtype", "vendor"), [("fp16", VENDOR_FP16), ("int8", VENDOR_INT8)])
def test_the_7b_file_equals_the_vendors_key_for_key(dtype, vendor):
    content = build(dtype=dtype, checkpoint="/models/DeepSeek-R1-Distill-Qwen-7B")
    assert yaml.safe_load(dump_compile_file(content)) == vendor
    assert content == vendor


@pytest.mark.parametrize(
    "checkpoint",
    [
        *("./x", "/a b/c: d", "1e5", "yes", "#x", "模型/é", "a\nb", "x" * 300, "'\"", "a\x85b"),
        *("~", "a\u2028b", "\udc80"),
    ],
)
def test_load_of_dump_gives_the_same_file(tmp_path, checkpoint):
    content = build(checkpoint=checkpoint, dtype="int8", calibration=("c4", "allenai/c4"))
    path = tmp_path / "a.yaml"
    path.write_text(dump_compile_file(content, comments=("x",)), "utf-8", newline="")
    assert load_compile_file(path) == content


@pytest.mark.parametrize("char", ["\n", "\r", "\x85", "\u2028", "\u2029", "\x00", "\ud800", "\x1b"])
def test_a_name_cannot_end_a_comment(char):
    text = dump_compile_file(build(), comments=(f"- note{char}name: evil",))
    assert yaml.safe_load(text) == build()
    assert text.startswith("# - note name: evil\n")


def test_build_latency_turns_b2s_off():
    assert build(optimize="latency")["frontend"]["model_kwargs"]["b2s"] is False


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_build_sets_align_qkv_exactly_where_the_heads_do_not_divide(model, size):
    rule = tensor_parallel_rule(model.config, size)
    if rule not in (PLAIN, ALIGN_QKV):
        with pytest.raises(CompileFileError, match="cannot share"):
            build(model, tensor_parallel_size=size)
        return
    kwargs = build(model, tensor_parallel_size=size)["frontend"]["model_kwargs"]
    assert kwargs.get("align_qkv", MODELS) is (True if rule == ALIGN_QKV else MODELS)


@pytest.mark.parametrize(("name", "length"), [("alpaca", 512), ("c4", 1024), ("ceval", 128)])
def test_build_calibration_adds_the_vendors_dataset_block(name, length):
    content = build(dtype="int8", calibration=(name, "/data/set"))
    assert content["dataset"] == {
        "type": "huggingface",
        "name": name,
        "path": "/data/set",
        "nsamples": 128,
        "seqlen": length,
    }
    assert list(content) == ["name", "frontend", "backend", "dataset", "workspace"]


@pytest.mark.parametrize("size", [0, 3])
def test_build_refuses_other_sizes(size):
    with pytest.raises(CompileFileError, match=r"expected one of 1, 2, 4, 8, 16"):
        build(tensor_parallel_size=size)


def test_environment_is_set_from_the_32b_on():
    sized = {model.name: compile_environment(model.config) for model in MODELS.values()}
    large = {name for name, environment in sized.items() if environment}
    assert large == {"DeepSeek-R1-Distill-Qwen-32B", "DeepSeek-R1-Distill-Llama-70B"}
    assert sized["DeepSeek-R1-Distill-Qwen-32B"] == {"VACC_STACK_SIZE": "256"}


def test_head_names_the_export_the_command_and_align_qkv():
    text = make_compile_file(catalog_target(find_model("Distill-Qwen-32B"))).text
    assert "export VACC_STACK_SIZE=256" in text
    text = make_compile_file(catalog_target(QWEN_15B)).text
    assert "VACC_STACK_SIZE" not in text
    assert "# Compile: vamc compile <this file>\n" in text
    assert "# - align_qkv is set because tp 4 does not divide 12 attention heads" in text
    assert "A tp that needs none: 1, 2." in " ".join(text.replace("#", " ").split())


def test_notes_say_what_is_our_inference():
    codes = dataclasses.replace(QWEN_7B.config, quantization_bit=8)
    int8 = build(dtype="int8")
    stored = " ".join(compile_notes(int8, codes))
    assert "our inference" in stored and "quantized twice" in stored
    plain = " ".join(compile_notes(int8, QWEN_7B.config))
    assert "quantizes the float weights itself" in plain
    assert "no dataset block" in plain
    named = " ".join(compile_notes(build(dtype="int8", calibration=("c4", "p")), QWEN_7B.config))
    assert "left to vamc's defaults" in named
    assert "no dataset block" not in named
    assert compile_notes(build(), QWEN_7B.config) == []


def test_a_note_names_vocabulary_padding():
    odd = parse_config(dict(QWEN_7B.config_values, vocab_size=1001), where="c")
    (note,) = compile_notes(build(), odd)
    assert "not a multiple of 16" in note
    assert "2.3.4" in note


def test_card_too_small_for_the_weights_is_refused():
    with pytest.raises(CompileFileError) as caught:
        make_compile_file(catalog_target(find_model("Distill-Llama-70B")), card=CARDS["VA16"])
    text = str(caught.value)
    assert "do not fit a die of VA16 at tp 4" in text
    assert "32.9 GiB weights" in text
    assert text.endswith("Use a larger --tp or --dtype int8.")


def write_model_dir(path, *, extra=None, manifest=None, bits=0):
    path.mkdir()
    config = {**QWEN_7B.config_values, **(extra or {})}
    (path / "config.json").write_text(json.dumps(config))
    vacc = vacc_config(QWEN_7B.config, quantization_bit=bits)
    (path / "config_vacc.json").write_text(json.dumps(vacc))
    if manifest is not None:
        (path / "vacc_deploy.json").write_text(json.dumps(manifest))
    return path


@pytest.mark.parametrize("folder", ["My-Model", "My-Model-vacc", "My-Model-vacc-int8"])
def test_target_directory_is_named_after_its_folder(tmp_path, folder):
    target = find_target(str(write_model_dir(tmp_path / folder)))
    assert target.model_name == "My-Model"
    assert target.checkpoint == str(tmp_path / folder)
    assert target.notes == ()


def test_target_directory_keeps_the_path_as_given(tmp_path, monkeypatch):
    write_model_dir(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    assert find_target("./m").checkpoint == "./m"
    monkeypatch.chdir(tmp_path / "m")
    assert find_target(".").model_name == "m"


@pytest.mark.parametrize("model", ["Some-Model", "owner/Some-Model", "/a/Some-Model/"])
def test_target_directory_takes_the_manifests_name(tmp_path, model):
    path = write_model_dir(tmp_path / "x", manifest={"format_version": 1, "model": model})
    assert find_target(str(path)).model_name == "Some-Model"


@pytest.mark.parametrize("model", [None, 5, "", "a\0b", "/", "..", "a b", "a\n", "ä", "x" * 129])
def test_target_directory_with_a_manifest_without_a_name(tmp_path, model):
    path = write_model_dir(tmp_path / "x", manifest={"format_version": 1, "model": model})
    assert find_target(str(path)).model_name == "x"


@pytest.mark.parametrize("manifest", [[], {}, {"format_version": 2, "model": "x"}])
def test_target_directory_with_a_manifest_of_another_form_is_refused(tmp_path, manifest):
    path = write_model_dir(tmp_path / "x", manifest=manifest)
    with pytest.raises(CheckpointError, match="manifest of format 1"):
        find_target(str(path))


def test_target_directory_of_int8_codes_defaults_to_int8(tmp_path):
    path = write_model_dir(tmp_path / "x", extra={"quantization_bit": 8}, bits=8)
    result = make_compile_file(find_target(str(path)))
    assert result.content["backend"]["dtype"] == "int8"
    assert result.content["frontend"]["quantize"] == {"type": "w8a16_gptq"}
    assert "holds int8 weights already" in result.text
    with pytest.raises(CompileFileError, match="it holds int8 codes"):
        make_compile_file(find_target(str(path)), CompileOptions("fp16"))


def test_target_directory_with_two_configurations_that_differ_is_refused(tmp_path):
    path = write_model_dir(tmp_path / "x", extra={"num_hidden_layers": 27})
    with pytest.raises(CheckpointError, match="num_hidden_layers: got 28, config.json has 27"):
        find_target(str(path))


def test_target_directory_without_config_vacc_is_noted(tmp_path):
    path = write_model_dir(tmp_path / "x")
    os.remove(path / "config_vacc.json")
    assert "config_vacc.json is missing" in find_target(str(path)).notes[0]


def test_target_that_is_nothing_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="There is no directory 'Distill-Qwen-7'"):
        find_target("Distill-Qwen-7")
    with pytest.raises(UnsupportedModelError, match="There is no directory ''"):
        find_target("")
    with pytest.raises(CheckpointError, match="config.json is missing"):
        find_target(str(tmp_path))


def test_write_compile_file_is_whole_and_refuses_an_existing_one(tmp_path):
    result = make_compile_file(Target("M", "./x", QWEN_7B.config))
    path = tmp_path / "new" / "a.yaml"
    with pytest.raises(OutputError, match="new"):
        write_compile_file(result, path)
    path.parent.mkdir()
    written = write_compile_file(result, path)
    assert path.read_bytes().decode() == result.text
    assert str(path) in written.to_text()
    assert f"vamc compile {path}" in written.to_text()
    with pytest.raises(OutputError, match="--overwrite"):
        write_compile_file(result, path)
    path.write_text(f"{result.text.splitlines()[0]}\nold")
    write_compile_file(result, path, overwrite=True)
    assert path.read_text() == result.text
    assert [p.name for p in path.parent.iterdir()] == ["a.yaml"]


def test_committed_files_load_and_break_no_rule(tmp_path):
    for path in write_all(tmp_path).files:
        load_compile_file(path)


def test_committed_sizes_are_plain_and_leave_a_fifth_of_a_32_gib_die():
    sizes = {}
    for model in MODELS.values():
        config = model.config
        size = sizes[model.aliases[0]] = default_tensor_parallel_size(config)
        assert tensor_parallel_rule(config, size) == PLAIN
        plan = plan_memory(
            CARDS["VA16"], config, dtype="fp16", tensor_parallel_size=size, num_tokens=2048
        )
        assert plan.free_bytes > 0.2 * 32 * GIB
    assert sizes == {
        "Distill-Qwen-1.5B": 2,
        "Distill-Qwen-7B": 4,
        "Distill-Qwen-14B": 4,
        "Distill-Qwen-32B": 8,
        "Distill-Llama-8B": 4,
        "Distill-Llama-70B": 8,
    }


def test_write_all_replaces_its_own_files_and_deletes_none(tmp_path):
    old = tmp_path / "hf_ds_r1_distill_qwen_7b_fp16.yaml"
    old.write_text("old")
    with pytest.raises(OutputError, match="was not written by vacc-deploy"):
        write_all(tmp_path)
    old.write_text("# Compile file for vamc, written by vacc-deploy yaml.\nold")
    (tmp_path / "mine.yaml").write_text("mine")
    config = tmp_path / "b" / "DeepSeek-R1-Distill-Qwen-7B" / "config_vacc.json"
    config.parent.mkdir(parents=True)
    config.write_text("old")
    result = write_all(tmp_path, build_in=tmp_path / "b")
    assert config.read_text() != "old"
    assert len(result.files) == 16
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    assert old.read_text() == committed_files()[old.name]
    assert result.to_dict()["files"] == [str(path) for path in result.files]


def test_int8_directory_of_a_llama_is_refused():
    config = dataclasses.replace(find_model("Distill-Llama-8B").config, quantization_bit=8)
    with pytest.raises(CompileFileError, match="int8 weights of a Llama model"):
        make_compile_file(Target("M", "./x", config))
