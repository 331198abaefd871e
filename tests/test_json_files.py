"""Reading within bounds, and the text that is written."""

import json

import pytest

from vacc_deploy import json_files
from vacc_deploy.errors import CheckpointError, CompileFileError
from vacc_deploy.json_files import dump_json, parse_json, read_bounded, read_json


def test_read_bounded_takes_a_file_up_to_its_limit(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(CompileFileError) as caught:
        read_bounded(path, 4, error=CompileFileError, advice="Give another.")
    assert str(caught.value) == (
        f"{path} holds more than 4 bytes, too many for such a file. Give another."
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON: it is empty."),
        (
            b'{"a": ',
            "is not valid JSON: Expecting value: line 1 column 7 (char 6). Correct the file, or",
        ),
        (b'"\xff"', "is not valid JSON: 'utf-8' codec can't decode"),
        (
            b"[" * 10000,
            "cannot be read: it has lists or objects nested more than 100 deep.",
        ),
        (b'{"error": "Access to model is restricted"}', "is the answer of a server that was saved"),
        (b"Entry not found", "is the answer of a server that was saved under this name: 'Entry"),
        (b"Invalid username or password.", "is the answer of a server that was saved"),
        (b'<?xml version="1.0"?>', "is the answer of a server that was saved under this name"),
        (b" " * 20001, "holds more than 20,000 bytes, too many for such a file. Check the path."),
    ],
    ids=["empty", "cut", "not-utf8", "deep", "error", "entry", "password", "xml", "large"],
)
def test_read_json_refuses_what_is_no_json(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_json(path, limit_bytes=20_000)
    assert str(caught.value).startswith(f"{path} {message}")


def test_read_json_reads_a_byte_order_mark_and_names_a_missing_file(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json", limit_bytes=100) == {"a": 1}
    with pytest.raises(CheckpointError, match="b.json cannot be read: No such file or directory."):
        read_json(tmp_path / "b.json", limit_bytes=100)


def test_a_vocabulary_that_begins_like_an_answer_is_none(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"error": 5, "not found": 6}')
    assert read_json(tmp_path / "a.json", limit_bytes=100) == {"error": 5, "not found": 6}


def test_dump_json_literal_text():
    text = dump_json({"b": "é", "a": None})
    assert text == '{\n  "b": "é",\n  "a": null\n}\n'
    assert json.loads(text) == {"b": "é", "a": None}


@pytest.mark.parametrize("text", [r'{"\ud800": 1}', r'{"a": ["\uDFFF"]}', r'"\udc00\ud800"'])
def test_half_a_character_is_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match=r"a.json has a text with half of a character"):
        read_json(path, limit_bytes=100, in_utf8=True)
    read_json(path, limit_bytes=100)  # a manifest holds paths


def test_a_character_written_as_two_escapes_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(r'["\ud83d\ude00", "\u00e4"]', "utf-8")
    assert read_json(path, limit_bytes=100, in_utf8=True) == ["\U0001f600", "\u00e4"]


def test_marks_within_a_text_take_no_memory_of_their_own():
    code = 'a[0] = {"b\\\\": [1, 2]};\n' * 200_000
    assert parse_json(json.dumps({"text": code})) == {"text": code}


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1 << 16])
def test_memory_is_reckoned_from_the_marks_outside_of_texts(monkeypatch, piece):
    monkeypatch.setattr(json_files, "_PIECE_CHARACTERS", piece)
    values = ["", "a", '"', "\\", '\\"', ',[{:"', "\\\\", ["x\\", {'"k"': "[", "\\": []}], 1, {}]
    text = json.dumps(values)
    for end in range(len(text) + 1):  # also of a text that is cut, but not in an escape
        bare, is_inside, is_escaped = "", False, False
        for mark in text[:end]:
            bare += "" if is_inside and mark != '"' else mark if not is_escaped else ""
            is_inside ^= mark == '"' and not is_escaped
            is_escaped = mark == "\\" and not is_escaped
        expected = sum(cost * bare.count(mark) for mark, cost in json_files._MARKS.items())
        assert is_escaped or json_files._reckon_exactly(text[:end]) == expected
