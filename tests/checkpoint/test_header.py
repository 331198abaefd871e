import hashlib
import json
import random
import struct

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vacc_deploy.checkpoint.header import read_header
from vacc_deploy.errors import CheckpointError
from vacc_deploy.formats.dtypes import DTYPES, torch_dtype


def write(tmp_path, header, data=b"", *, length=None):
    """Write a file from a header (an object, text or bytes) and its data."""
    if isinstance(header, (dict, list)):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def entry(dtype="F16", shape=(2,), offsets=(0, 4)):
    """Return the entry of one tensor; ``...`` leaves a key out."""
    values = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    return {key: value for key, value in values.items() if value is not ...}


def refused(path):
    """Return the message, after seeing that it names the file and says what to do."""
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    # Git fetches what a pointer stands for, and a login is what the others lack.
    is_stand_in = any(what in message for what in ("LFS pointer", "web page", "of a server"))
    assert is_stand_in or message.endswith(". Download it again.")
    return message.removeprefix(f"{path}: ").removesuffix(". Download it again.")


def test_read_header_literal_bytes(tmp_path):
    header = (
        b'{"__metadata__":{"format":"pt"},'
        b'"b":{"dtype":"I8","shape":[3],"data_offsets":[8,11]},'
        b'"a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}}   '
    )
    path = tmp_path / "a.safetensors"
    path.write_bytes(bytes([len(header), 0, 0, 0, 0, 0, 0, 0]) + header + b"0123456789A")
    shard = read_header(path)
    assert shard.file_bytes == 8 + len(header) + 11
    assert shard.header_sha256 == hashlib.sha256(header).hexdigest()
    got = [(t.name, t.dtype, t.shape, t.path, t.offset, t.num_bytes) for t in shard.tensors]
    assert got == [
        ("a", "BF16", (2, 2), path, 8 + len(header), 8),
        ("b", "I8", (3,), path, 8 + len(header) + 8, 3),
    ]


def test_read_header_empty_tensors_and_scalars(tmp_path):
    header = {"z": entry("F32", (0, 4), (4, 4)), "s": entry("F32", (), (0, 4))}
    tensors = read_header(write(tmp_path, header, b"1234")).tensors
    assert [(t.name, t.shape, t.num_bytes) for t in tensors] == [("s", (), 4), ("z", (0, 4), 0)]
    assert read_header(write(tmp_path, "{}")).tensors == ()


def test_read_header_equals_the_library_on_its_own_file(tmp_path):
    path = tmp_path / "lib.safetensors"
    tensors = {
        "x": torch.ones(3, 5, dtype=torch.bfloat16),
        "codes": torch.ones(7, dtype=torch.int8),
        "s": torch.tensor(1.5),
        "long": torch.ones(2, 1, 2, dtype=torch.int64),
        "none": torch.empty(0, 4),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    data = path.read_bytes()
    shard = read_header(path)
    assert {t.name for t in shard.tensors} == set(tensors)
    with safe_open(path, "pt") as library:
        for info in shard.tensors:
            piece = library.get_slice(info.name)
            assert (info.dtype, list(info.shape)) == (piece.get_dtype(), piece.get_shape())
            flat = tensors[info.name].contiguous().view(-1).view(torch.uint8)
            assert data[info.offset : info.offset + info.num_bytes] == bytes(flat.tolist())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it is empty (0 bytes)"),
        (b"\x01\x00\x00", "got 3 bytes, its header alone asks for 9"),
        (struct.pack("<Q", 50) + b"{}", "got 10 bytes, its header alone asks for 58"),
        (b"\xff" * 8, "got 8 bytes, its header alone asks for 18,446,744,073,709,551,623"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "it is a web page that was saved under this name"),
        (b"Entry not found", "it is the answer of a server that was saved under this name"),
        (bytes(40), "it begins with zero bytes only: its download was interrupted"),
    ],
    ids=["empty", "short", "header-cut", "huge-length", "lfs-pointer", "html", "answer", "zeros"],
)
def test_read_header_short_file_gives_bytes_got_and_expected(tmp_path, content, problem):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert problem in refused(path)


def test_read_header_above_the_formats_limit_reads_nothing(tmp_path):
    path = write(tmp_path, b"", length=100_000_001)
    with path.open("r+b") as file:
        file.truncate(8 + 100_000_001)  # sparse: takes no space
    assert refused(path) == "its header of 100,000,001 bytes is above the format's limit"


