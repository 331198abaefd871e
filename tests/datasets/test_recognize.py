"""A file of another kind than named: what the error says it is, and which option it gives."""

import gzip
import json
import random
import shlex
import shutil
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

from vacc_deploy.datasets import KIND_NAMES, recognize
from vacc_deploy.datasets.explain import explain_no_text
from vacc_deploy.datasets.sources import CalibrationSource, read_documents
from vacc_deploy.errors import CalibrationError

C4 = json.dumps({"text": "one", "timestamp": "2019", "url": "u"}).encode() + b"\n"
ANSWER = {"from": "gpt", "value": "a"}
RECORDS = [{"instruction": "q", "input": "", "output": "a"}]
ALPACA = json.dumps(RECORDS, indent=4).encode()
CHAT = json.dumps({"id": 1, "conversations": [{"from": "human", "value": "q"}, ANSWER]}).encode()
TRACES = "<｜User｜>q<｜Assistant｜>a".encode()
TABLE = "id,question,A,B,C,D,answer\n0,q,1,2,3,4,A\n"
BAD_ADVICE = ("ownload", "UTF-8.")


def pack(data):
    """Return gzip data that are the same at every time, for the names of tests."""
    return gzip.compress(data, mtime=0)


def zip_bytes(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, TABLE)
    return path.read_bytes()


def pack_zstd(data):
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


def problem(kind, path, weight=1.0):
    with pytest.raises(CalibrationError) as caught:
        list(read_documents(CalibrationSource(kind, path, weight)))
    return str(caught.value)


@pytest.fixture
def samples(tmp_path):
    """Return a sound file of every kind that a reader takes: name to path and kind."""
    contents = {
        "c4.json.gz": ("c4", gzip.compress(C4)),
        "c4.jsonl": ("c4", C4),
        "alpaca.json": ("alpaca", ALPACA),
        "alpaca.json.gz": ("alpaca", gzip.compress(ALPACA)),
        "alpaca.jsonl": ("alpaca", json.dumps(RECORDS[0]).encode()),
        "ceval exam.zip": ("ceval", zip_bytes(tmp_path / "z", "dev/", "dev/law_dev.csv")),
        "c4.jsonl.zst": ("c4", pack_zstd(C4)),
        "chat.jsonl": ("chat", CHAT),
        "chat.json.gz": ("chat", gzip.compress(b"[" + CHAT + b"]")),
        "pairs.jsonl": ("chat", json.dumps({"problem": "q", "generation": "a"}).encode()),
        "law_val.csv": ("ceval", TABLE.encode()),
        "r1.txt": ("traces", TRACES),
        "notes.txt": ("text", "Just text, 数学.".encode()),
    }
    for name, (_, data) in contents.items():
        (tmp_path / name).write_bytes(data)
    return {tmp_path / name: kind for name, (kind, _) in contents.items()}


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_sound_file_of_another_kind_is_named_with_the_option_that_is_right(kind, samples):
    for path, right in samples.items():
        # Chats take the records of other kinds too, and a table may be meant as text.
        is_record = right in ("c4", "alpaca") and kind == "chat"
        is_text = right == "traces" or path.suffix == ".csv"
        if right == kind or is_record or (is_text and kind == "text"):
            assert list(read_documents(CalibrationSource(kind, path)))
            continue
        text = problem(kind, path)
        assert not any(word in text for word in BAD_ADVICE), text
        if kind == "traces" and (right == "text" or is_text):
            assert "holds no trace: expected" in text
        else:
            option = shlex.join(["--calibration", f"{right}={path}"])
            assert text.startswith(f"{path} is ") and text.endswith(f" Give {option}."), text


def test_a_text_that_ends_in_zero_bytes_was_not_whole(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + bytes(500))
    text = problem("chat", path)
    assert "is a text that ends in zero bytes" in text and text.endswith("Download it again.")


def test_the_whole_message(samples, tmp_path):
    path = tmp_path / "alpaca.json"
    assert problem("c4", path) == (
        f"{path} is an Alpaca file, not C4. Give --calibration alpaca={path}."
    )
    assert problem("c4", path, 0.5).endswith(f"Give --calibration alpaca={path}:0.5.")


