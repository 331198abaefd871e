"""ModelScope's cache beside that of Hugging Face; nothing is written into either."""

import json
import shutil
from pathlib import Path

import pytest
from checkpoint_builders import write_checkpoint
from click.testing import CliRunner

from vacc_deploy.checkpoint import caches
from vacc_deploy.checkpoint.manifest import model_name
from vacc_deploy.cli import cli
from vacc_deploy.errors import CheckpointError
from vacc_deploy.lookup import hub
from vacc_deploy.lookup.hub import fetch, find_in_modelscope
from vacc_deploy.lookup.recognize import recognize

REPOSITORY = "some-one/My.Model-1.5B"
NAME = "My.Model-1.5B"
PLACES = (
    "hub/models/some-one/My___Model-1___5B",
    "hub/some-one/My___Model-1___5B",
    "models/some-one/My___Model-1___5B",
    "some-one/My___Model-1___5B",
    "hub/models/some-one/My.Model-1.5B",
    "models/some-one--My.Model-1.5B/snapshots/master",
    "models/some-one--My.Model-1.5B/snapshots/v1.0",
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return an empty ModelScope cache; the working directory is another one."""
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "ms"


def invoke(*args):
    return CliRunner().invoke(cli, [str(arg) for arg in args])


@pytest.mark.parametrize("place", PLACES)
def test_a_copy_of_modelscope_is_found_in_every_layout(cache, place):
    directory = write_checkpoint(cache / place)
    source = fetch(REPOSITORY)
    assert source == hub.Source(directory, REPOSITORY, is_modelscope=True)
    assert source.note == (
        f"{REPOSITORY} is not in the Hugging Face cache, so the copy in ModelScope's cache is "
        f"used: {directory}"
    )
    assert model_name(directory) == NAME


def test_the_default_folder_is_that_of_modelscope(tmp_path, monkeypatch):
    monkeypatch.delenv("MODELSCOPE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    directory = write_checkpoint(
        tmp_path / ".cache/modelscope/hub/models/some-one/My___Model-1___5B"
    )
    assert find_in_modelscope(REPOSITORY).directory == directory


def test_the_owner_may_have_dots_too(cache):
    directory = write_checkpoint(cache / "hub/some___one/name")
    assert find_in_modelscope("some.one/name").directory == directory


@pytest.mark.parametrize("damage", ["shard", "temporary", "old temporary", "config"])
def test_an_unfinished_copy_is_not_used(cache, damage):
    directory = write_checkpoint(cache / PLACES[1], shards=2)
    assert find_in_modelscope(REPOSITORY)
    if damage == "shard":
        (directory / "model-00002-of-00002.safetensors").unlink()
    elif damage == "config":
        (directory / "config.json").unlink()
    else:
        folder = directory / "._____temp"
        if damage == "old temporary":
            folder = cache / "hub/._____temp/some-one/My___Model-1___5B"
        folder.mkdir(parents=True)
        assert find_in_modelscope(REPOSITORY)  # it stays, empty, after a download
        (folder / "model.safetensors").touch()
    assert find_in_modelscope(REPOSITORY) is None
    with pytest.raises(CheckpointError, match="is not in the Hugging Face cache"):
        fetch(REPOSITORY)


def test_prepare_says_where_the_weights_are_from(cache):
    write_checkpoint(cache / PLACES[0])
    result = invoke("prepare", REPOSITORY, "--json")
    assert result.exit_code == 0, result.stderr
    notes = json.loads(result.stdout)["notes"]
    assert any("so the copy in ModelScope's cache is used: " in note for note in notes)
    source = json.loads(Path(f"{NAME}-vacc/vacc_deploy.json").read_text())["source"]
    assert (source["repository"], source["hub"]) == (REPOSITORY, "modelscope")
    assert source["revision"] is None


@pytest.mark.parametrize(
    "words",
    [("quantize", "{}"), ("export-onnx", "{}", "--output", "o"), ("quantize", "{}", "--json")],
)
def test_the_other_commands_say_so_on_stderr(cache, words):
    write_checkpoint(cache / PLACES[0], model_type="llama")
    result = invoke(*(word.format(REPOSITORY) for word in words), "--dry-run")
    assert f"Note: {REPOSITORY} is not in the Hugging Face cache, so the copy" in result.stderr


def test_the_cache_of_hugging_face_comes_first(cache, tmp_path, monkeypatch):
    from huggingface_hub import constants

    write_checkpoint(cache / PLACES[0])
    folder = tmp_path / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    directory = write_checkpoint(folder / "snapshots" / ("0" * 40))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert fetch(REPOSITORY) == hub.Source(directory, REPOSITORY, "0" * 40)


# ---- folders of the cache as a directory -------------------------------------------------------


@pytest.mark.parametrize("given", ["", "hub", "hub/models"])
def test_the_cache_itself_is_recognized_with_its_models(cache, given):
    directory = write_checkpoint(cache / PLACES[0])
    finding = recognize(cache / given)
    assert finding.what == f"{cache / given} is ModelScope's cache, which holds many models."
    assert finding.instead == (directory,)


@pytest.mark.parametrize("sign", ["._____temp/", "some-one/My___Model-1___5B/.mv", ""])
def test_a_cache_elsewhere_is_known_by_its_signs(cache, tmp_path, sign):
    write_checkpoint(tmp_path / "disk" / PLACES[3])
    if sign.endswith("/"):
        (tmp_path / "disk" / sign).mkdir()
    elif sign:
        (tmp_path / "disk" / sign).touch()
    finding = recognize(tmp_path / "disk")
    assert (finding is not None and "is ModelScope's cache" in finding.what) is bool(sign)


def test_the_newest_layout_is_recognized(cache):
    directory = write_checkpoint(cache / PLACES[5])
    assert recognize(cache).instead == (directory,)


# ---- default outputs ---------------------------------------------------------------------------


def hub_snapshot(tmp_path):
    return tmp_path / "hf/models--some-one--My.Model-1.5B/snapshots" / ("0" * 40)


@pytest.mark.parametrize("kind", ["hub", "modelscope", "modelscope snapshot"])
@pytest.mark.parametrize("command", ["prepare", "quantize"])
def test_the_default_output_of_a_cached_model_lies_in_the_working_directory(
    cache, tmp_path, kind, command
):
    place = {"hub": hub_snapshot(tmp_path), "modelscope": cache / PLACES[0]}
    directory = write_checkpoint(place.get(kind, cache / PLACES[5]))
    before = sorted(tmp_path.glob("[!w]*/**"))
    result = invoke(command, directory)
    assert result.exit_code == 0, result.stderr
    ending = {"prepare": "vacc", "quantize": "int8"}[command]
    assert [path.name for path in Path().iterdir()] == [f"{NAME}-{ending}"]
    assert sorted(tmp_path.glob("[!w]*/**")) == before
    if command == "quantize":
        name = "the Hugging Face cache" if kind == "hub" else "ModelScope's cache"
        note = f"Note: the source lies in {name}, so the output lies in the working directory."
        assert note in result.stdout


@pytest.mark.parametrize("command", ["prepare", "quantize"])
def test_a_working_directory_in_a_cache_needs_an_output(cache, tmp_path, monkeypatch, command):
    directory = write_checkpoint(hub_snapshot(tmp_path))
    for place in (directory.parent, directory.parent.parent):
        monkeypatch.chdir(place)
        result = invoke(command, directory)
        assert result.exit_code == 1
        assert (
            "would lie in the Hugging Face cache, to which nothing is written. Give --output"
            in (result.stderr)
        )
        assert result.stderr.count("\n") == 1
    assert invoke(command, directory, "--output", tmp_path / "o", "--dry-run").exit_code == 0


def test_of_a_directory_of_ones_own_the_output_lies_beside_it(cache, tmp_path):
    directory = write_checkpoint(tmp_path / "mine" / "model")
    result = invoke("quantize", directory)
    assert result.exit_code == 0 and "working directory" not in result.stdout
    assert (tmp_path / "mine" / "model-int8").is_dir()
    assert caches.cache_of(directory) == ""


def test_a_folder_of_the_hubs_cache_without_the_usual_names(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    directory = write_checkpoint(tmp_path / "hf" / "copied")
    assert caches.cache_of(directory) == caches.HUGGING_FACE
    assert invoke("quantize", directory).exit_code == 0
    assert Path("copied-int8").is_dir()
    shutil.rmtree("copied-int8")
