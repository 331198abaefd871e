"""JSON arrays, read element by element."""

import io
import json
import time

import pytest

from vacc_deploy.datasets import json_array
from vacc_deploy.datasets.json_array import read_array


def read(data):
    return list(read_array(io.BytesIO(data if isinstance(data, bytes) else data.encode())))


VALUES = [{"a": "b" * n, "c": [1, -2.5, None, True, '\u4e2d\U0001f600\\"]}']} for n in range(40)]


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1 << 16])
@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"separators": (",", ":")}])
@pytest.mark.parametrize("is_ascii", [True, False])
def test_what_is_read_is_what_python_reads(monkeypatch, block, layout, is_ascii):
    monkeypatch.setattr(json_array, "_BLOCK_BYTES", block)
    for values in (VALUES, [], [1234567, 12.5, "", [], {}, None, False, -1e-7]):
        text = json.dumps(values, ensure_ascii=is_ascii, **layout)
        assert read(f" \n{text}\n ") == values
    assert read(b"\xef\xbb\xbf[1]") == [1]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is no array"),
        ('{"a": 1}', "it is no array"),
        ("[", "Expecting value"),
        ("[1", "it ends before its array does"),
        ("[1,", "Expecting value"),
        ("[1,]", "Expecting value"),
        ("[1 2]", "a comma is missing"),
        ("[1] 2", "something follows its array"),
        ('["a]', "Unterminated string"),
        ("[tru]", "Expecting value"),
        ('[{"a" 1}]', "Expecting ':' delimiter"),
        ("[" + "9" * 401 + "]", "it has a number of 401 digits"),
        ("[" * 5000, "it is nested too deep"),
        ("[" + "[" * 101 + "]" * 102, "nested more than 100 deep"),
        ("[1," + " " * (1 << 19) + "2]", "more than 262,144 blanks stand in a row"),
        ('[{"a":[' + "[]," * 1_000_000 + "1]}]", "its values would take some"),
    ],
)
def test_damage_and_hostile_text_are_named(text, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        read(text)
    assert len(str(caught.value)) < 200


def test_an_element_without_end_is_not_read_to_its_end():
    file = io.BytesIO(b'["' + b"a" * (40 << 20))
    with pytest.raises(ValueError, match="it is longer than 16,777,216 characters"):
        next(read_array(file))
    assert file.tell() < 36 << 20


def test_damage_in_a_long_text_is_found_where_it_is():
    file = io.BytesIO(b"[{x}," + b"1," * (4 << 20))
    with pytest.raises(ValueError, match="Expecting property name"):
        next(read_array(file))
    assert file.tell() <= 1 << 16


def test_the_time_for_a_long_element_grows_with_its_length():
    begun = time.process_time()
    read(b'["' + b"a" * (8 << 20) + b'"]')
    assert time.process_time() - begun < 2
