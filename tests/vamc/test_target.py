"""What ``yaml`` makes of a directory: complete or refused, and by what its weights are."""

import json
import os
import shutil

import pytest
import yaml
from checkpoint_builders import write_checkpoint

from vacc_deploy.assets import SOURCE_FILES
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import (
    CheckpointError,
    CompileFileError,
    UsageError,
)
from vacc_deploy.models.catalog import find_model
from vacc_deploy.prepare import prepare
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.vamc.compile_file import make_compile_file
from vacc_deploy.vamc.options import CompileOptions
from vacc_deploy.vamc.target import find_target


def make_prepared(folder, model_type="qwen2"):
    source = write_checkpoint(folder / "source", model_type=model_type)
    return prepare(weights=source, output=folder / "prepared", link_mode="copy").output_dir


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Prepared and quantized directories, by architecture and layout; read only."""
    directories = {}
    for model_type in ("qwen2", "qwen3", "llama"):
        prepared = make_prepared(tmp_path_factory.mktemp(model_type), model_type)
        directories[model_type, ""] = prepared
        for layout in ("vamc", "int8"):
            options = QuantizeOptions("rtn", formats=(layout,))
            result = quantize(prepared, options=options, output=prepared.with_name(layout))
            directories[model_type, layout] = result.output_dir
    return directories


@pytest.fixture
def prepared(made, tmp_path):
    """A prepared Qwen directory to damage."""
    return shutil.copytree(made["qwen2", ""], tmp_path / "x")


def change(path, **values):
    """Change keys of a JSON file; ``...`` takes a key out."""
    changed = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in changed.items() if v is not ...}))


def compile_file(directory, **options):
    return make_compile_file(find_target(str(directory)), CompileOptions(**options))


# ---- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder", ["My-Model", "My-Model-vacc", "My-Model-vacc-int8", "My-Model-vacc-int8-codes"]
)
def test_a_directory_is_named_after_its_folder(prepared, tmp_path, folder):
    (prepared / "vacc_deploy.json").unlink()
    target = find_target(str(prepared.rename(tmp_path / folder)))
    assert (target.model_name, target.checkpoint) == ("My-Model", str(tmp_path / folder))
    assert target.notes == ()


def test_a_directory_keeps_the_path_as_given_and_a_relative_one_is_noted(prepared, monkeypatch):
    (prepared / "vacc_deploy.json").unlink()
    monkeypatch.chdir(prepared.parent)
    target = find_target("./x")
    assert target.checkpoint == "./x"
    assert "is a relative path" in target.notes[0]
    monkeypatch.chdir(prepared)
    assert find_target(".").model_name == "x"


@pytest.mark.parametrize("model", ["Some-Model", "owner/Some-Model", "/a/Some-Model/"])
def test_a_directory_takes_the_name_of_its_manifest(prepared, model):
    change(prepared / "vacc_deploy.json", model=model)
    assert find_target(str(prepared)).model_name == "Some-Model"


@pytest.mark.parametrize("model", [None, 5, "", "a\0b", "/", "..", "a b", "a\n", "ä", "x" * 129])
def test_a_manifest_without_a_usable_name_leaves_the_folder_s(prepared, model):
    change(prepared / "vacc_deploy.json", model=model)
    assert find_target(str(prepared)).model_name == "x"


@pytest.mark.parametrize("manifest", [[], {}, {"format_version": 2, "model": "x"}])
def test_a_manifest_of_another_form_is_refused(prepared, manifest):
    (prepared / "vacc_deploy.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="manifest of format 1"):
        find_target(str(prepared))


def test_what_is_nothing_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="(?s)does not exist.*Distill-Qwen-7B"):
        find_target("Distill-Qwen-7")
    with pytest.raises(UsageError, match="empty text"):
        find_target("")
    with pytest.raises(CheckpointError, match="is empty"):
        find_target(str(tmp_path))


def test_the_parent_of_several_formats_lists_their_commands(made, tmp_path):
    options = QuantizeOptions("rtn", formats=("vamc", "compressed-tensors"))
    output = quantize(made["llama", ""], options=options, output=tmp_path / "several").output_dir
    with pytest.raises(CheckpointError) as caught:
        find_target(str(output), None, lambda path: f"vacc-deploy yaml {path}")
    assert f"vacc-deploy yaml {output / 'vamc'}" in str(caught.value)


def test_a_repository_is_prepared_first():
    with pytest.raises(CheckpointError, match="Run first: vacc-deploy prepare me/My-Tune"):
        find_target("me/My-Tune")


def test_a_compile_file_as_target_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("name: x")
    with pytest.raises(CheckpointError, match=r"a\.yaml"):
        find_target(str(tmp_path / "a.yaml"))


def test_a_model_name_stands_for_what_the_commands_before_write():
    assert find_target("Distill-Qwen-7B").checkpoint == "./DeepSeek-R1-Distill-Qwen-7B-vacc"
    int8 = find_target("Distill-Qwen-7B", "int8")
    assert int8.checkpoint == "./DeepSeek-R1-Distill-Qwen-7B-vacc-int8"
    assert "is what vacc-deploy quantize ./DeepSeek" in int8.notes[0]


# ---- complete or refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "config_vacc.json",
        *SOURCE_FILES,
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ],
)
def test_a_directory_without_a_file_that_vamc_needs_is_refused(prepared, name):
    (prepared / name).unlink()
    with pytest.raises(CheckpointError) as caught:
        find_target(str(prepared))
    assert name in str(caught.value)


def test_several_shards_without_an_index_are_refused(tmp_path):
    source = write_checkpoint(tmp_path / "m", model_type="llama", shards=2)
    find_target(str(source))
    (source / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json is missing"):
        find_target(str(source))


def test_a_directory_that_lacks_one_shard_of_several_is_refused(tmp_path):
    source = write_checkpoint(tmp_path / "m", shards=3)
    prepared = prepare(weights=source, output=tmp_path / "p", link_mode="copy").output_dir
    find_target(str(prepared))
    (prepared / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors"):
        find_target(str(prepared))


def test_a_vamc_directory_that_lost_its_manifest_is_known_by_its_report(made, tmp_path):
    directory = shutil.copytree(made["llama", "vamc"], tmp_path / "x")
    (directory / "vacc_deploy.json").unlink()
    assert find_target(str(directory)).layout == "vamc"


def test_an_unprepared_qwen_is_refused_with_the_command(tmp_path):
    source = write_checkpoint(tmp_path / "my model")
    with pytest.raises(CheckpointError) as caught:
        find_target(str(source))
    assert "config_vacc.json is missing" in str(caught.value)
    assert f"Run: vacc-deploy prepare '{source}'" in str(caught.value)


def test_an_unprepared_llama_needs_nothing_more(tmp_path):
    source = write_checkpoint(tmp_path / "m", model_type="llama")
    assert find_target(str(source)).notes == ()


@pytest.mark.parametrize("names", [("tokenizer.model",), ("vocab.json", "merges.txt")])
def test_an_older_tokenizer_is_enough(prepared, names):
    (prepared / "tokenizer.json").unlink()
    for name in names:
        (prepared / name).write_text("{}")
    find_target(str(prepared))


def test_a_changed_source_file_is_noted(prepared):
    with open(prepared / SOURCE_FILES[0], "a") as file:
        file.write("# mine\n")
    (note,) = find_target(str(prepared)).notes
    assert note.startswith(f"{SOURCE_FILES[0]} differs from the file of this version")


def test_two_configurations_that_differ_are_refused(prepared):
    change(prepared / "config_vacc.json", rope_theta=5e5)
    with pytest.raises(CheckpointError, match=r"rope_theta: got 500000\.0"):
        find_target(str(prepared))


# ---- by what the weights are ------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
def test_a_vamc_directory_gets_the_published_int8_file(made, model_type):
    result = compile_file(made[model_type, "vamc"])
    content = yaml.safe_load(result.text)
    assert content["backend"]["dtype"] == "int8"
    assert content["frontend"]["quantize"] == {"type": "w8a16_gptq"}
    assert "should find the same integers" in " ".join(result.notes)
    assert not result.untried and "UNTRIED" not in result.text
    named = compile_file(made[model_type, "vamc"], calibration=("c4", "allenai/c4"))
    assert named.content["dataset"]["path"] == "allenai/c4"
    float16 = compile_file(made[model_type, "vamc"], dtype="fp16")
    assert "quantize" not in float16.content["frontend"]
    assert "compiled as float16" in " ".join(float16.notes)


@pytest.mark.parametrize("name", ["config.json", "config_vacc.json"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", None, ...])
def test_a_vamc_directory_must_say_float16(made, tmp_path, name, dtype):
    directory = shutil.copytree(made["qwen2", "vamc"], tmp_path / "x")
    change(directory / name, torch_dtype=dtype)
    with pytest.raises(CheckpointError, match=rf"{name}: torch_dtype is .*, expected 'float16'"):
        find_target(str(directory))


@pytest.mark.parametrize("name", ["config.json", "config_vacc.json"])
def test_a_vamc_directory_must_say_float16_under_both_names(made, tmp_path, name):
    directory = shutil.copytree(made["qwen2", "vamc"], tmp_path / "x")
    change(directory / name, dtype="bfloat16")
    with pytest.raises(CheckpointError, match=rf"{name}: dtype is 'bfloat16'"):
        find_target(str(directory))


def test_a_huge_source_file_is_not_read(prepared):
    with open(prepared / SOURCE_FILES[0], "wb") as file:
        file.truncate(20 << 30)  # sparse
    assert "differs from the file" in find_target(str(prepared)).notes[0]


def test_int8_codes_need_experimental_and_say_untried_in_the_first_line(made):
    directory = made["qwen2", "int8"]
    with pytest.raises(UsageError, match=r"untried whether vamc takes them.*--experimental"):
        compile_file(directory)
    result = compile_file(directory, experimental=True)
    assert "UNTRIED" in result.text.splitlines()[0]
    assert result.to_messages()[0].startswith("warning: UNTRIED")
    assert "quantize" not in result.content["frontend"]
    assert result.content["backend"]["dtype"] == "int8"
    with pytest.raises(UsageError, match="Leave --calibration out"):
        compile_file(directory, experimental=True, calibration=("c4", "x"))
    with pytest.raises(CompileFileError, match="it holds int8 codes"):
        compile_file(directory, experimental=True, dtype="fp16")


@pytest.mark.parametrize("experimental", [False, True])
def test_int8_codes_of_a_llama_are_refused_with_the_way_that_works(made, experimental):
    with pytest.raises(CompileFileError) as caught:
        compile_file(made["llama", "int8"], experimental=experimental)
    assert "own code, which cannot read int8 codes (our inference)" in str(caught.value)
    assert "quantize --format vamc" in str(caught.value)


@pytest.mark.parametrize("layout", ["vamc", "int8"])
def test_quantized_directories_are_no_source_of_a_quantization(made, tmp_path, layout):
    for work in (
        lambda: prepare(weights=made["qwen2", layout], output=tmp_path / "out"),
        lambda: quantize(
            made["qwen2", layout], options=QuantizeOptions("rtn"), output=tmp_path / "out"
        ),
    ):
        with pytest.raises(CheckpointError, match="already"):
            work()
    assert not os.listdir(tmp_path)


def test_a_vamc_directory_of_version_0_1_is_recognized(made, tmp_path):
    directory = shutil.copytree(made["llama", "vamc"], tmp_path / "x")
    options = json.loads((directory / "vacc_deploy.json").read_text())["options"]
    change(directory / "vacc_deploy.json", options=options | {"formats": ["fp16"]})
    assert find_target(str(directory)).layout == "vamc"
    assert not Checkpoint.open(directory).config.quantization_format


def test_a_catalogue_model_for_int8_is_checked_as_one(tmp_path):
    result = make_compile_file(find_target("Distill-Llama-8B", "int8"), CompileOptions("int8"))
    assert result.content["name"] == f"{find_model('Distill-Llama-8B').name}-int8-tp4-1024-2048"
