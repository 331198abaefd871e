"""What differs between a directory and its manifest."""

import json
import shutil

import pytest
from checkpoint_builders import write_checkpoint
from doubles import Recorder

from vacc_deploy.checkpoint.fingerprint import fingerprint_file
from vacc_deploy.checkpoint.manifest import MANIFEST_NAME
from vacc_deploy.outputs.damages import find_damages
from vacc_deploy.prepare import prepare
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize

SHARD = "model-00002-of-00004.safetensors"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Return one output of each kind, below one folder; they are never changed."""
    folder = tmp_path_factory.mktemp("outputs")
    source = write_checkpoint(folder / "model")
    (source / "README.md").write_text("about the model")
    for mode in ("hardlink", "copy"):
        prepare(weights=source, output=folder / mode, link_mode=mode)
    quantize(source, options=QuantizeOptions("rtn"), output=folder / "int8")
    both = QuantizeOptions("rtn", formats=("int8", "compressed-tensors"))
    quantize(source, options=both, output=folder / "several")
    return folder


@pytest.fixture
def copied(outputs, tmp_path):
    """Return a function that gives a copy of an output, whose files may be damaged."""

    def copy(name):
        return shutil.copytree(outputs / name, tmp_path / name)

    return copy


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return fingerprint_file(path)


@pytest.mark.parametrize("name", ["hardlink", "copy", "int8", "several"])
def test_what_was_written_has_no_damages(outputs, name):
    assert find_damages(outputs / name) == []


def test_another_content_names_both_hashes(copied):
    directory = copied("int8")
    expected = fingerprint_file(directory / SHARD)
    got = flip(directory / SHARD)
    assert find_damages(directory) == [
        f"{SHARD}: its content is not what quantize wrote (sha256 {got[:12]}..., expected "
        f"{expected[:12]}...)"
    ]


def test_another_size_is_seen_without_reading(copied):
    directory = copied("copy")
    path = directory / "config_vacc.json"
    size = path.stat().st_size
    path.write_text("{}")
    assert find_damages(directory) == [f"config_vacc.json: it has 2 bytes, prepare wrote {size:,}"]


def test_a_missing_file(copied):
    directory = copied("int8")
    (directory / "tokenizer.json").unlink()
    (directory / SHARD).unlink()
    (directory / SHARD).symlink_to("nowhere")
    expected = [f"{SHARD}: it is missing", "tokenizer.json: it is missing"]
    assert sorted(find_damages(directory)) == expected


def test_a_weight_file_that_nobody_listed_would_be_loaded_instead(copied):
    directory = copied("int8")
    shutil.copy(directory / SHARD, directory / "model.safetensors")
    (directory / "notes.txt").write_text("mine")
    assert find_damages(directory) == [
        "model.safetensors: quantize did not write it, but a loader may read it. Move it away"
    ]


def test_documents_belong_to_the_user(copied):
    directory = copied("int8")
    (directory / "README.md").write_text("edited")
    (directory / "LICENSE").write_text("added")
    assert find_damages(directory) == []


def test_a_linked_file_is_known_by_its_size_and_its_header(copied):
    directory = copied("hardlink")
    path = directory / "model.safetensors"
    flip(path)  # the data: only the source could tell
    assert find_damages(directory) == []
    path.write_bytes(path.read_bytes().replace(b'"format":"pt"', b'"format":"tp"'))
    (problem,) = find_damages(directory)
    assert problem.startswith("model.safetensors: its header is not what prepare wrote (sha256 ")
    path.write_bytes(b"\xff" * path.stat().st_size)
    (problem,) = find_damages(directory)
    assert problem.startswith("model.safetensors: the file is truncated or not a safetensors file")


def test_directories_of_several_formats_are_looked_into(copied):
    directory = copied("several")
    flip(directory / "compressed-tensors" / SHARD)
    (directory / "int8" / MANIFEST_NAME).write_text("{")
    problems = sorted(find_damages(directory))
    assert len(problems) == 3
    assert problems[0].startswith(f"{directory / 'int8' / MANIFEST_NAME} is not valid JSON")
    written = f"compressed-tensors/{SHARD}: its content is not what quantize wrote"
    assert problems[1].startswith(written)
    assert problems[2].startswith(f"int8/{MANIFEST_NAME}: it has 1 bytes, quantize wrote ")


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ([], "vacc_deploy.json: it lists no files"),
        ({"x" * 300: {}, "y" * 300 + "/vacc_deploy.json": {}}, "xxx"),
        ({"../x": {}}, "vacc_deploy.json: it lists '../x', outside of the directory"),
        ({"/etc/hostname": {}}, "vacc_deploy.json: it lists '/etc/hostname', outside of"),
        ({"config.json": 5}, "config.json: vacc_deploy.json gives no hash of it"),
        ({"config.json": {"bytes": "5", "sha256": "0"}}, "config.json: vacc_deploy.json gives no"),
        ({"config.json": {"bytes": 10**90, "sha256": "0"}}, "config.json: vacc_deploy.json gives"),
        ({"config.json": {"bytes": -1, "sha256": "0"}}, "config.json: vacc_deploy.json gives no"),
        ({"x\nPassed: y": {}}, "x\\nPassed: y: it is missing"),
        ({"config.json": {"bytes": 5}}, "config.json: vacc_deploy.json gives no hash of it"),
        ({"vacc_deploy.json": {"bytes": 1, "sha256": "0"}}, "vacc_deploy.json: it has "),
    ],
)
def test_a_strange_manifest(copied, files, problem):
    directory = copied("int8")
    manifest = json.loads((directory / MANIFEST_NAME).read_text())
    manifest.update(files=files, command="\x1b[2J")
    (directory / MANIFEST_NAME).write_text(json.dumps(manifest))
    problems = find_damages(directory)
    assert any(line.startswith(problem) for line in problems)
    assert not any("\x1b" in line or "\n" in line for line in problems)


def test_progress_counts_the_weights_that_are_read(outputs):
    recorder = Recorder()
    find_damages(outputs / "int8", recorder)
    shards = sorted((outputs / "int8").glob("*.safetensors"))
    total = sum(path.stat().st_size for path in shards)
    assert recorder.events[0] == ("start", f"Checking files {total} bytes")
    assert recorder.amount() == total
    assert recorder.notes() == [path.name for path in shards]
    assert recorder.events[-1] == ("finish",)
    linked = Recorder()
    find_damages(outputs / "hardlink", linked)
    assert linked.events == [("start", "Checking files 0 bytes"), ("finish",)]
