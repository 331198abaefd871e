"""Why a directory is no usable checkpoint: one cause in front, and the command that mends it."""

import os
import shlex
import shutil
import subprocess

import pytest
import torch
from checkpoint_builders import build_config, build_tensors, write_checkpoint, write_json
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from vacc_deploy.checkpoint import caches
from vacc_deploy.checkpoint.reader import INDEX_NAME, SINGLE_FILE, Checkpoint
from vacc_deploy.cli import cli
from vacc_deploy.errors import CheckpointError
from vacc_deploy.lookup.recognize import recognize, recognize_missing
from vacc_deploy.prepare import prepare
from vacc_deploy.text.tokenizer import Tokenizer

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 4975313600\n"
PAGE = "\n<!DOCTYPE html>\n<html><title>Sign in</title></html>"
FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
AGAIN = "Download the files named again"


def message_of(directory):
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    assert str(directory) in str(caught.value)
    return str(caught.value)


def command_of(text, program):
    """Return the words of the one line that is a command of a program."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"  {program} ")]
    return shlex.split(line)


# ---- what stands in place of a file ------------------------------------------------------------


def test_pointers_of_git_as_weights_are_one_cause(tmp_path):
    directory = write_checkpoint(tmp_path / "a b", shards=5)
    for path in directory.glob("model-0000[2345]*"):
        path.write_text(POINTER)
    text = message_of(directory)
    assert (
        "Git LFS pointers stand in place of 4 weight files (model-00002-of-00005.safetenso" in text
    )
    assert command_of(text, "git") == ["git", "-C", str(directory), "lfs", "pull"]
    assert AGAIN not in text and len(text.splitlines()) == 7


@pytest.mark.parametrize("name", ["config.json", INDEX_NAME])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (POINTER, "is a Git LFS pointer, not the file itself. In a clone of its repository run: g"),
        (PAGE, "is a web page that was saved under this name, for example that of a login"),
        ("\0" * 99, "begins with zero bytes only: its download was interrupted. Download it again"),
        ("", "is not valid JSON: it is empty. Download it again."),
    ],
)
def test_what_stands_in_place_of_a_json_file(tmp_path, name, content, problem):
    directory = write_checkpoint(tmp_path / "m", shards=2)
    (directory / name).write_text(content)
    assert f"{directory / name} {problem}" in message_of(directory)


@pytest.mark.parametrize("content", [POINTER, PAGE])
def test_what_stands_in_place_of_a_tokenizer(tmp_path, content):
    directory = write_checkpoint(tmp_path / "m")
    (directory / "tokenizer.json").write_text(content)
    word = "Git LFS pointer" if content is POINTER else "web page"
    with pytest.raises(CheckpointError, match=f"tokenizer.json is a {word}"):
        Tokenizer.from_dir(directory)
    with pytest.raises(CheckpointError, match=f"tokenizer.json is a {word}"):
        prepare(directory, output=tmp_path / "out")


def test_a_pointer_that_no_index_names_is_not_blamed(tmp_path):
    directory = write_checkpoint(tmp_path / "m", shards=2)
    (directory / "consolidated.safetensors").write_text(POINTER)
    Checkpoint.open(directory)
    write_json(directory / "config.json", build_config(num_layers=3))
    assert "LFS" not in message_of(directory)


# ---- links -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SINGLE_FILE, "config.json", "tokenizer.json"])
def test_a_link_that_leads_nowhere(tmp_path, name):
    directory = write_checkpoint(tmp_path / "m")
    (directory / name).unlink()
    (directory / name).symlink_to("../../blobs/abc")
    with pytest.raises(CheckpointError) as caught:
        prepare(directory, output=tmp_path / "out")
    text = str(caught.value)
    assert text.startswith(f"{directory / name} is a link to ../../blobs/abc, which does not exist")
    # The command is one that cp carries out: it does not write through such a link by itself.
    line = next(line for line in text.split(": ") if line.startswith("cp -rL")).splitlines()[0]
    whole = write_checkpoint(tmp_path / "whole")
    subprocess.run(shlex.split(line.replace("SOURCE", str(whole))), check=True)
    prepare(directory, output=tmp_path / "out")


def test_a_link_to_itself(tmp_path):
    directory = write_checkpoint(tmp_path / "m")
    (directory / SINGLE_FILE).unlink()
    (directory / SINGLE_FILE).symlink_to(SINGLE_FILE)
    assert "leads back to itself. Remove it, then download" in message_of(directory)


def test_a_shard_that_is_a_link_to_a_directory(tmp_path):
    directory = write_checkpoint(tmp_path / "m", shards=2)
    (directory / SECOND).unlink()
    (directory / "sub").mkdir()
    (directory / SECOND).symlink_to("sub")
    text = message_of(directory)
    assert "is a directory, not a file" in text and "does not exist" not in text


def test_a_shard_that_is_such_a_link(tmp_path):
    directory = write_checkpoint(tmp_path / "m", shards=2)
    (directory / SECOND).unlink()
    (directory / SECOND).symlink_to("../../blobs/abc")
    text = message_of(directory)
    assert f"{directory / SECOND} is a link to ../../blobs/abc, which does not" in text
    assert AGAIN not in text


def test_such_a_link_in_the_hubs_cache_names_the_command(tmp_path):
    directory = write_checkpoint(tmp_path / "models--some--Model/snapshots/0123")
    (directory / SINGLE_FILE).unlink()
    (directory / SINGLE_FILE).symlink_to("../../blobs/abc")
    text = message_of(directory)
    assert " is a link to ../../blobs/abc" in text and text.endswith("  hf download some/Model")


def test_a_damaged_index_beside_a_single_file_is_not_blamed(tmp_path):
    directory = write_checkpoint(tmp_path / "m")
    (directory / INDEX_NAME).write_text("{")
    write_json(directory / "config.json", build_config(num_layers=3))
    assert "model.layers.2.mlp.up_proj.weight is missing" in message_of(directory)


def test_a_document_that_is_such_a_link_does_not_matter(tmp_path):
    directory = write_checkpoint(tmp_path / "m")
    (directory / "README.md").symlink_to("gone")
    prepare(directory, output=tmp_path / "out")


# ---- shards and indexes ------------------------------------------------------------------------


def test_an_index_of_another_sharding_beside_complete_shards(tmp_path):
    directory = write_checkpoint(tmp_path / "m", shards=3)
    index = directory / INDEX_NAME
    index.write_text(index.read_text().replace("-of-00003", "-of-00030"))
    text = message_of(directory)
    assert f"{INDEX_NAME} belongs to another saving than the weight files: it names 3 files" in text
    assert "model-...-of-00003 (3 of 3 files) stand here complete" in text and AGAIN not in text
    _, source, target = command_of(text, "mv")
    shutil.move(source, target)
    assert Checkpoint.open(directory).tensors.keys() == build_tensors(build_config()).keys()


def test_a_single_file_that_hides_the_shards(tmp_path):
    directory = write_checkpoint(tmp_path / "m", shards=2)
    shutil.copy(directory / FIRST, directory / SINGLE_FILE)
    text = message_of(directory)
    assert f"{SINGLE_FILE} is not the whole model, but hides the 2 files that {INDEX_NAME}" in text
    _, source, target = command_of(text, "mv")
    shutil.move(source, target)
    Checkpoint.open(directory)


def test_a_whole_single_file_of_another_config_hides_nothing(tmp_path):
    directory = write_checkpoint(tmp_path / "m", shards=2)
    whole = load_file(directory / FIRST) | load_file(directory / SECOND)
    save_file(whole, directory / SINGLE_FILE)
    config = build_config(overrides={"intermediate_size": 96})
    write_json(directory / "config.json", config)
    text = message_of(directory)
    assert (
        "hides" not in text and "Do config.json and the weights belong to the same model?" in text
    )


def test_a_whole_single_file_wins_over_a_left_over_index(tmp_path):
    directory = write_checkpoint(tmp_path / "m")
    write_json(directory / INDEX_NAME, {"weight_map": {"model.norm.weight": FIRST}})
    Checkpoint.open(directory)


def test_shards_of_two_savings(tmp_path):
    directory = write_checkpoint(tmp_path / "m", shards=2, with_index=False)
    shutil.copy(directory / FIRST, directory / "model-00001-of-00004.safetensors")
    text = message_of(directory)
    assert (
        "It holds the weight files of 2 savings, and no index that says which count: "
        "model-...-of-00002 (2 of 2 files); model-...-of-00004 (1 of 4 files). Move all but"
    ) in text


@pytest.mark.parametrize("with_index", [True, False])
def test_a_missing_shard_is_an_interrupted_download(tmp_path, with_index):
    directory = write_checkpoint(tmp_path / "m", shards=2, with_index=with_index)
    (directory / SECOND).unlink()
    text = message_of(directory)
    assert f"It lacks 1 weight file ({SECOND}): the download was interrupted, or not" in text
    assert AGAIN in text


def test_a_missing_shard_is_told_before_a_quantization_config_that_may_be_left_over(tmp_path):
    stated = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    directory = write_checkpoint(tmp_path / "m", shards=2, config_overrides=stated)
    (directory / SECOND).unlink()
    assert f"It lacks 1 weight file ({SECOND})" in message_of(directory)


@pytest.mark.parametrize(
    ("place", "commands"),
    [
        ("models--some--Model/snapshots/0123", ["hf download some/Model"]),
        (
            "DeepSeek-R1-Distill-Qwen-7B",
            [
                "hf download deepseek-ai/DeepSeek-R1-Distill-Qwen-7B --local-dir DIR",
                "modelscope download --model deepseek-ai/DeepSeek-R1-Distill-Qwen-7B "
                "--local_dir DIR",
            ],
        ),
        (
            "deepseek-ai/DeepSeek-R1-Distill-Qwen-1___5B",
            [
                "modelscope download --model deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B "
                "--local_dir DIR"
            ],
        ),
    ],
)
def test_the_command_that_goes_on_where_the_repository_is_known(tmp_path, place, commands):
    directory = write_checkpoint(tmp_path / place, shards=2)
    (directory / SECOND).unlink()
    if "___" in place:
        (directory / ".msc").touch()
    text = message_of(directory)
    assert [line for line in text.splitlines() if line[:2] == "  " and line[2] != "-"] == [
        f"  {line.replace('DIR', str(directory))}" for line in commands
    ]
    assert AGAIN not in text


def test_a_truncated_shard_is_to_be_downloaded_again(tmp_path):
    directory = write_checkpoint(tmp_path / "m", shards=2)
    with (directory / FIRST).open("r+b") as file:
        file.truncate(5000)
    assert message_of(directory).endswith(f"{AGAIN} from the model's repository, then rerun.")


def test_tensors_that_do_not_fit_are_not_mended_by_a_download(tmp_path):
    directory = write_checkpoint(tmp_path / "m")
    write_json(directory / "config.json", build_config(num_layers=3))
    assert message_of(directory).endswith(
        "Do config.json and the weights belong to the same model? If in doubt, download both again "
        "from the model's repository."
    )


# ---- adapters ----------------------------------------------------------------------------------


def lora_tensors(prefix="base_model.model.model.layers.0.self_attn.q_proj."):
    return {f"{prefix}lora_{x}.weight": torch.ones(2, 2) for x in "AB"}


@pytest.mark.parametrize("file", ["adapter_model.safetensors", SINGLE_FILE])
@pytest.mark.parametrize("with_adapter_config", [True, False])
def test_an_adapter_with_a_config_copied_in(tmp_path, file, with_adapter_config):
    directory = tmp_path / "m"
    directory.mkdir()
    write_json(directory / "config.json", build_config())
    save_file(lora_tensors(), directory / file)
    if with_adapter_config:
        write_json(directory / "adapter_config.json", {"base_model_name_or_path": "some/Model"})
    text = message_of(directory)
    assert f"{directory} is a LoRA adapter, not a whole model. " in text
    assert "merge_and_unload" in text and AGAIN not in text
    # peft reads one name only.
    renames = [line for line in text.splitlines() if line.startswith("  mv ")]
    assert bool(renames) == (file == SINGLE_FILE)
    assert ("Its adapter_config.json is not here" in text) != with_adapter_config


def test_a_model_and_its_adapter_that_were_never_merged(tmp_path):
    tensors = build_tensors(build_config())
    name = "model.layers.0.self_attn.q_proj."
    tensors[f"{name}base_layer.weight"] = tensors.pop(f"{name}weight")
    directory = write_checkpoint(tmp_path / "m")
    save_file({**tensors, **lora_tensors(name)}, directory / SINGLE_FILE)
    text = message_of(directory)
    assert "holds a model and an adapter side by side that were never merged" in text
    assert "merge_and_unload" in text and AGAIN not in text


@pytest.mark.parametrize(
    ("kind", "title", "can_merge"),
    [
        ("LORA", "a LoRA", True),
        ("IA3", "an IA3", True),
        ("PROMPT_TUNING", "a PROMPT_TUNING", False),
    ],
)
def test_kinds_of_adapters(tmp_path, kind, title, can_merge):
    values = {"peft_type": kind, "base_model_name_or_path": "some/Model"}
    write_json(tmp_path / "adapter_config.json", values)
    (tmp_path / "adapter_model.safetensors").touch()
    text = recognize(tmp_path).to_text()
    assert text.startswith(f"{tmp_path} is {title} adapter, not a whole model.")
    assert ("merge_and_unload" in text) == can_merge
    assert ("cannot be merged into them. Give its base model 'some/Model'" in text) != can_merge


@pytest.mark.parametrize("layout", [{}, {"shards": 2}, {"shards": 2, "with_index": False}])
def test_a_whole_model_beside_a_left_over_adapter_is_a_model(tmp_path, layout):
    directory = write_checkpoint(tmp_path / "m", **layout)
    write_json(directory / "adapter_config.json", {})
    save_file(lora_tensors(), directory / "adapter_model.safetensors")
    assert recognize(directory) is None
    result = prepare(directory, output=tmp_path / "out")
    assert any(note.startswith("adapter_config.json lies beside") for note in result.notes)
    assert load_file(tmp_path / "out" / (FIRST if layout else SINGLE_FILE))


@pytest.mark.parametrize("with_index", [True, False])
def test_a_directory_of_too_many_names_is_not_said_to_lack_its_weights(
    tmp_path, monkeypatch, with_index
):
    """In which order a file system gives the names is not known: all count, or none is read."""
    monkeypatch.setattr(caches, "FOLDER_NAMES", 50)
    directory = write_checkpoint(tmp_path / "m", shards=2, with_index=with_index)
    for number in range(50):
        (directory / f"{number}.txt").touch()
    expected = f"{directory} holds more than 50 names"
    result = CliRunner().invoke(cli, ["prepare", str(directory), "--output", str(tmp_path / "o")])
    assert result.exit_code == 1 and expected in result.stderr
    assert "Move the model's files into a directory of their own" in result.stderr
    for number in range(2, 50):
        (directory / f"{number}.txt").unlink()
    assert Checkpoint.open(directory)


def test_a_name_is_looked_for_in_a_part_of_a_directory_of_very_many(tmp_path, monkeypatch):
    monkeypatch.setattr(caches, "FOLDER_NAMES", 5)
    for number in range(10):
        (tmp_path / f"{number}").touch()
    assert "does not exist" in recognize_missing(tmp_path / "none").to_text()


@pytest.mark.parametrize(("make", "what"), [(os.mkfifo, "a named pipe"), (os.mkdir, "a directory")])
def test_what_is_no_file_in_the_place_of_the_weights(tmp_path, make, what):
    directory = write_checkpoint(tmp_path / "m")
    (directory / SINGLE_FILE).unlink()
    make(directory / SINGLE_FILE)
    text = message_of(directory)
    assert text.startswith(f"{directory / SINGLE_FILE} is {what}, not a file, and is not read.")
    assert "neither" not in text
