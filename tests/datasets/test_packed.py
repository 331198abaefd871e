"""Packed data: zstd through the package zstandard; gzip is tried with the sources."""

import json
import random
import struct
import sys

import pytest

from vacc_deploy.bounds import RECORD_BYTES
from vacc_deploy.datasets import packed, recognize
from vacc_deploy.datasets.explain import explain_no_text
from vacc_deploy.datasets.sources import CalibrationSource, read_documents
from vacc_deploy.errors import CalibrationError

zstandard = pytest.importorskip("zstandard")

TEXTS = [f"document {number} {random.Random(number).random()}" for number in range(3000)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
TO_SKIP = struct.pack("<II", 0x184D2A50, 4) + b"size"


def pack(data, **options):
    return zstandard.ZstdCompressor(**options).compress(data)


def read(kind, path, data):
    path.write_bytes(data)
    return list(read_documents(CalibrationSource(kind, path)))


@pytest.mark.parametrize(
    "data",
    [
        pack(LINES),
        pack(LINES, level=19, write_checksum=True),
        pack(LINES[:9000]) + pack(LINES[9000:]),
        TO_SKIP + pack(LINES[:9000]) + TO_SKIP + pack(LINES[9000:]) + TO_SKIP,
    ],
    ids=["one", "checksum", "two", "skipped"],
)
def test_frames_are_read_one_after_another(tmp_path, data):
    assert read("c4", tmp_path / "c4.jsonl.zst", data) == TEXTS


def test_every_kind_of_text_is_read(tmp_path):
    assert read("text", tmp_path / "t.zst", pack(b"plain\n")) == ["plain\n"]
    array = pack(json.dumps([{"text": "one"}]).encode())
    assert read("c4", tmp_path / "a", array) == ["one"]
    assert read("chat", tmp_path / "a", array) == ["one"]


@pytest.mark.parametrize("cut", [5, 100, 2000, -9, -1])
def test_cut_data_are_an_error(tmp_path, cut):
    message = "holds zstd data that are cut off.*they end in the middle of a frame. Download it ag"
    with pytest.raises(CalibrationError, match=message):
        read("c4", tmp_path / "c4.zst", pack(LINES)[:cut])


def test_damaged_data_are_never_a_traceback(tmp_path):
    whole, refused = pack(LINES[:2000] + b"\n", write_checksum=True), 0
    for position in range(4, len(whole), 3):
        data = bytearray(whole)
        data[position] ^= 0xFF
        try:
            read("c4", tmp_path / "c4.zst", bytes(data))
        except CalibrationError as err:
            refused += 1
            assert str(tmp_path) in str(err)
    assert refused > 100


def test_a_window_of_gigabytes_is_refused(tmp_path):
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = packer.compress(LINES) + packer.flush()
    with pytest.raises(CalibrationError, match="window of more than 128 MiB, which takes"):
        read("c4", tmp_path / "c4.zst", data)


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    bomb = pack(b" " * (4 * RECORD_BYTES))
    sizes, unpack = [], packed._Unpacked._unpack
    monkeypatch.setattr(
        packed._Unpacked, "_unpack", lambda self: sizes.append(unpack(self)) or sizes[-1]
    )
    with pytest.raises(CalibrationError, match="unpacks to more than 30 times its size"):
        read("c4", tmp_path / "bomb", bomb)
    assert max(map(len, sizes)) <= 32 << 20
    assert len(packed.unpack_head(bomb, 1000)) <= 1000


def test_without_the_package_the_error_has_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    path = tmp_path / "c4.zst"
    for kind in ("c4", "alpaca", "chat", "traces"):
        with pytest.raises(CalibrationError) as caught:
            read(kind, path, pack(LINES))
        assert str(caught.value) == (
            f"{path} is zstd data. Reading it needs the package zstandard 0.22.0 or newer. Install "
            "it, then rerun:\n  python3 -m pip install 'zstandard>=0.22.0'"
        )
    assert "python3 -m pip install" in explain_no_text(path)


def test_what_is_packed_is_recognised(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(pack(b"a".ljust(257, b"\0") + b"ustar"))
    found = recognize.recognize(path)
    assert found.what == "zstd data of tar archive"
    assert found.advice.startswith("Unpack it with zstd -dk ")


@pytest.mark.parametrize("kind", [0, 7, 15])
def test_any_frame_to_skip_may_come_first(tmp_path, kind):
    skipped = (0x184D2A50 + kind).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"abc"
    path = tmp_path / "c4.zst"
    path.write_bytes(skipped + zstandard.ZstdCompressor().compress(b'{"text": "a river"}\n'))
    assert list(read_documents(CalibrationSource("c4", path))) == ["a river"]
