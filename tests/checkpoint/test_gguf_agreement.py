"""A GGUF file that llama.cpp would compute otherwise than ``config.json`` says is refused."""

import json
import struct

import pytest
from checkpoint_builders import LLAMA3_ROPE, YARN_ROPE, write_checkpoint
from format_directories import write_format

from vacc_deploy.checkpoint.gguf_header import read_gguf_header
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError

pytest.importorskip("gguf")
LLAMA3 = {"rope_scaling": LLAMA3_ROPE | {"original_max_position_embeddings": 256}}
KINDS = {
    "qwen2": {"model_type": "qwen2"},
    "linear": {
        "model_type": "qwen2",
        "config_overrides": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    },
    "yarn": {"model_type": "qwen3", "config_overrides": {"rope_scaling": YARN_ROPE}},
    "llama3": {"model_type": "llama", "config_overrides": LLAMA3},
    "llama": {"model_type": "llama", "config_overrides": {"head_dim": 32}},
}


def make(tmp_path, kind):
    source = write_checkpoint(tmp_path / "model", **KINDS[kind])
    return write_format(source, "gguf", tmp_path / "out") / "model-Q8_0.gguf"


def problems_of(path):
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(path.parent)
    first, *lines, last = str(caught.value).splitlines()
    assert first == f"{path} tells of another computation than config.json:"
    assert last == "Quantize the model again."
    return [line.removeprefix("  - ") for line in lines]


def put(path, key, data):
    """Change what stands behind a key and its type."""
    raw = bytearray(path.read_bytes())
    start = raw.index(key.encode()) + len(key) + 4
    raw[start : start + len(data)] = data
    path.write_bytes(raw)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_what_the_configuration_says(tmp_path, kind):
    path = make(tmp_path, kind)
    Checkpoint.open(path.parent)
    arch = json.loads((path.parent / "config.json").read_text("utf-8"))["model_type"]
    put(path, f"{arch}.rope.freq_base", struct.pack("<f", 5e6))
    put(path, f"{arch}.attention.head_count", struct.pack("<I", 8))
    lines = problems_of(path)
    assert lines[0] == f"{arch}.attention.head_count: got 8, expected 4"
    assert lines[1].startswith(f"{arch}.rope.freq_base: got 5000000.0, expected ")


def test_a_key_of_another_name_is_missing_and_one_too_many(tmp_path):
    path = make(tmp_path, "linear")
    raw = path.read_bytes()
    key = b"qwen2.rope.scaling.factor"
    path.write_bytes(raw.replace(key, b"qwen2.rope.scaling.fector"))
    assert problems_of(path) == [
        "'qwen2.rope.scaling.fector': got a value, expected no such key",
        "qwen2.rope.scaling.factor: got nothing, expected 4.0",
    ]
    path.write_bytes(raw.replace(b"general.architecture", b"general.architectura"))
    assert problems_of(path) == ["general.architecture: got nothing, expected 'qwen2'"]
    path.write_bytes(raw.replace(b"\x06\0\0\0\0\0\0\0linear", b"\x06\0\0\0\0\0\0\0linaer"))
    assert problems_of(path) == ["qwen2.rope.scaling.type: got 'linaer', expected 'linear'"]


def test_the_factors_of_the_frequencies_are_compared(tmp_path):
    path = make(tmp_path, "llama3")
    raw = path.read_bytes()
    start = raw.index(struct.pack("<3f", 8, 8, 8)) + 8
    path.write_bytes(raw[:start] + struct.pack("<f", 7.5) + raw[start + 4 :])
    (line,) = problems_of(path)
    assert line.startswith("rope_freqs.weight: value ") and line.endswith("is 7.5, expected 8")
    path.write_bytes(raw)
    config = path.with_name("config.json")
    values = json.loads(config.read_text("utf-8"))
    scaling = values.pop("rope_scaling")
    config.write_text(json.dumps(values), "utf-8")
    assert problems_of(path) == ["rope_freqs.weight is there, expected none"]
    path.write_bytes(raw.replace(b"rope_freqs.weight", b"rope_freqs.weighd"))
    config.write_text(json.dumps(values | {"rope_scaling": scaling}), "utf-8")
    assert problems_of(path) == ["rope_freqs.weight is missing"]


def test_two_tensors_of_one_file_under_one_name(tmp_path):
    """One under the name that llama.cpp gives it, one under the published name."""
    path = make(tmp_path, "qwen2")
    raw = path.read_bytes()
    old, new = b"blk.1.ffn_norm.weight", b"model.norm.weight"
    old, new = (struct.pack("<Q", len(name)) + name for name in (old, new))
    header = read_gguf_header(path)
    start = min(tensor.offset for tensor in header.tensors)
    head = raw[:start].rstrip(b"\0")
    # The last entry ends in an offset that may end in zeros.
    head = raw[: len(head) + 8].replace(old, new)
    place = head.rindex(b"output.weight") + len("output.weight") + 4 + 2 * 8 + 4 + 8
    head = head[:place]
    path.write_bytes(head + bytes(-len(head) % 32) + raw[start:])
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(path.parent)
    twice = "stored twice in model-Q8_0.gguf, as model.norm.weight and output_norm.weight"
    assert f"model.norm.weight is {twice}" in str(caught.value)


def test_the_size_of_heads_may_be_left_out_where_it_follows(tmp_path):
    path = make(tmp_path, "qwen2")
    config = path.with_name("config.json")
    values = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps(values | {"head_dim": 16}), "utf-8")
    Checkpoint.open(path.parent)
