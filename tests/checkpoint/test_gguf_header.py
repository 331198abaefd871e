"""Headers of GGUF files: literal bytes, and what is refused in one message."""

import hashlib
import random
import struct

import pytest
from gguf_bytes import PAIRS, build, pair, tensor, write

from vacc_deploy.checkpoint.gguf_header import read_gguf_header
from vacc_deploy.errors import CheckpointError


def refused(tmp_path, data):
    path = write(tmp_path, data)
    with pytest.raises(CheckpointError) as caught:
        read_gguf_header(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.endswith(". Quantize the model again.")
    return message.removeprefix(f"{path}: ").removesuffix(". Quantize the model again.")


def test_read_header_literal_bytes(tmp_path):
    # ggml has the sizes of a tensor the other way round: 64 columns, 3 rows.
    tensors = (tensor("q", (64, 3), 8), tensor("n", (5,), 0, 224), tensor("e", (4, 2), 1, 256))
    data = build(tensors=tensors, data=bytes(224 + 32 + 32))
    header = read_gguf_header(write(tmp_path, data))
    start = len(data) - 288
    assert [(t.name, t.kind, t.shape, t.offset, t.num_bytes) for t in header.tensors] == [
        ("q", "Q8_0", (3, 64), start, 3 * 2 * 34),
        ("n", "F32", (5,), start + 224, 20),
        ("e", "F16", (2, 4), start + 256, 16),
    ]
    assert header.file_bytes == len(data)
    assert header.header_sha256 == hashlib.sha256(data[:start]).hexdigest()


def test_the_library_reads_the_same_tensors(tmp_path):
    gguf = pytest.importorskip("gguf")
    tensors = (tensor("q", (64, 3), 8), tensor("n", (5,), 0, 224))
    path = write(tmp_path, build(tensors=tensors, data=bytes(256)))
    theirs = [(t.name, int(t.data_offset), int(t.n_bytes)) for t in gguf.GGUFReader(path).tensors]
    assert theirs == [(t.name, t.offset, t.num_bytes) for t in read_gguf_header(path).tensors]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"magic": b"GGML"}, "it is no GGUF file"),
        ({"version": 2}, "it has version 2 of GGUF, expected 3"),
        ({"version": 3 << 24}, "it has version 50331648 of GGUF, expected 3"),
        ({"pairs": (PAIRS[1], PAIRS[1])}, "the key b'a' appears twice"),
        ({"pairs": (pair("a", 13, b""),)}, "a value has the unknown type 13"),
        (
            {"pairs": (pair("a", 9, struct.pack("<IQ", 9, 1)),)},
            "a list holds values of type 9, expected numbers or texts",
        ),
        (
            {"pairs": (pair("general.alignment", 4, struct.pack("<I", 64)),)},
            "general.alignment is 64, expected 32",
        ),
        (
            {"pairs": (pair("general.alignment", 10, bytes(8)),)},
            "general.alignment is of type 10, expected 32",
        ),
        ({"tensors": (tensor(kind=12),)}, "tensor 'a' has the type 12, expected one of F32, F16, "),
        ({"tensors": (tensor(shape=()),)}, "tensor 'a' has 0 dimensions, expected 1 to 4"),
        ({"tensors": (tensor(shape=(0,)),)}, "tensor 'a' has the impossible shape [0]"),
        ({"tensors": (tensor(shape=(1 << 63, 2)),)}, "tensor 'a' has the impossible shape"),
        ({"tensors": (tensor(shape=(1 << 39, 1 << 39)),)}, "tensor 'a' has the impossible shape"),
        ({"tensors": (tensor(shape=(33, 2), kind=8),)}, "tensor 'a' has 33 columns, expected a mu"),
        ({"tensors": (tensor(name="a\n"),)}, "tensor 'a\\n' has a name with control characters"),
        ({"tensors": (tensor(name=b"\xff"),)}, "a tensor's name is not Unicode: b'\\xff'"),
        ({"tensors": (tensor(offset=32),)}, "tensor 'a' leaves a gap or overlaps the one before"),
        ({"tensors": (tensor(), tensor(offset=32)), "data": bytes(64)}, "tensor 'a' appears twice"),
        ({"data": bytes(64)}, "the file goes on behind its tensors: got 320 bytes, expected 288"),
        ({"data": b""}, "the file is truncated: got 256 bytes, expected 288"),
    ],
)
def test_refused_headers(tmp_path, change, message):
    assert refused(tmp_path, build(**change)).startswith(message)


def test_lists_of_empty_texts_are_refused_before_they_are_passed_over(tmp_path):
    """A sparse file costs nothing to send, and every text of it takes time."""
    path, count = tmp_path / "a.gguf", 1 << 22
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 7))
        for number in range(7):
            file.write(pair(str(number), 9, struct.pack("<IQ", 8, count)))
            file.seek(8 * count, 1)
        file.truncate()
    with pytest.raises(CheckpointError, match=r"lists hold 4,194,304 texts or more, expected at m"):
        read_gguf_header(path)


def test_a_cut_or_changed_header_is_refused_or_read_and_never_fails_otherwise(tmp_path):
    data, rng = build(), random.Random(3)
    for end in range(len(data)):
        refused(tmp_path, data[:end])
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        path = write(tmp_path, bytes(changed))
        try:
            read_gguf_header(path)
        except CheckpointError as err:
            assert len(str(err)) < 1000


def test_what_stands_in_place_of_a_file(tmp_path):
    path = write(tmp_path, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CheckpointError, match="LFS pointer"):
        read_gguf_header(path)
    with pytest.raises(CheckpointError, match="missing.gguf"):
        read_gguf_header(tmp_path / "missing.gguf")
