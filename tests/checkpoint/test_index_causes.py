"""Whole weight files with a wrong index, with copies of a file, or with other files beside them."""

import json
import shlex
import shutil
import subprocess

import pytest
import torch
from checkpoint_builders import build_config, write_checkpoint, write_json
from safetensors.torch import save_file

from vacc_deploy.checkpoint.reader import INDEX_NAME, Checkpoint
from vacc_deploy.errors import CheckpointError

FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))


def message_of(directory):
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    return str(caught.value)


def move_as_told(text):
    """Run the one command of a message."""
    (line,) = [line for line in text.splitlines() if line.startswith("  mv ")]
    subprocess.run(shlex.split(line), check=True)


@pytest.mark.parametrize("change", ["more", "file"])
def test_an_index_that_does_not_fit_whole_files(tmp_path, change):
    directory = write_checkpoint(tmp_path / "m", shards=2)
    index = json.loads((directory / INDEX_NAME).read_text())
    places = index["weight_map"]
    if change == "file":  # one of the files is named nowhere, so no loader reads it
        index["weight_map"] = dict.fromkeys(places, FIRST)
    else:
        places["model.layers.9.mlp.up_proj.weight"] = FIRST
    write_json(directory / INDEX_NAME, index)
    text = message_of(directory)
    assert f"{INDEX_NAME} does not fit the weight files" in text and "download" not in text
    move_as_told(text)
    Checkpoint.open(directory)


def test_an_index_that_leaves_a_tensor_out_is_read_as_the_files_have_it(tmp_path):
    directory = write_checkpoint(tmp_path / "m", shards=2)
    index = json.loads((directory / INDEX_NAME).read_text())
    del index["weight_map"]["model.norm.weight"]
    write_json(directory / INDEX_NAME, index)
    (note,) = Checkpoint.open(directory).notes
    assert note.startswith("the index and the files do not agree on the place of 1 tensors")


def test_an_index_is_not_blamed_for_files_of_another_model(tmp_path):
    directory = write_checkpoint(tmp_path / "m", shards=2)
    index = json.loads((directory / INDEX_NAME).read_text())
    del index["weight_map"]["model.norm.weight"]
    write_json(directory / INDEX_NAME, index)
    write_json(directory / "config.json", build_config(num_layers=3))
    assert "does not fit the weight files" not in message_of(directory)


def test_copies_of_one_file(tmp_path):
    directory = write_checkpoint(tmp_path / "m", shards=2, with_index=False)
    shutil.copy(directory / SECOND, directory / SECOND.replace(".s", " (1).s"))
    text = message_of(directory)
    assert f"Keep one of them, for example {SECOND}, and move the others away" in text
    move_as_told(text)
    Checkpoint.open(directory)


def test_a_missing_file_of_deepseeks_names(tmp_path):
    names = [f"model-0000{number}-of-000003.safetensors" for number in (1, 2, 3)]
    directory = write_checkpoint(tmp_path / "m", shard_names=names, with_index=False)
    Checkpoint.open(directory)
    (directory / names[1]).unlink()
    assert f"It lacks 1 weight file ({names[1]})" in message_of(directory)


@pytest.mark.parametrize("with_index", [True, False])
def test_weights_under_metas_names_beside_the_usual_files_do_not_count(tmp_path, with_index):
    directory = write_checkpoint(tmp_path / "m", shards=2, with_index=with_index)
    other = {"layers.0.attention.wq.weight": torch.ones(4, 4)}
    save_file(other, directory / "consolidated.safetensors")
    assert set(Checkpoint.open(directory).shards) == {FIRST, SECOND}