@pytest.mark.parametrize(
    ("data", "what", "advice"),
    [
        (b"ARROW1\0\0", "an Arrow file", "python3 -c 'import sys, datasets"),
        (b"\xff\xff\xff\xff\x10\x03\0\0", "an Arrow file", "Then give the new file as c4"),
        (b"\xfd7zXZ\0\0\x04", "xz data", "Unpack it with xz -dk "),
        (b"BZh91AY&SY\xa0", "bzip2 data", "Unpack it with bunzip2 -k "),
        (b"a.txt".ljust(257, b"\0") + b"ustar\x0000", "a tar archive", "Unpack it"),
        (pack(b"a".ljust(257, b"\0") + b"ustar"), "gzip data of tar archive", "gzip -dk"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document", "Save its text as a UTF-8 file"),
        (b"\x10\0\0\0\0\0\0\0" + b'{"a.weight":{}}  ', "a safetensors file", "It holds no text"),
        (b"GGUF\3\0\0\0", "a GGUF file", "It holds no text"),
        (b"\x7fELF\2\1\1\0", r"binary data that begin with b'\x7fELF", "Check the path"),
        (b'[{"passage": [], "id": 1}]', "JSON data with the keys passage, id", "or as chat"),
        ("通常文本".encode("gb18030"), "text that is not UTF-8", "iconv -f GB18030 -t UTF-8 "),
        ("text".encode("utf-16"), "UTF-16 text", "iconv -f UTF-16 -t UTF-8 "),
        ("text".encode("utf-32"), "UTF-32 text", "iconv -f UTF-32 -t UTF-8 "),
        ("a line\n".encode("utf-16-le"), "UTF-16LE text", "iconv -f UTF-16LE -t UTF-8 "),
        ("a line\n".encode("utf-16-be"), "UTF-16BE text", "iconv -f UTF-16BE -t UTF-8 "),
        (
            '[{"text": "通常"}]'.encode("gb18030"),
            "JSON data that are not UTF-8",
            "iconv -f GB18030",
        ),
        (b"\x04\x22\x4d\x18\x64\xff\0", "lz4 data", "Unpack it with lz4 -dk "),
        (b"PARE\x15\0\xff", "an encrypted Parquet file", "Write it without encryption"),
    ],
)
def test_what_no_reader_takes_is_named_and_never_to_be_downloaded(tmp_path, data, what, advice):
    path = tmp_path / "my data"
    path.write_bytes(data)
    for kind in ("c4", "ceval", "alpaca"):
        text = problem(kind, path)
        assert text.startswith(f"{path} is {what}") and advice in text, text
        assert "ownload" not in text


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"<!DOCTYPE html><title>404</title>", "an HTML page"),
        (b"\n <HTML><body>login", "an HTML page"),
        (b'{"error":"Repository not found"}', "an error message of a server"),
        (b"Entry not found", "an error message of the hub"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"PK\3\4" + b"\0" * 99, "a zip archive that is cut off"),
    ],
)
def test_what_a_failed_download_left_is_to_be_downloaded_again(tmp_path, data, what):
    path = tmp_path / "c4.json.gz"
    path.write_bytes(data)
    text = problem("c4", path)
    assert text.startswith(f"{path} is {what}, not C4. ")
    assert "ownload the file again" in text or "Download it again" in text


@pytest.mark.parametrize("inner", ["word/document.xml", "xl/workbook.xml", "a/data.pkl", "a.csv"])
def test_another_zip_archive_is_told_from_the_data_set(tmp_path, inner):
    path = tmp_path / "a.zip"
    zip_bytes(path, inner)
    text = problem("ceval", path)
    assert "ownload" not in text and ", not C-Eval. " in text
    assert inner != "word/document.xml" or "is a Word document" in text


@pytest.mark.parametrize(
    ("kind", "name", "data"),
    [
        ("c4", "c4.gz", pack(C4 * 999)[:-20]),
        ("c4", "c4.gz", pack(b"")[:5]),
        ("text", "t.gz", pack(random.Random(0).randbytes(400).hex().encode())[:-9]),
        ("ceval", "c.zip", None),
    ],
)
def test_a_damaged_file_of_its_own_kind_keeps_the_error_of_its_reader(tmp_path, kind, name, data):
    path = tmp_path / name
    path.write_bytes(data or zip_bytes(tmp_path / "z", "dev/law_dev.csv")[:-30])
    text = problem(kind, path)
    assert "Download it again" in text
    assert "cut off or damaged: " in text or "not a readable zip archive: " in text


def test_a_gzip_bomb_is_not_unpacked_to_tell_what_it_is(tmp_path, monkeypatch):
    path, made = tmp_path / "bomb", []
    path.write_bytes(gzip.compress(b"a" * (64 << 20)))
    recognize_bytes = recognize._recognize_bytes
    monkeypatch.setattr(
        recognize,
        "_recognize_bytes",
        lambda head, p: made.append(len(head)) or recognize_bytes(head, p),
    )
    assert recognize.recognize(path).kind == "text"
    assert made == [recognize.HEAD_BYTES]


