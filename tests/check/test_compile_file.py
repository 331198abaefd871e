"""The problems of a compile file: alone, against the directory that it names, and of a card."""

import json
import os
import shutil

import pytest
from compile_files import (
    REMOVED,
    VENDOR_FP16,
    VENDOR_INT8,
    above_notes,
    change,
    check,
    make_prepared,
    make_quantized,
)
from texts import ROOT

from vacc_deploy.check.compile_file import check_compile_file
from vacc_deploy.vamc.cards import CARDS
from vacc_deploy.vamc.compile_file import make_compile_file
from vacc_deploy.vamc.options import CompileOptions
from vacc_deploy.vamc.target import find_target


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Directories by architecture and layout; read only."""
    directories = {}
    for model_type in ("qwen2", "llama"):
        prepared = make_prepared(tmp_path_factory.mktemp(model_type), model_type)
        directories[model_type, ""] = prepared
        layouts = ("vamc", "int8", "compressed-tensors") if model_type == "qwen2" else ("int8",)
        for layout in layouts:
            directories[model_type, layout] = make_quantized(prepared, layout)
    return directories


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The path of a compile file; the working directory is another one."""
    (tmp_path / "here").mkdir()
    (tmp_path / "files").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("VACC_STACK_SIZE", raising=False)
    return tmp_path / "files" / "a.yaml"


def named(directory, text=VENDOR_FP16, *, name="Tiny", size=2, **changes):
    """Return a compile file that names ``directory``."""
    dtype = "int8" if "int8" in text else "fp16"
    return change(
        text,
        name=f"{name}-{dtype}-tp{size}-1024-2048",
        frontend__checkpoint=str(directory),
        frontend__model_kwargs__tp=size,
        **changes,
    )


# ---- alone ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "notes"),
    [(VENDOR_FP16, {"VD613", "VD703"}), (VENDOR_INT8, {"VD613", "VD634", "VD635", "VD703"})],
    ids=["fp16", "int8"],
)
def test_the_published_files_give_notes_only(file, text, notes):
    problems = check(file, text)
    assert set(problems) == notes and above_notes(problems) == []


