import os

import pytest
import yaml
from closed_files import as_user, open_directory

from vacc_deploy.errors import (
    CompileFileError,
    OutputError,
    UsageError,
)
from vacc_deploy.models.catalog import (
    ALIGN_QKV,
    MODELS,
    PLAIN,
    find_model,
    official_models,
    tensor_parallel_rule,
)
from vacc_deploy.models.parse import parse_config
from vacc_deploy.outputs.seal import seal_text
from vacc_deploy.vamc.cards import CARDS, GIB, plan_memory
from vacc_deploy.vamc.committed import (
    committed_files,
    default_tensor_parallel_size,
    write_all,
)
from vacc_deploy.vamc.compile_file import (
    FILE_HEAD,
    build_compile_file,
    compile_environment,
    dump_compile_file,
    load_compile_file,
    make_compile_file,
    write_compile_file,
)
from vacc_deploy.vamc.notes import compile_notes
from vacc_deploy.vamc.options import CompileOptions
from vacc_deploy.vamc.target import Target, catalog_target

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


def build(model=QWEN_7B, *, checkpoint="./x", layout="", **options):
    target = Target(model.name, checkpoint, model.config, layout)
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
        with pytest.raises(UsageError, match="--tp: 16 dies cannot share"):
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
    with pytest.raises(UsageError, match=rf"--tp: got {size}, expected one of 1, 2, 4, 8, 16"):
        build(tensor_parallel_size=size)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"prefill": 1000}, "--seq-len: is 1000, expected a positive multiple of 16"),
        ({"total": 2050}, "--max-seq-len: is 2050, expected a positive multiple of 16"),
        ({"prefill": 4096}, "--seq-len: 4096 is not below --max-seq-len 2048"),
        ({"total": 1 << 20}, "--max-seq-len: 1048576 is above max_position_embeddings 131072"),
        ({"dtype": "int8", "calibration": ("c4", " ")}, "--calibration: is empty"),
    ],
)
def test_a_rule_that_an_option_broke_names_the_option(options, line):
    with pytest.raises(UsageError) as caught:
        build(**options)
    assert line in str(caught.value)
    assert "frontend." not in str(caught.value)


def test_a_model_of_a_short_context_says_which_lengths_to_give():
    config = parse_config({**QWEN_7B.config_values, "max_position_embeddings": 1000}, where="c")
    target = Target(QWEN_7B.name, "./x", config, "")
    with pytest.raises(UsageError) as caught:
        build_compile_file(target, CompileOptions())
    assert "--max-seq-len: 2048 is above max_position_embeddings 1000" in str(caught.value)
    assert "the most is 992, and less for --seq-len" in str(caught.value)


def test_a_size_that_cannot_be_lists_every_other_one():
    with pytest.raises(UsageError, match=r"use 1, 2 \(or, with align_qkv, 4, 8\)"):
        build(QWEN_15B, tensor_parallel_size=16)


def test_environment_is_set_from_the_32b_on():
    sized = {model.name: compile_environment(model.config) for model in MODELS.values()}
    large = {name for name, environment in sized.items() if environment}
    official = {f"DeepSeek-R1-Distill-{size}" for size in ("Qwen-32B", "Llama-70B")}
    vendor = {"QwQ-32B", "Skywork-OR1-32B", "Qwen2.5-32B-Instruct", "Qwen2.5-72B-Instruct"}
    assert large == official | vendor
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
    int8 = build(dtype="int8")
    codes = build(dtype="int8")
    del codes["frontend"]["quantize"]
    stored = " ".join(compile_notes(codes, QWEN_7B.config, "int8"))
    assert "our inference" in stored and "No published file looks like this" in stored
    grid = " ".join(compile_notes(int8, QWEN_7B.config, "vamc"))
    assert "our inference" in grid and "should find the same integers" in grid
    plain = " ".join(compile_notes(int8, QWEN_7B.config))
    assert "quantizes the float weights itself" in plain
    assert "no dataset block" in plain and "no dataset block" in grid
    named = " ".join(compile_notes(build(dtype="int8", calibration=("c4", "p")), QWEN_7B.config))
    assert "left to vamc's defaults" in named
    assert "no dataset block" not in named and "names a file" not in named
    file = build(dtype="int8", calibration=("c4", "/x/c4-train.00000.json.gz"))
    assert "names a file" in " ".join(compile_notes(file, QWEN_7B.config))
    alpaca = build(dtype="int8", calibration=("alpaca", "/x/en_alpaca_data.json"))
    assert "names a file" not in " ".join(compile_notes(alpaca, QWEN_7B.config))
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
    other = make_compile_file(Target("M", "./other", QWEN_7B.config))
    write_compile_file(other, path, overwrite=True)
    assert path.read_text() == other.text
    edited = other.text.replace("./other", "./elsewhere")
    path.write_text(edited)
    with pytest.raises(OutputError, match="was changed since it was written"):
        write_compile_file(result, path, overwrite=True)
    assert path.read_text() == edited
    assert [p.name for p in path.parent.iterdir()] == ["a.yaml"]


