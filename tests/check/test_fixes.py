"""``--fix`` writes a mended copy, and never touches what it was made from."""

import json
import shutil
from dataclasses import replace

import pytest
from checked import above_notes, change, holder, make_prepared, poke
from library_readings import agreeing, finished

from vacc_deploy.check import directory as check_directory_module
from vacc_deploy.check.fixes import fix_directory, fix_target
from vacc_deploy.check.run import CheckOptions
from vacc_deploy.errors import CheckpointError, OutputError, UsageError
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference.verify import verify


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    prepared = make_prepared(folder, shards=2)
    directories = {"": prepared}
    for layout in ("vamc", "int8"):
        options = QuantizeOptions("rtn", formats=(layout,))
        result = quantize(prepared, options=options, output=folder / layout)
        directories[layout] = result.output_dir
    return directories


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("layout", ["", "vamc", "int8"])
def test_everything_safe_is_mended_at_once(made, layout):
    # Beside the made ones, so that the manifest leads to the same source.
    directory = shutil.copytree(made[layout], made[""].with_name(f"damaged-{layout}"))
    change(directory / "config_vacc.json", insert_slice=..., sliding_window=4096)
    (directory / "quantization_vacc.py").unlink()
    (directory / "modeling_qwen2_vacc.py").write_text("# other\n")
    change(directory / "model.safetensors.index.json", metadata={"total_size": 1})
    before = contents(directory)
    output = directory.with_name(f"mended-{layout}")
    applied = fix_directory(directory, output)
    assert contents(directory) == before
    assert {sentence[:5] for sentence in applied} >= {"VD105", "VD212", "VD214", "VD301", "VD302"}
    assert above_notes(output, read_all=True) == []
    original = contents(made[layout])
    for name in ("config_vacc.json", "quantization_vacc.py", "modeling_qwen2_vacc.py"):
        assert (output / name).read_bytes() == original[name]
    if layout:
        assert verify(output, max_tokens=64, sequence_length=32).scores is not None


def test_the_dtype_of_a_vamc_directory_is_restored(made, tmp_path):
    directory = shutil.copytree(made["vamc"], tmp_path / "x")
    change(directory / "config.json", torch_dtype="bfloat16")
    change(directory / "config_vacc.json", torch_dtype="bfloat16")
    fix_directory(directory, tmp_path / "y")
    for name in ("config.json", "config_vacc.json"):
        assert json.loads((tmp_path / "y" / name).read_text())["torch_dtype"] == "float16"
    assert above_notes(tmp_path / "y") == []


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}", '{"model_type": "gpt2"}'])
@pytest.mark.parametrize("layout", ["", "vamc"])
def test_a_vacc_config_that_cannot_be_used_is_written_anew(made, tmp_path, layout, text):
    directory = shutil.copytree(made[layout], tmp_path / "x")
    (directory / "config_vacc.json").write_text(text)
    codes = {line[:5] for line in above_notes(directory)}
    assert codes in ({"VD111", "VD219"}, {"VD111", "VD216", "VD219"})
    fix_directory(directory, tmp_path / "y")
    assert (
        contents(tmp_path / "y")["config_vacc.json"] == contents(made[layout])["config_vacc.json"]
    )
    assert above_notes(tmp_path / "y") == []


def test_the_installed_transformers_keeps_nothing_from_being_mended(made, tmp_path, monkeypatch):
    directory = shutil.copytree(made[""], tmp_path / "x")
    (directory / "quantization_vacc.py").unlink()
    reading = agreeing(directory)
    other = replace(reading, ids=tuple(ids + (5,) for ids in reading.ids))
    monkeypatch.setattr(check_directory_module, "start_library", lambda _: finished(other))
    applied = fix_directory(directory, tmp_path / "y")
    assert [sentence[:5] for sentence in applied] == ["VD301"]
    (left,) = above_notes(tmp_path / "y")
    assert left.startswith("VD402 ")


@pytest.mark.parametrize("layout", ["gguf", "compressed-tensors"])
def test_a_directory_for_other_programs_is_not_copied(made, tmp_path, layout):
    options = QuantizeOptions("rtn", formats=(layout,))
    directory = quantize(made[""], options=options, output=tmp_path / "x").output_dir
    with pytest.raises(CheckpointError, match=rf"layout {layout}.*mends directories for vamc only"):
        fix_directory(directory, tmp_path / "y")
    assert not (tmp_path / "y").exists()


def test_a_mended_compile_file_is_called_like_one_and_replaces_nothing(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("name: x\n")
    with pytest.raises(OutputError, match=r"exists already. Choose another --output\.$"):
        fix_target([str(file)], file, CheckOptions())
    with pytest.raises(UsageError, match=r"end it in \.yaml"):
        fix_target([str(file)], tmp_path / "b", CheckOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


def test_faults_of_the_weights_are_not_mended(made, tmp_path):
    directory = shutil.copytree(made[""], tmp_path / "x")
    (directory / "quantization_vacc.py").unlink()
    name = "model.norm.weight"
    poke(holder(directory, name), name, 0, b"\xff\x7f")
    with pytest.raises(CheckpointError, match=r"cannot be mended.*\n.*row 0 holds NaN"):
        fix_directory(directory, tmp_path / "y")
    assert not (tmp_path / "y").exists()


def test_an_output_that_exists_is_not_replaced(made, tmp_path):
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "mine").touch()
    with pytest.raises(OutputError):
        fix_directory(made[""], tmp_path / "y")
    with pytest.raises(OutputError, match=r"exists already. Choose another --output\.$"):
        fix_target([str(made[""])], tmp_path / "y", CheckOptions())
    assert [path.name for path in (tmp_path / "y").iterdir()] == ["mine"]


def test_one_target_at_a_time(made, tmp_path):
    with pytest.raises(UsageError, match="one TARGET at a time, got 2"):
        fix_target([str(made[""])] * 2, tmp_path / "y", CheckOptions())


def test_the_result_is_the_check_of_the_copy(made, tmp_path):
    directory = shutil.copytree(made[""], tmp_path / "x")
    (directory / "quantization_vacc.py").unlink()
    result = fix_target([str(directory)], tmp_path / "y", CheckOptions())
    assert result.passed
    assert result.to_dict()["fixed"] == str(tmp_path / "y")
    assert "Fixed: VD301 quantization_vacc.py is missing" in result.to_text()
