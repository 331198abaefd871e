"""GGUF files of a few bytes, written by hand."""

import struct


def text(value):
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def tensor(name="a", shape=(2,), kind=0, offset=0):
    dims = b"".join(struct.pack("<Q", size) for size in shape)
    return text(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", kind, offset)


PAIRS = (
    pair("general.architecture", 8, text("llama")),
    pair("a", 4, struct.pack("<I", 7)),
    pair("tokens", 9, struct.pack("<IQ", 8, 2) + text("x") + text("yz")),
    pair("numbers", 9, struct.pack("<IQ", 5, 3) + bytes(12)),
    pair("flag", 7, b"\x01"),
)


TENSOR = tensor()


def build(pairs=PAIRS, tensors=(TENSOR,), data=bytes(32), *, magic=b"GGUF", version=3):
    head = (
        magic
        + struct.pack("<IQQ", version, len(tensors), len(pairs))
        + b"".join(pairs)
        + b"".join(tensors)
    )
    return head + bytes(-len(head) % 32) + data


def write(tmp_path, data):
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    return path