@pytest.mark.parametrize("path", sorted((ROOT / "yaml").glob("*.yaml")), ids=lambda p: p.name)
def test_the_committed_files_give_notes_only(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    problems = check_compile_file(path).problems
    assert {problem.rule.severity for problem in problems} == {"note"}
    (place,) = (problem for problem in problems if problem.rule.code == "VD704")
    assert "is what vacc-deploy" in place and "It is not here" in place


def test_a_problem_names_line_and_key(file):
    problem = check(file, VENDOR_FP16.replace("tp: 4", "tp: 5"))["VD640"]
    assert (problem.where, problem.line) == ("frontend.model_kwargs.tp", 11)
    missing = check(file, VENDOR_FP16.replace("    tp: 4\n", ""))["VD604"]
    # The line of the block in which the key is missing.
    assert (missing.where, missing.line) == ("frontend.model_kwargs.tp", 9)


def test_a_file_that_is_no_yaml_is_one_problem(file):
    (problem,) = check(file, "a: &x 1\n").values()
    assert problem.rule.code == "VD600" and "a.yaml" in problem
    (problem,) = check(file, "text").values()
    assert problem.rule.code == "VD605" and not problem.line
    missing = check_compile_file(file.with_name("none.yaml"))
    assert missing.problems[0].rule.code == "VD600" and missing.directory is None


def test_a_vision_tower_is_out_of_scope_and_nothing_else_is_said(file):
    text = change(VENDOR_FP16, frontend__model_kwargs__build_visual=True, backend__x=1)
    assert set(check(file, text, CARDS["VA16"])) == {"VD608"}


# ---- where the directory is --------------------------------------------------------------------


def test_a_relative_checkpoint_that_is_nowhere_is_an_error(file):
    problem = check(file, named("./nowhere"))["VD701"]
    assert problem.rule.severity == "error"
    assert f"in {os.getcwd()} or in {file.parent}" in problem
    assert check_compile_file(file).directory is None


def test_a_relative_checkpoint_is_found_from_both_directories(made, file, monkeypatch):
    shutil.copytree(made["qwen2", ""], file.parent / "Tiny-vacc")
    text = named("./Tiny-vacc")
    only_file = check(file, text)
    assert f"Start vamc in {file.parent}, or write" in only_file["VD702"]
    assert only_file["VD702"].rule.severity == "warning"
    assert check_compile_file(file).directory == file.parent / "Tiny-vacc"
    shutil.copytree(made["qwen2", ""], "Tiny-vacc")
    assert "VD702" not in check(file, text)
    monkeypatch.chdir(file.parent)
    assert above_notes(check(file, text)) == []


def test_a_repository_or_an_absolute_path_that_is_not_here_is_a_note(file):
    for text in ("/data/My-Model", "owner/My-Model"):
        problems = check(file, named(text, name="My-Model"))
        assert "was not checked against its directory" in problems["VD703"]
        assert above_notes(problems) == []


def test_a_checkpoint_that_is_no_model_is_an_error(file):
    (file.parent / "m").mkdir()
    assert "config.json is missing" in check(file, named(file.parent / "m"))["VD705"]
    (file.parent / "f").write_text("x")
    assert "is a file, expected the directory" in check(file, named(file.parent / "f"))["VD705"]


@pytest.mark.parametrize("text", ["a\0b", "~/x", "x" * 3000, "..", "\udc80"])
def test_an_odd_path_is_told_of_and_nothing_more(file, text):
    content = change(VENDOR_FP16, frontend__checkpoint="PATH").replace("PATH", json.dumps(text))
    assert check(file, content)


# ---- against the directory ---------------------------------------------------------------------


def test_what_yaml_writes_for_a_directory_gives_notes_only(made, file):
    for (model_type, layout), directory in made.items():
        if layout in ("", "vamc"):
            options = CompileOptions(tensor_parallel_size=2)
            result = make_compile_file(find_target(str(directory)), options)
            assert above_notes(check(file, result.text)) == [], (model_type, layout)


def test_the_layout_decides_what_is_said(made, file):
    def codes(layout, text, model_type="qwen2", **changes):
        return set(check(file, named(made[model_type, layout], text, **changes)))

    no_quantize = {"frontend__quantize": REMOVED}
    assert codes("", VENDOR_FP16) == set()
    assert codes("", VENDOR_INT8) == {"VD634", "VD635", "VD712"}
    assert codes("vamc", VENDOR_INT8) == {"VD634", "VD635", "VD711"}
    assert codes("vamc", VENDOR_FP16) == {"VD710"}
    assert codes("int8", VENDOR_INT8, **no_quantize) == {"VD713"}
    assert codes("int8", VENDOR_INT8) == {"VD635", "VD715"}
    assert codes("int8", VENDOR_FP16) == {"VD713", "VD716"}
    assert "VD714" in codes("int8", VENDOR_INT8, "llama", **no_quantize)
    assert "VD707" in codes("compressed-tensors", VENDOR_FP16)


def test_codes_that_are_not_here_are_known_by_the_name_of_their_directory(file):
    text = named("/data/DeepSeek-R1-Distill-Qwen-7B-vacc-int8-codes", VENDOR_INT8)
    text = change(text, name="DeepSeek-R1-Distill-Qwen-7B-int8-tp2-1024-2048")
    without = change(text, frontend__quantize=REMOVED)
    assert set(check(file, without)) == {"VD613", "VD703", "VD713"}
    assert "VD630" in check(file, without.replace("-int8-codes", ""))


def test_lengths_and_heads_are_those_of_the_directory(made, file, tmp_path):
    directory = shutil.copytree(made["qwen2", ""], tmp_path / "m")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    problems = check(file, named(directory, size=4))
    assert "above max_position_embeddings 1024" in problems["VD612"]
    assert "4 does not divide 4 attention heads, 2 key-value heads" in problems["VD642"]


def test_the_name_is_compared_with_the_directory(made, file):
    # The sizes of the directory are not those of the catalogue model of that name.
    problem = check(file, named(made["qwen2", ""], name="DeepSeek-R1-Distill-Qwen-7B"))["VD706"]
    assert problem.rule.severity == "warning" and "num_hidden_layers is 2, expected 28" in problem
    manifest = check(file, named(made["qwen2", ""], name="Other"))["VD706"]
    assert "says Other, but the manifest of" in manifest
    path = check(file, named("/data/Distill-Llama-8B", name="DeepSeek-R1-Distill-Qwen-7B"))
    assert "/data/Distill-Llama-8B" in path["VD706"]


def test_a_workspace_that_cannot_be_written_is_an_error(made, file):
    directory = made["qwen2", ""]
    (file.parent / "f").write_text("x")
    text = named(directory, workspace__path=str(file.parent / "f" / "deep"))
    assert "is not a directory" in check(file, text)["VD720"]
    for path, reason in (("a\0", "characters that no path has"), ("b" * 300, "it is too long")):
        text = named(directory, workspace__path=path)
        assert reason in check(file, text)["VD720"]
    os.makedirs("vacc_deploy/Tiny-fp16-tp2-1024-2048")
    assert "exists already" in check(file, named(directory))["VD721"]


# ---- the card ---------------------------------------------------------------------------------


def memory_of(path, text, card):
    path.write_text(text)
    checked = check_compile_file(path, CARDS[card])
    return checked.problems, checked.memory and checked.memory.to_dict()


def test_a_card_gives_figures_and_no_problem_where_the_model_fits(file):
    problems, memory = memory_of(file, VENDOR_FP16, "VA16")
    assert not [p for p in problems if p.rule.code.startswith("VD8")]
    assert memory["weight_bytes_per_die"] == -(-2 * 7_615_616_512 // 4)
    assert (memory["num_cards"], memory["longest_total"]) == (1, 131072)
    assert json.loads(json.dumps(memory)) == memory


def test_weights_that_do_not_fit_are_an_error_and_a_tight_die_a_warning(file):
    name = "DeepSeek-R1-Distill-Qwen-32B"
    text = named(f"/data/{name}", name=name, size=4)
    problems, memory = memory_of(file, text, "VA1-16G")
    (problem,) = (p for p in problems if p.rule.code == "VD801")
    assert "the fp16 weights take 15.3 GiB of each of 4 dies" in problem and problem.line
    long = change(
        VENDOR_FP16,
        name="DeepSeek-R1-Distill-Qwen-7B-fp16-tp2-1024-65536",
        frontend__model_kwargs__tp=2,
        frontend__shape__input_ids=[[1024], [65536]],
    )
    problems, memory = memory_of(file, long, "VA1-16G")
    (problem,) = (p for p in problems if p.rule.code == "VD802")
    assert problem.rule.severity == "warning" and problem.got == "65536"
    assert f"the largest total length is {memory['longest_total']}" in problem
    assert 1024 < memory["longest_total"] < 65536


def test_a_card_without_a_known_model_is_a_note(file):
    problems, memory = memory_of(file, named("/data/Own", name="Own"), "VA16")
    assert memory is None and "VD803" in {p.rule.code for p in problems}
    problems, memory = memory_of(file, change(VENDOR_FP16, backend__dtype="x"), "VA16")
    assert memory is None and "VD803" in {p.rule.code for p in problems}
