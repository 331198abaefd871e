import hashlib
from dataclasses import replace

import pytest
import torch
from checkpoint_builders import build_config, build_tensors
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vacc_deploy.checkpoint.header import read_header
from vacc_deploy.checkpoint.reader import INDEX_NAME
from vacc_deploy.errors import CheckpointError
from vacc_deploy.outputs.writer import shard_name, write_bytes, write_index, write_shard, write_text

MIXED = {
    # Names beyond ASCII, and with what JSON escapes.
    '"权重"\\': torch.arange(-3, 4, dtype=torch.int8),
    "scale": torch.tensor([0.5, 2.0, -1.0], dtype=torch.float16),
    "norm": torch.ones(5, dtype=torch.bfloat16),
    "wide": torch.arange(3, dtype=torch.float32),
    "packed": torch.arange(4, dtype=torch.int32).view(2, 2),
    "shape": torch.tensor([2, 3], dtype=torch.int64),
    "bytes": torch.arange(3, dtype=torch.uint8),
    "scalar": torch.tensor(7.0),
    "none": torch.empty(0, 4, dtype=torch.bfloat16),
}


def test_write_shard_literal_bytes(tmp_path):
    weight = torch.tensor([[1, -1, 127], [-127, 0, 2]], dtype=torch.int8)
    scale = torch.tensor([1.0, 0.5], dtype=torch.float16)
    written = write_shard(tmp_path / "a.safetensors", {"weight": weight, "scale": scale})
    header = (
        b'{"__metadata__":{"format":"pt"},'
        b'"scale":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},'
        b'"weight":{"dtype":"I8","shape":[2,3],"data_offsets":[4,10]}}'
    )
    header += b" " * (-len(header) % 8)
    data = b"\x00\x3c\x00\x38" + b"\x01\xff\x7f\x81\x00\x02"
    expected = len(header).to_bytes(8, "little") + header + data
    assert (tmp_path / "a.safetensors").read_bytes() == expected
    assert (written.name, written.num_bytes) == ("a.safetensors", len(expected))
    assert written.sha256 == hashlib.sha256(expected).hexdigest()
    assert (written.tensors, written.tensor_bytes) == (("scale", "weight"), 10)


def test_the_library_reads_every_dtype_that_is_written(tmp_path):
    path = tmp_path / "a.safetensors"
    write_shard(path, MIXED)
    got = load_file(path)
    assert set(got) == set(MIXED)
    for name, tensor in MIXED.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(got[name], tensor)
    with safe_open(path, "pt") as library:
        assert library.metadata() == {"format": "pt"}
    write_shard(tmp_path / "none.safetensors", {})
    assert load_file(tmp_path / "none.safetensors") == {}


def test_every_tensor_starts_aligned_and_the_data_at_eight(tmp_path):
    path = tmp_path / "a.safetensors"
    write_shard(path, MIXED)
    for info in read_header(path).tensors:
        assert info.offset % MIXED[info.name].element_size() == 0
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_bytes_do_not_depend_on_the_order_or_the_memory_layout(tmp_path):
    tensors = build_tensors(build_config())
    first = write_shard(tmp_path / "a.safetensors", tensors)
    turned = {n: t.t().contiguous().t() if t.dim() == 2 else t for n, t in tensors.items()}
    backwards = dict(reversed(turned.items()))
    second = write_shard(tmp_path / "b.safetensors", backwards)
    assert first.sha256 == second.sha256
    save_file(tensors, tmp_path / "lib.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "lib.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_a_stored_tensor_is_copied_bit_for_bit(tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    # NaN payloads would not survive arithmetic.
    bits = torch.tensor([0x7FC1, -1, 0, 0x1234], dtype=torch.int16).view(torch.bfloat16)
    save_file({"odd": torch.ones(3, dtype=torch.uint8), "nan": bits}, source)
    infos = {info.name: info for info in read_header(source).tensors}
    write_shard(target, {"x": infos["nan"], "y": infos["odd"], "z": torch.ones(2)})
    got = load_file(target)
    assert got["x"].view(torch.int16).tolist() == [0x7FC1, -1, 0, 0x1234]
    assert got["y"].tolist() == [1, 1, 1]


def test_a_source_that_shrank_is_named(tmp_path):
    source = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(1000)}, source)
    (info,) = read_header(source).tensors
    with source.open("r+b") as file:
        file.truncate(info.offset + 100)
    with pytest.raises(CheckpointError, match="a.safetensors was changed .*: it had 4,072 bytes"):
        write_shard(tmp_path / "b.safetensors", {"w": info})
    with pytest.raises(CheckpointError, match="it ended 3,900 bytes before the end of w. Wait"):
        write_shard(tmp_path / "c.safetensors", {"w": replace(info, stamp=None)})


def test_an_existing_file_is_never_replaced(tmp_path):
    write_text(tmp_path / "a.txt", "mine")
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "a.txt", "other")
    with pytest.raises(FileExistsError):
        write_shard(tmp_path / "a.txt", {})
    assert (tmp_path / "a.txt").read_text() == "mine"


def test_tensors_above_one_write_come_out_whole(tmp_path):
    big = torch.randint(-128, 128, (9, 1 << 20), dtype=torch.int8)
    write_shard(tmp_path / "a.safetensors", {"big": big, "after": torch.ones(1, dtype=torch.int8)})
    got = load_file(tmp_path / "a.safetensors")
    assert torch.equal(got["big"], big)
    assert got["after"].item() == 1


def test_write_index_literal_text(tmp_path):
    shards = [
        write_shard(tmp_path / shard_name(0, 2), {"b": torch.ones(2), "a": torch.ones(1)}),
        write_shard(tmp_path / shard_name(1, 2), {"A": torch.ones(3, dtype=torch.int8)}),
    ]
    written = write_index(tmp_path, shards)
    text = (tmp_path / INDEX_NAME).read_text()
    assert text == (
        "{\n"
        '  "metadata": {\n    "total_size": 15\n  },\n'
        '  "weight_map": {\n'
        '    "A": "model-00002-of-00002.safetensors",\n'
        '    "a": "model-00001-of-00002.safetensors",\n'
        '    "b": "model-00001-of-00002.safetensors"\n'
        "  }\n}\n"
    )
    assert written.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_write_text_and_bytes_hash_what_lies_on_the_disk(tmp_path):
    written = write_text(tmp_path / "a.txt", "é\r\n模")
    data = (tmp_path / "a.txt").read_bytes()
    assert data == "é\r\n模".encode()
    assert (written.num_bytes, written.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    again = write_bytes(tmp_path / "b.txt", iter([data[:2], b"", data[2:]]))
    assert again.sha256 == written.sha256
