"""Links are followed inside a checkpoint's directory, or inside a hub's cache, and nowhere else."""

import os
import shlex
import shutil
import socket
import subprocess

import pytest
from checkpoint_builders import write_checkpoint, write_json
from click.testing import CliRunner

from vacc_deploy.checkpoint.manifest import MANIFEST_NAME
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.cli import cli
from vacc_deploy.errors import CheckpointError
from vacc_deploy.links import explain_outside
from vacc_deploy.outputs.damages import find_damages
from vacc_deploy.permissions import explain_dangling
from vacc_deploy.prepare import prepare
from vacc_deploy.text.tokenizer import Tokenizer

SHARD = "model-00001-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
NAMES = (
    *("config.json", INDEX, SHARD, "tokenizer.json", "tokenizer_config.json", "merges.txt"),
    *("generation_config.json", "chat_template.jinja", "README.md", "LICENSE", MANIFEST_NAME),
    *("config_vacc.json", "modeling_qwen2_vacc.py", "adapter_config.json", "tokenizer.model"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model") / "m", shards=2)


@pytest.fixture
def directory(model, tmp_path):
    return shutil.copytree(model, tmp_path / "src")


def put_link(path, target):
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def message_of(directory):
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    return str(caught.value)


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_link_out_of_the_directory(directory, tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_text("{}")
    put_link(directory / name, secret)
    text = message_of(directory)
    assert text.startswith(f"{directory / name} is a link to {str(secret)!r}, outside of")
    assert "If not, remove the link." in text


def test_several_links_are_named_at_once(directory, tmp_path):
    store = shutil.copytree(directory, tmp_path / "store")
    weights = sorted(path.name for path in store.glob("*.safetensors"))
    for name in weights:
        put_link(directory / name, store / name)
    assert message_of(directory).endswith(f"\nThe same holds for {weights[1]}.")
    put_link(directory / "config.json", store / "config.json")
    put_link(directory / INDEX, store / INDEX)
    assert message_of(directory).endswith(f"\nThe same holds for {INDEX}.")


@pytest.mark.parametrize("name", ["tokenizer.json", SHARD])
def test_its_command_puts_a_copy_in_place_of_the_link(directory, tmp_path, name):
    (directory / name).rename(tmp_path / "a file's")
    put_link(directory / name, tmp_path / "a file's")
    line = next(line for line in message_of(directory).splitlines() if line.startswith("  cp "))
    subprocess.run(line, shell=True, check=True)
    assert Checkpoint.open(directory) and not (directory / name).is_symlink()
    assert (tmp_path / "a file's").read_bytes() == (directory / name).read_bytes()


@pytest.mark.parametrize("target", ["/proc/self/environ", "/dev/zero", "/dev/stdin", "/etc"])
@pytest.mark.parametrize("name", ["README.md", "tokenizer.json", "config.json", SHARD])
def test_a_link_to_what_never_ends_or_tells_secrets(directory, tmp_path, name, target):
    put_link(directory / name, target)
    result = CliRunner().invoke(cli, ["prepare", str(directory), "--output", str(tmp_path / "o")])
    assert result.exit_code == 1 and name in result.stderr
    assert os.listdir(tmp_path) == ["src"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_file_is_refused_and_not_waited_for(directory, name):
    for make, what in ((os.mkfifo, "a named pipe"), (os.mkdir, "a directory"), (bind, "a socket")):
        (directory / name).unlink(missing_ok=True)
        make(directory / name)
        if what == "a directory" and name in ("README.md", "LICENSE"):
            assert Checkpoint.open(directory)
        else:
            assert f"{name} is {what}, not a file" in message_of(directory)
        shutil.rmtree(directory / name) if what == "a directory" else (directory / name).unlink()


def bind(path):
    """Make a socket; its whole name may be too long for one."""
    with socket.socket(socket.AF_UNIX) as made:
        before = os.getcwd()
        os.chdir(path.parent)
        made.bind(path.name)
        os.chdir(before)


@pytest.mark.parametrize(
    "arguments",
    [
        "prepare SRC --output OUT",
        "quantize SRC --output OUT --method rtn",
        "export-onnx SRC --output OUT",
        "verify SRC --reference GOOD",
        "verify GOOD --reference SRC",
        "generate SRC --prompt a",
        "yaml SRC --output OUT.yaml",
    ],
)
@pytest.mark.parametrize("name", ["README.md", "tokenizer.json", "config_vacc.json", SHARD])
def test_every_command_refuses_it(directory, model, tmp_path, arguments, name):
    put_link(directory / name, "/proc/self/environ")
    paths = {"SRC": directory, "GOOD": model, "OUT": tmp_path / "out"}
    for word, path in paths.items():
        arguments = arguments.replace(word, str(path))
    result = CliRunner().invoke(cli, shlex.split(arguments))
    assert result.exit_code == 1, result.output
    assert f"{directory / name} is a link to '/proc/" in result.stderr
    assert os.listdir(tmp_path) == ["src"]


def test_readers_of_one_file_refuse_it_too(directory, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        copy = shutil.copytree(directory, tmp_path / name)
        (tmp_path / "outside").write_text("{}")
        put_link(copy / name, tmp_path / "outside")
        if name == "chat_template.jinja":  # an error only where a template is needed
            with pytest.raises(CheckpointError, match="outside of"):
                Tokenizer.from_dir(copy).render_chat([], add_generation_prompt=False)
        else:
            with pytest.raises(CheckpointError, match="outside of"):
                Tokenizer.from_dir(copy)


def test_a_manifest_that_lists_a_file_behind_a_link(directory, tmp_path):
    (tmp_path / "secret").write_text("text")
    (directory / "folder").symlink_to(tmp_path)
    entry = {"bytes": 4, "sha256": "0"}
    files = {"folder/secret": entry, "own.txt": entry}
    (directory / "own.txt").symlink_to(tmp_path / "secret")
    write_json(directory / MANIFEST_NAME, {"format_version": 1, "files": files})
    for name in files:
        assert f"{name}: it is a link that leads out of the directory" in find_damages(directory)


# ---- what is followed --------------------------------------------------------------------------


def test_a_link_inside_the_directory_and_to_the_directory(directory, tmp_path):
    (directory / "data").mkdir()
    for name in (SHARD, "tokenizer.json", "config.json"):
        (directory / name).rename(directory / "data" / name)
        (directory / name).symlink_to(f"data/{name}")
    (tmp_path / "link").symlink_to("src")
    prepare(tmp_path / "link", output=tmp_path / "out")
    assert Checkpoint.open(tmp_path / "out")


def in_cache(model, folder):
    """Write a model as a hub's cache keeps it; return the snapshot."""
    snapshot, blobs = folder / "snapshots" / "abc", folder / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(model.iterdir())):
        shutil.copyfile(path, blobs / f"{number:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
    return snapshot


@pytest.mark.parametrize("folder", ["models--x--y", "modelscope/models/x--y"])
def test_a_cache_is_read_within_one_repository(model, tmp_path, folder):
    snapshot = in_cache(model, tmp_path / folder)
    assert Checkpoint.open(snapshot)
    (tmp_path / "link").symlink_to(snapshot)
    assert Checkpoint.open(tmp_path / "link")
    # Another snapshot's file, another repository's blob, and a blob that is a link again.
    other = shutil.copytree(model, snapshot.with_name("def"))
    put_link(snapshot / "tokenizer.json", other / "tokenizer.json")
    assert "outside of" in message_of(snapshot)
    foreign = in_cache(model, tmp_path / "models--x--z") / "tokenizer.json"
    put_link(snapshot / "tokenizer.json", os.path.realpath(foreign))
    assert "outside of" in message_of(snapshot)
    put_link(snapshot.parents[1] / "blobs" / "evil", foreign)
    put_link(snapshot / "tokenizer.json", "../../blobs/evil")
    assert "outside of" in message_of(snapshot)


def test_blobs_that_are_a_link_themselves(model, tmp_path):
    snapshot = in_cache(model, tmp_path / "models--x--y")
    blobs = snapshot.parents[1] / "blobs"
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    assert "outside of" in message_of(snapshot)


def test_a_cache_behind_a_link(model, tmp_path):
    """As where the home's cache lies on another disk."""
    in_cache(model, tmp_path / "disk/hub/models--x--y")
    (tmp_path / "home").symlink_to("disk")
    assert Checkpoint.open(tmp_path / "home/hub/models--x--y/snapshots/abc")


# ---- the links that prepare makes --------------------------------------------------------------


def test_weights_that_prepare_has_linked(model, tmp_path):
    snapshot = in_cache(model, tmp_path / "models--x--y")
    for number, source in enumerate((model, snapshot)):
        first, second = tmp_path / f"a{number}", tmp_path / f"b{number}"
        prepare(source, output=first, link_mode="symlink")
        assert Checkpoint.open(first) and not find_damages(first)
        # Prepared from a directory of links: they lead to where those lead.
        prepare(first, output=second, link_mode="symlink")
        assert Checkpoint.open(second) and not find_damages(second)
    # Moved with its source they would lead nowhere; given through a link they are the same.
    (tmp_path / "link").symlink_to("a0")
    assert Checkpoint.open(tmp_path / "link")


def test_other_links_of_a_directory_that_prepare_has_linked(directory, tmp_path):
    out = tmp_path / "out"
    prepare(directory, output=out, link_mode="symlink")
    other = shutil.copytree(directory, tmp_path / "other")
    put_link(out / SHARD, other / SHARD)
    assert "outside of" in message_of(out)
    put_link(out / SHARD, directory / "model-00002-of-00002.safetensors")
    assert "outside of" in message_of(out)
    put_link(out / SHARD, directory / SHARD)
    assert Checkpoint.open(out)
    put_link(out / "tokenizer.json", directory / "tokenizer.json")
    assert f"{out / 'tokenizer.json'} is a link" in message_of(out)
    (out / "tokenizer.json").unlink()
    # The source's own file is a link elsewhere.
    (directory / SHARD).rename(tmp_path / "moved")
    (directory / SHARD).symlink_to(tmp_path / "moved")
    put_link(out / SHARD, tmp_path / "moved")
    assert "outside of" in message_of(out)


def test_a_link_that_leads_nowhere_is_told_as_such(directory):
    put_link(directory / SHARD, "/nowhere/file")
    assert explain_outside(directory / SHARD) == ""
    assert "is a link to /nowhere/file, which does not exist" in message_of(directory)


@pytest.mark.parametrize("target", ["/etc/passwd/x", f"/nowhere/{'n' * 300}"])
def test_a_link_to_what_no_file_can_be_leads_nowhere(directory, target):
    put_link(directory / "README.md", target)
    assert explain_outside(directory / "README.md") == ""
    assert "which does not exist" in explain_dangling(directory / "README.md")