def test_read_header_missing_file_and_directory(tmp_path):
    with pytest.raises(CheckpointError, match="b.safetensors cannot be read: No such file"):
        read_header(tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_header(tmp_path)


GAP = "leaves a gap or overlaps the one before it"
TWICE = json.dumps(entry())
MALFORMED = {
    "no-json": ("{", "Expecting property name"),
    "not-utf8": (b'{"\xff": 1}', "can't decode byte 0xff"),
    "deep": ("[" * 100_000, "nested more than 100 deep"),
    "list": ("[]", "its header is not a JSON object"),
    "duplicate": (f'{{"a":{TWICE},"a":{TWICE}}}', "key 'a' appears twice"),
    "duplicate-inside": ('{"a":{"shape":[2],"shape":[1]}}', "key 'shape' appears twice"),
    "entry-no-object": ({"a": 7}, "tensor 'a' is described by int, not an object"),
    "bad-dtype": ({"a": entry("F12")}, "tensor 'a' has the unknown dtype 'F12'"),
    "dtype-missing": ({"a": entry(...)}, "tensor 'a' has the unknown dtype None"),
    "dtype-list": ({"a": entry(["F16"])}, "tensor 'a' has the unknown dtype ['F16']"),
    "shape-bool": ({"a": entry(shape=(2, True))}, "has the impossible shape [2, True]"),
    "shape-negative": ({"a": entry(shape=(-2, -1))}, "has the impossible shape [-2, -1]"),
    "shape-float": ({"a": entry(shape=(2.0,))}, "has the impossible shape [2.0]"),
    "shape-huge": ({"a": entry(shape=(1 << 41,))}, "has the impossible shape [2199023255552]"),
    "shape-text": ({"a": entry(shape="2")}, "has the impossible shape '2'"),
    "offsets-bool": ({"a": entry("I8", (1,), (False, True))}, "data_offsets [False, True]"),
    "offsets-negative": ({"a": entry(offsets=(-4, 0))}, "impossible data_offsets [-4, 0]"),
    "offsets-three": ({"a": entry(offsets=(0, 2, 4))}, "impossible data_offsets [0, 2, 4]"),
    "offsets-missing": ({"a": entry(offsets=...)}, "impossible data_offsets None"),
    "offsets-swapped": (
        {"a": entry(offsets=(4, 0))},
        "[2] needs 4 bytes, its data_offsets give -4",
    ),
    "size": ({"a": entry(shape=(3,))}, "tensor 'a' F16 [3] needs 6 bytes, its data_offsets give 4"),
    "gap-first": ({"a": entry(offsets=(2, 6))}, f"tensor 'a' {GAP}"),
    "gap": ({"a": entry(), "b": entry(offsets=(6, 10))}, f"tensor 'b' {GAP}"),
    "overlap": ({"a": entry(), "b": entry(offsets=(2, 6))}, f"tensor 'b' {GAP}"),
    "same-place": ({"a": entry(), "b": entry()}, GAP),
}


@pytest.mark.parametrize(("header", "problem"), MALFORMED.values(), ids=MALFORMED.keys())
def test_read_header_malformed_says_what_is_wrong(tmp_path, header, problem):
    path = write(tmp_path, header, b"0123456789"[: 4 if "gap" not in problem else 10])
    assert problem in refused(path)


# The library takes the last of two equal keys and fewer rules on types; all else it refuses too.
@pytest.mark.parametrize("name", sorted(MALFORMED.keys() - {"duplicate", "duplicate-inside"}))
def test_read_header_refuses_what_the_library_refuses(tmp_path, name):
    path = write(tmp_path, MALFORMED[name][0], b"0123")
    with pytest.raises(SafetensorError), safe_open(path, "pt"):
        pass
    refused(path)


@pytest.mark.parametrize(
    ("length", "problem"),
    [
        (3, "the file is truncated: got {got} bytes, expected {expected}"),
        (7, "3 bytes follow the last tensor"),
    ],
)
def test_read_header_of_a_shorter_or_longer_file_gives_the_bytes(tmp_path, length, problem):
    path = write(tmp_path, {"a": entry()}, b"1234567"[:length])
    got = path.stat().st_size
    assert refused(path) == problem.format(got=got, expected=got - length + 4)


def test_read_header_every_cut_of_a_real_file_is_refused(tmp_path):
    path = tmp_path / "lib.safetensors"
    save_file({"a": torch.ones(3, dtype=torch.float16), "b": torch.ones(2)}, path)
    data = path.read_bytes()
    read_header(path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        refused(path)


def test_dtype_bytes_are_those_of_the_library(tmp_path):
    path = tmp_path / "a.safetensors"
    # Those that the package reads into no dtype of torch.
    others = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
    others |= {"F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz"}
    others |= {"F8_E5M2FNUZ": "float8_e5m2fnuz"}
    others |= {f"U{bits}": f"uint{bits}" for bits in (16, 32, 64)}
    dtypes = {c: getattr(torch, others[c]) if c in others else torch_dtype(c) for c in DTYPES}
    save_file({code: torch.zeros(2, dtype=dtype) for code, dtype in dtypes.items()}, path)
    for info in read_header(path).tensors:
        assert (info.dtype, info.num_bytes) == (info.name, 2 * DTYPES[info.name].num_bytes)


def test_read_header_damaged_anywhere_is_refused_or_read_as_the_library_reads_it(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(3, dtype=torch.float16), "b": torch.ones(2, 2)}, path)
    data, rng = path.read_bytes(), random.Random(0)
    end = 8 + int.from_bytes(data[:8], "little")
    for _ in range(300):
        damaged = bytearray(data)
        damaged[rng.randrange(end)] = rng.choice(b'0123456789[]{}",:-. \x00\xffaul')
        path.write_bytes(damaged)
        try:
            got = {info.name: (info.dtype, list(info.shape)) for info in read_header(path).tensors}
        except CheckpointError:
            continue
        with safe_open(path, "pt") as library:
            pieces = {name: library.get_slice(name) for name in library.keys()}  # noqa: SIM118
        assert got == {name: (p.get_dtype(), p.get_shape()) for name, p in pieces.items()}
