"""Files of questions with their results."""

import json

import pytest

from vacc_deploy.datasets.problems import MathProblem, read_problems
from vacc_deploy.errors import CalibrationError


def write_lines(path, *lines):
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines), "utf-8")
    return path


def test_lines_and_an_array_give_the_same_problems_and_numbers_are_results(tmp_path):
    records = [{"question": "1+1?", "answer": 2}, {"question": "½?", "answer": "0.5", "id": 7}]
    lines = write_lines(tmp_path / "a.jsonl", *records)
    array = write_lines(tmp_path / "a.json", json.dumps(records))
    assert read_problems(lines) == read_problems(array)
    assert read_problems(lines) == [MathProblem("1+1?", "2"), MathProblem("½?", "0.5")]


@pytest.mark.parametrize(
    ("number", "result"),
    [("1e-05", "0.00001"), ("-2.5E3", "-2500.0"), ("1" + "0" * 399, "1" + "0" * 399)],
)
def test_a_number_is_a_result_with_all_its_digits(tmp_path, number, result):
    path = write_lines(tmp_path / "a.jsonl", f'{{"question": "1?", "answer": {number}}}')
    assert [problem.answer for problem in read_problems(path)] == [result]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question": "1+1?"}, r'line 2 has no text under "answer"'),
        ({"question": " ", "answer": "2"}, r'line 2 has a blank text under "question"'),
        ({"question": "1?", "answer": True}, r'line 2 has no text under "answer": got bool'),
        ('{"question": "0/0?", "answer": NaN}', r'line 2 has nan under "answer"'),
        ('{"question": "1/0?", "answer": 1e400}', r'line 2 has inf under "answer"'),
        ("{", r"line 2 cannot be read"),
        ("[1]", r"line 2 holds list"),
    ],
)
def test_an_odd_record_is_never_left_out(tmp_path, line, message):
    path = write_lines(tmp_path / "a.jsonl", {"question": "1+1?", "answer": "2"}, line)
    with pytest.raises(CalibrationError, match=message):
        read_problems(path)


def test_a_file_without_a_question_is_refused(tmp_path):
    with pytest.raises(CalibrationError, match="holds no question"):
        read_problems(write_lines(tmp_path / "a.jsonl", "", " ", ""))
    with pytest.raises(CalibrationError, match="does not exist"):
        read_problems(tmp_path / "b.jsonl")