def test_a_record_that_is_cut_at_the_limit_is_still_known(tmp_path):
    long, path = "x" * recognize.HEAD_BYTES, tmp_path / "d.json"
    for records, kind in (({"text": long}, "c4"), ([{"instruction": long}], "alpaca")):
        path.write_text(json.dumps(records))
        assert recognize.recognize(path).kind == kind
    path.write_text(json.dumps({"other": long}))
    assert recognize.recognize(path) is None


@pytest.mark.parametrize("data", [b"", b" \n", b"[" * 99_000, b'{"a":' * 20_000, b"{}", b"[1]"])
def test_what_cannot_be_told_is_left_to_the_reader(tmp_path, data):
    path = tmp_path / "d"
    path.write_bytes(data)
    assert recognize.recognize(path) is None


# ---- directories -------------------------------------------------------------------------------


def test_a_directory_is_answered_with_the_file_in_it(tmp_path, samples):
    folder = tmp_path / "hub"
    (folder / "en").mkdir(parents=True)
    (folder / "README.md").write_text("# A data set")
    path = folder / "en" / "c4-train.json.gz"
    path.symlink_to(tmp_path / "c4.json.gz")
    for kind in KIND_NAMES:
        assert problem(kind, folder) == (
            f"{folder} is a directory. It holds {path}, which is a C4 file. Give --calibration "
            f"c4={path}."
        )
    path.unlink()
    assert problem("c4", folder) == f"{folder} is a directory. Give the data file in it."
    message = f"{folder / 'en'} is an empty directory. Give the path of a data file."
    assert problem("c4", folder / "en") == message


@pytest.mark.parametrize("names", [("val/law_val.csv",), ("law/val-00000-of-00001.parquet",)])
def test_a_directory_of_c_eval_is_proposed_as_such(tmp_path, names):
    folder = tmp_path / "ceval exam"
    for name in names:
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(TABLE)
    option = shlex.join(["--calibration", f"ceval={folder}"])
    text = f"{folder} is a directory with tables of C-Eval. Give {option}."
    assert problem("c4", folder) == text
    assert problem("text", folder) == text


# ---- verify --text -----------------------------------------------------------------------------


def test_text_to_compare_on_is_plain_text(samples, tmp_path):
    for path, kind in samples.items():
        text = explain_no_text(path)
        if kind in ("text", "traces") or path.suffix == ".csv":
            assert text is None
        else:
            assert text.endswith(", not plain text. Give a UTF-8 file that holds nothing but text.")
    (tmp_path / "page.html").write_text("<html>a page may be meant</html>")
    assert explain_no_text(tmp_path / "page.html") is None


@pytest.mark.parametrize("start", ["GGUF", "PAR1", "ARROW1", "BZh", "Rar!", "%PDF", '{"error"'])
def test_a_text_is_not_told_by_its_first_letters_alone(tmp_path, start):
    path, text = tmp_path / "notes.txt", f"{start}: 是 a text, as one may read in its first line.\n"
    path.write_text(text, "utf-8")
    assert explain_no_text(path) is None
    assert list(read_documents(CalibrationSource("text", path))) == [text]
    path.write_bytes(gzip.compress(text.encode()))
    assert list(read_documents(CalibrationSource("text", path))) == [text]
    # With bytes that no text has, the letters tell what the file is.
    if start != '{"error"':
        path.write_bytes(start.encode() + b"\3\0\0\0")
        assert ", not plain text. " in explain_no_text(path)


@pytest.mark.skipif(not shutil.which("iconv"), reason="no iconv")
def test_the_command_that_converts_a_text_works(tmp_path):
    path = tmp_path / "a b.txt"
    path.write_bytes("通常文本".encode("gb18030"))
    line = recognize.recognize(path).advice.partition("\n  ")[2]
    subprocess.run(line, shell=True, cwd=tmp_path, check=True)
    assert Path(tmp_path / "a b.txt.utf8").read_text("utf-8") == "通常文本"


def test_a_file_of_spaces_is_recognised_at_once(tmp_path):
    (tmp_path / "a.json").write_text("{" + " " * (1 << 16))
    started = time.process_time()
    recognize.recognize(tmp_path / "a.json")
    assert time.process_time() - started < 1


def test_one_large_object_over_several_lines_is_told_by_its_first_keys(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "vocab": list(range(100_000))}, indent=2))
    with pytest.raises(CalibrationError) as caught:
        list(read_documents(CalibrationSource("c4", path)))
    assert f"{path} is JSON data with the keys version, vocab, not C4. Rewrite" in str(caught.value)
