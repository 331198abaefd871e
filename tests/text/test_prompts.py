"""Prompts from files: what is read, and how a wrong file is named."""

import pytest

from vacc_deploy.bounds import PROMPT_BYTES
from vacc_deploy.errors import PromptError
from vacc_deploy.text.prompts import parse_prompt, read_prompt_file


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"one\n\ntwo\n", "one\n\ntwo"),
        (b"\xef\xbb\xbfone\r\n", "one"),
        ("你好\n\n".encode(), "你好\n"),
    ],
)
def test_a_whole_file_is_one_prompt_without_its_last_line_end(tmp_path, data, expected):
    path = tmp_path / "p.txt"
    path.write_bytes(data)
    assert read_prompt_file(path) == [expected]


def test_json_lines_are_many_prompts(tmp_path):
    path = tmp_path / "p.jsonl"
    # A line separator of Unicode within a text ends no line.
    path.write_text('{"prompt": "a\\nb", "id": 1}\n\n{"prompt": "c\u2028d"}\r\n', "utf-8")
    assert read_prompt_file(path) == ["a\nb", "c\u2028d"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.txt", b"", "p.txt holds no text. Write the prompt into it."),
        ("p.txt", b"\xff\xfe", "p.txt is not UTF-8: invalid start byte at byte 0. Convert it"),
        ("p.jsonl", b"\n", "p.jsonl holds no text"),
        ("p.jsonl", b'{"prompt": "a"}\n{', "p.jsonl, line 2 is not JSON: .*expected {"),
        ("p.jsonl", b'{"text": "a"}', 'line 1 has no text under "prompt", expected'),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": " "}', 'line 2 has a blank text under "prompt"'),
        ("p.jsonl", b'["a"]', 'line 1 has no text under "prompt"'),
        ("p.jsonl", b"[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PromptError, match=message):
        read_prompt_file(tmp_path / name)


def test_a_missing_and_a_large_file_are_named(tmp_path):
    with pytest.raises(PromptError, match="nosuch.txt cannot be read: No such file"):
        read_prompt_file(tmp_path / "nosuch.txt")
    with (tmp_path / "large.txt").open("wb") as file:
        file.truncate(PROMPT_BYTES + 1)
    with pytest.raises(PromptError, match="large.txt holds more than 16,777,216 bytes"):
        read_prompt_file(tmp_path / "large.txt")
    with pytest.raises(PromptError, match="stdin holds more than 16,777,216 bytes"):
        parse_prompt(b"a" * (PROMPT_BYTES + 1), "stdin")
