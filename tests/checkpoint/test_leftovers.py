"""What downloaders leave beside a file: in place of it, or while it is not filled yet."""

import os
from collections import Counter

import pytest
from checkpoint_builders import write_checkpoint, write_json
from huggingface_hub._local_folder import get_local_download_paths

from vacc_deploy.checkpoint.reader import INDEX_NAME, SINGLE_FILE, Checkpoint, examine
from vacc_deploy.errors import CheckpointError

SECOND = "model-00002-of-00002.safetensors"


def message_of(directory):
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    return str(caught.value)


@pytest.mark.parametrize(("ending", "program"), [(".aria2", "aria2c"), (".st", "axel")])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_control_file_beside_a_file_that_is_used(tmp_path, ending, program, shards):
    directory = write_checkpoint(tmp_path / "m", shards=shards)
    name = SECOND if shards == 2 else SINGLE_FILE
    (directory / f"{name}{ending}").touch()
    text = message_of(directory)
    assert text == (
        f"{directory} is not a usable checkpoint. {name}: {name}{ending} lies beside it: {program} "
        f"has not finished the download. Run the same {program} command again; if it has nothing "
        f"left to do, remove {directory}/{name}{ending}"
    )


@pytest.mark.parametrize("name", ["x.safetensors.aria2", "config.json.bak", f"{SINGLE_FILE}.part"])
def test_left_overs_beside_what_is_whole_do_not_matter(tmp_path, name):
    directory = write_checkpoint(tmp_path / "m")
    (directory / name).touch()
    Checkpoint.open(directory)


@pytest.mark.parametrize(
    "left",
    [
        "NAME.part",
        "NAME.incomplete",
        "NAME.crdownload",
        "NAME.download",
        "NAME.tmp",
        "NAME.aria2",
        "NAME.xltd",
        "NAME.baiduyun.p.downloading",
        "HUB",
        ".cache/huggingface/download/NAME.abc=.0123.incomplete",
        "._____temp/NAME",
    ],
)
@pytest.mark.parametrize("shards", [1, 2])
def test_an_unfinished_file_in_place_of_one(tmp_path, left, shards):
    directory = write_checkpoint(tmp_path / "m", shards=shards)
    name = SECOND if shards == 2 else SINGLE_FILE
    (directory / name).unlink()
    path = directory / left.replace("NAME", name)
    if left == "HUB":  # as the library itself names it
        path = get_local_download_paths(directory, name).incomplete_path("0123")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    text = message_of(directory)
    if shards == 2:
        assert f"{name} is missing (" in text and f": {path} is its unfinished download" in text
    else:
        assert text.startswith(
            f"{directory} holds no weights yet: {path} is an unfinished download"
        )


def test_what_stays_of_very_many_missing_files_is_looked_for_once(tmp_path, monkeypatch):
    directory = write_checkpoint(tmp_path / "m", shards=2)
    places = {str(number): f"{number:05}.safetensors" for number in range(5000)}
    write_json(directory / INDEX_NAME, {"weight_map": places})
    folder = directory / "._____temp"
    folder.mkdir()
    (folder / "00003.safetensors").touch()
    (folder / "00011.safetensors").touch()
    looked, listed = Counter(), Counter()
    isfile, scandir = os.path.isfile, os.scandir
    monkeypatch.setattr(os.path, "isfile", lambda p: looked.update([str(p)]) or isfile(p))
    monkeypatch.setattr(os, "scandir", lambda p=".": listed.update([str(p)]) or scandir(p))
    _, problems = examine(directory)
    # Those that a message shows.
    assert problems[3].endswith(f": {folder}/00003.safetensors is its unfinished download")
    assert len(problems) == 5000 and problems[11].endswith("tensors in it)")
    assert sum(name.endswith(".part") for name in looked) == 10
    assert listed[str(folder)] == 1
