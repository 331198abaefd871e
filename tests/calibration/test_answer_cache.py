import json
import os

import pytest

from vacc_deploy.calibration import answer_cache
from vacc_deploy.calibration.answer_cache import AnswerCache, default_directory, hash_json
from vacc_deploy.errors import OutputError
from vacc_deploy.progress import SILENT, Progress

IDENTITY = {"weights": "w", "seed": 0}
PROMPTS, ANSWERS = [[1, 2], [3]], [[4, 5], []]


class Listener(Progress):
    def __init__(self):
        self.warnings = []

    def warn(self, message):
        self.warnings.append(message)


def open_cache(directory, identity=IDENTITY, progress=SILENT):
    cache = AnswerCache(directory, identity, vocab_size=10, max_tokens=3)
    cache.load(progress)
    return cache


def test_answers_come_back_and_no_other_file_stays(tmp_path):
    cache = open_cache(tmp_path / "a" / "b")
    assert cache.get(PROMPTS) is None
    cache.put(PROMPTS, ANSWERS)
    cache.put([[9]], [[1]])
    again = open_cache(tmp_path / "a" / "b")
    assert again.get(PROMPTS) == ANSWERS and again.get([[9]]) == [[1]]
    assert again.get([[1, 2]]) is None
    assert [path.name for path in again.path.parent.iterdir()] == [f"{again.digest[:24]}.jsonl"]


def test_another_identity_is_another_file(tmp_path):
    open_cache(tmp_path).put(PROMPTS, ANSWERS)
    other = open_cache(tmp_path, {**IDENTITY, "seed": 1})
    assert other.get(PROMPTS) is None
    other.put(PROMPTS, [[1], [1]])
    assert open_cache(tmp_path).get(PROMPTS) == ANSWERS


def test_the_same_answers_give_the_same_bytes(tmp_path):
    for name in ("1", "2"):
        open_cache(tmp_path / name).put(PROMPTS, ANSWERS)
    first, second = (open_cache(tmp_path / name).path.read_bytes() for name in ("1", "2"))
    assert first == second


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[: len(line) // 2],
        lambda line: line.replace("[4, 5]", "[4, 6]"),
        lambda line: "[" * 100_000,
        lambda line: "7",
        lambda line: "\x00\xe9",
    ],
)
def test_a_damaged_line_is_left_out_with_a_warning_and_written_anew(tmp_path, damage):
    cache = open_cache(tmp_path)
    cache.put(PROMPTS, ANSWERS)
    cache.put([[9]], [[1]])
    lines = cache.path.read_text("ascii").splitlines()
    lines[1] = damage(lines[1])
    cache.path.write_text("\n".join(lines) + "\n", "utf-8")
    listener = Listener()
    again = open_cache(tmp_path, progress=listener)
    assert again.get(PROMPTS) is None and again.get([[9]]) == [[1]]
    message = f"{cache.path} is damaged (lines: 1): these answers are written anew."
    assert listener.warnings == [message]
    again.put(PROMPTS, ANSWERS)
    assert open_cache(tmp_path, progress=listener).get(PROMPTS) == ANSWERS
    assert len(listener.warnings) == 1


@pytest.mark.parametrize("answers", [[[4, 10], []], [[-1], []], [[True], []], [[1] * 4, []], 5])
def test_answers_outside_the_bounds_are_damage_even_with_a_right_hash(tmp_path, answers):
    cache = open_cache(tmp_path)
    cache.put(PROMPTS, answers)
    listener = Listener()
    assert open_cache(tmp_path, progress=listener).get(PROMPTS) is None
    assert "is damaged (lines: 1)" in listener.warnings[0]


def test_a_file_of_another_identity_under_this_name_is_not_used(tmp_path):
    other = open_cache(tmp_path, {"weights": "stranger"})
    other.put(PROMPTS, ANSWERS)
    cache = open_cache(tmp_path)
    os.replace(other.path, cache.path)
    listener = Listener()
    assert open_cache(tmp_path, progress=listener).get(PROMPTS) is None
    assert "is damaged (lines: 2)" in listener.warnings[0]


def test_a_file_over_the_limit_is_not_read(tmp_path, monkeypatch):
    cache = open_cache(tmp_path)
    cache.put(PROMPTS, ANSWERS)
    monkeypatch.setattr(answer_cache, "MAX_CACHE_BYTES", 10)
    listener = Listener()
    assert open_cache(tmp_path, progress=listener).get(PROMPTS) is None
    assert len(listener.warnings) == 1


def test_answers_of_the_wrong_number_are_not_used(tmp_path):
    cache = open_cache(tmp_path)
    cache.put(PROMPTS, [[1]])
    assert cache.get(PROMPTS) is None


def test_a_directory_that_cannot_be_made_is_an_error_before_any_work(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("", "utf-8")
    with pytest.raises(OutputError, match="cannot be kept in .*file.*--answers-cache"):
        AnswerCache(blocker / "sub", IDENTITY, vocab_size=10, max_tokens=3)


def test_a_failed_write_leaves_the_old_file_and_no_partial_one(tmp_path, monkeypatch):
    cache = open_cache(tmp_path)
    cache.put(PROMPTS, ANSWERS)
    before = cache.path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(answer_cache.os, "fsync", fail)
    with pytest.raises(OutputError, match="No space left on device"):
        cache.put([[9]], [[1]])
    assert cache.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [cache.path]


def test_default_directory_follows_the_xdg_rules(monkeypatch):
    monkeypatch.setenv("HOME", "/home/u")
    assert str(default_directory({"XDG_CACHE_HOME": "/c"})) == "/c/vacc-deploy/answers"
    for environment in ({}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "relative"}):
        assert str(default_directory(environment)) == "/home/u/.cache/vacc-deploy/answers"


def test_hash_json_depends_on_the_value_alone():
    assert hash_json({"a": 1, "b": [2]}) == hash_json(json.loads('{"b": [2], "a": 1}'))
    assert hash_json([[1], [2]]) != hash_json([[1, 2]])