def test_committed_files_load_and_break_no_rule(tmp_path):
    for path in write_all(tmp_path).files:
        load_compile_file(path)


def test_committed_sizes_are_plain_and_leave_a_fifth_of_a_32_gib_die():
    sizes = {}
    for model in official_models():
        config = model.config
        size = sizes[model.aliases[0]] = default_tensor_parallel_size(config)
        assert tensor_parallel_rule(config, size) == PLAIN
        plan = plan_memory(
            CARDS["VA16"], config, dtype="fp16", tensor_parallel_size=size, lengths=(16, 2048)
        )
        assert plan.free_bytes > 0.2 * 32 * GIB
    assert sizes == {
        "Distill-Qwen-1.5B": 2,
        "Distill-Qwen-7B": 4,
        "Distill-Qwen-14B": 4,
        "Distill-Qwen-32B": 8,
        "Distill-Llama-8B": 4,
        "Distill-Llama-70B": 8,
        "R1-0528-Qwen3-8B": 4,
    }


def stand_in_the_way(path, kind):
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(path.with_name("mine.yaml"))
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "file of others":
        path.write_text("mine")


@pytest.mark.parametrize("kind", ["directory", "pipe", "link", "dangling link", "file of others"])
def test_write_all_writes_all_or_none(tmp_path, kind):
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "mine.yaml").write_text(seal_text(f"{FILE_HEAD}\nold\n"))
    name = sorted(committed_files())[-1]  # the last to be written
    stand_in_the_way(tmp_path / "yaml" / name, kind)
    with pytest.raises(OutputError) as caught:
        write_all(tmp_path / "yaml", build_in=tmp_path / "b")
    text = str(caught.value)
    assert text.startswith("Files stand in the way that are not replaced:\n  - ")
    assert str(tmp_path / "yaml" / name) in text
    assert sorted(os.listdir(tmp_path / "yaml")) == sorted(["mine.yaml", name])
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("kind", ["pipe", "dangling link", "file of others"])
def test_write_all_finds_what_stands_in_place_of_a_directory_first(tmp_path, kind):
    (tmp_path / "b").mkdir()
    stand_in_the_way(tmp_path / "b" / "DeepSeek-R1-Distill-Qwen-7B", kind)
    with pytest.raises(OutputError, match="Qwen-7B is not a directory"):
        write_all(tmp_path / "yaml", build_in=tmp_path / "b")
    assert sorted(os.listdir(tmp_path)) == ["b"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_write_all_finds_a_closed_directory_first():
    with open_directory() as folder:
        (folder / "yaml").mkdir(mode=0o777)
        (folder / "yaml").chmod(0o777)
        (folder / "closed").mkdir(mode=0o555)
        with as_user(), pytest.raises(OutputError) as caught:
            write_all(folder / "yaml", build_in=folder / "closed" / "b")
        assert str(folder / "closed") in str(caught.value) and not os.listdir(folder / "yaml")


def test_a_compile_file_may_have_any_name(tmp_path):
    made = make_compile_file(catalog_target(QWEN_7B, "fp16"), CompileOptions())
    other = make_compile_file(catalog_target(QWEN_7B, "fp16"), CompileOptions(prefill=512))
    write_compile_file(made, tmp_path / "x.json")
    write_compile_file(other, tmp_path / "x.json", overwrite=True)
    assert (tmp_path / "x.json").read_text() == other.text


def test_a_compile_file_does_not_take_the_place_of_a_link(tmp_path):
    made, path = (
        make_compile_file(catalog_target(QWEN_7B, "fp16"), CompileOptions()),
        tmp_path / "x.yaml",
    )
    write_compile_file(made, tmp_path / "real.yaml")
    path.symlink_to("real.yaml")
    with pytest.raises(OutputError) as caught:
        write_compile_file(made, path, overwrite=True)
    assert str(caught.value) == (
        f"{path} is a link to real.yaml, and an output never replaces a link. Remove it, or choose "
        "another --output."
    )
    assert path.is_symlink()


def test_write_all_replaces_its_own_files_and_deletes_none(tmp_path):
    old = tmp_path / "hf_ds_r1_distill_qwen_7b_fp16.yaml"
    old.write_text("old")
    with pytest.raises(OutputError, match="was not written by vacc-deploy"):
        write_all(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [old.name]
    old.write_text(seal_text("# Compile file for vamc, written by vacc-deploy yaml.\nold\n"))
    (tmp_path / "mine.yaml").write_text("mine")
    config = tmp_path / "b" / "DeepSeek-R1-Distill-Qwen-7B" / "config_vacc.json"
    config.parent.mkdir(parents=True)
    config.write_text("{}")
    with pytest.raises(OutputError, match="config_vacc.json is not what would be written"):
        write_all(tmp_path, build_in=tmp_path / "b")
    assert config.read_text() == "{}"
    config.unlink()
    for _ in range(2):
        result = write_all(tmp_path, build_in=tmp_path / "b")
    assert len(result.files) == 19
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    assert old.read_text() == committed_files()[old.name]
    assert result.to_dict()["files"] == [str(path) for path in result.files]
