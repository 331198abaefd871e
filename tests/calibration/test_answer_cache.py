import os

import pytest
from closed_files import OWNER, as_user, open_directory
from doubles import Recorder

from vacc_deploy.bounds import ANSWERS_BYTES
from vacc_deploy.calibration.answer_cache import AnswerCache, default_directory
from vacc_deploy.errors import OutputError
from vacc_deploy.progress import SILENT

IDENTITY = {"weights": "w", "seed": 0}
PROMPTS, ANSWERS = [[1, 2], [3]], [[4, 5], []]


def open_cache(directory, identity=IDENTITY, progress=SILENT):
    return AnswerCache(directory, identity, vocab_size=10, max_tokens=3, progress=progress)


def is_damaged(directory):
    """Return whether the answers are not used, with a warning that names their file."""
    recorder = Recorder()
    cache = open_cache(directory, progress=recorder)
    assert cache.get(PROMPTS) is None
    path = cache.path_of(PROMPTS)
    return recorder.warnings == [f"{path} is damaged: its answers are written anew."]


def test_answers_come_back_and_no_other_file_stays(tmp_path):
    cache = open_cache(tmp_path / "a" / "b")
    assert cache.get(PROMPTS) is None
    cache.put(PROMPTS, ANSWERS)
    cache.put([[9]], [[1]])
    again = open_cache(tmp_path / "a" / "b")
    assert again.get(PROMPTS) == ANSWERS and again.get([[9]]) == [[1]]
    assert again.get([[1, 2]]) is None
    files = {again.path_of(PROMPTS), again.path_of([[9]])}
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == files


def test_another_identity_is_another_file(tmp_path):
    open_cache(tmp_path).put(PROMPTS, ANSWERS)
    other = open_cache(tmp_path, {**IDENTITY, "seed": 1})
    assert other.get(PROMPTS) is None
    other.put(PROMPTS, [[1], [1]])
    assert open_cache(tmp_path).get(PROMPTS) == ANSWERS


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("[4, 5]", "[4, 6]"),
        lambda text: "[" * 100_000,
        lambda text: "7",
        lambda text: "{}",
        lambda text: "\x00\xe9",
        lambda text: text + " " * ANSWERS_BYTES,
    ],
)
def test_a_damaged_file_is_not_used_and_written_anew(tmp_path, damage):
    cache = open_cache(tmp_path)
    cache.put(PROMPTS, ANSWERS)
    cache.put([[9]], [[1]])
    path = cache.path_of(PROMPTS)
    path.write_text(damage(path.read_text("ascii")), "utf-8")
    assert is_damaged(tmp_path)
    assert open_cache(tmp_path).get([[9]]) == [[1]]
    cache.put(PROMPTS, ANSWERS)
    assert open_cache(tmp_path).get(PROMPTS) == ANSWERS


@pytest.mark.parametrize(
    "answers", [[[4, 10], []], [[-1], []], [[True], []], [[1] * 4, []], [5, 5], 5, [[1]]]
)
def test_answers_outside_the_bounds_are_damage_even_with_a_right_hash(tmp_path, answers):
    open_cache(tmp_path).put(PROMPTS, answers)
    assert is_damaged(tmp_path)


def test_a_file_of_other_settings_or_prompts_under_this_name_is_not_used(tmp_path):
    cache, other = open_cache(tmp_path), open_cache(tmp_path, {"weights": "stranger"})
    for stranger, prompts in ((other, PROMPTS), (cache, [[7], [8]])):
        stranger.put(prompts, ANSWERS)
        os.replace(stranger.path_of(prompts), cache.path_of(PROMPTS))
        assert is_damaged(tmp_path)


def test_a_file_that_cannot_be_read_is_a_warning(tmp_path):
    recorder = Recorder()
    cache = open_cache(tmp_path, progress=recorder)
    cache.path_of(PROMPTS).mkdir()
    assert cache.get(PROMPTS) is None
    assert "cannot be read (Is a directory)" in recorder.warnings[0]


def test_a_directory_that_cannot_be_made_is_an_error_before_any_work(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("", "utf-8")
    with pytest.raises(OutputError, match="cannot be saved in .*file.*--answers-cache"):
        open_cache(blocker / "sub")


def test_a_directory_of_another_user_is_told_with_its_mode_and_owner():
    with open_directory() as folder:
        cache = open_cache(folder)
        directory = cache.path_of(PROMPTS).parent
        directory.chmod(0o555)
        with as_user():
            for write in (lambda: open_cache(folder), lambda: cache.put(PROMPTS, ANSWERS)):
                with pytest.raises(OutputError) as caught:
                    write()
                assert str(caught.value).startswith(
                    f"The answers cannot be saved in {directory}: Permission denied ({directory} "
                    f"has mode 0555, owned by {OWNER}). Name a directory that can be written with "
                    "--answers-cache, or "
                )
        directory.chmod(0o755)


def test_a_failed_write_is_an_error_and_leaves_no_partial_file(tmp_path):
    cache = open_cache(tmp_path)
    cache.path_of(PROMPTS).mkdir()
    with pytest.raises(OutputError, match="--answers-cache"):
        cache.put(PROMPTS, ANSWERS)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_default_directory_follows_the_xdg_rules(monkeypatch):
    monkeypatch.setenv("HOME", "/home/u")
    assert str(default_directory({"XDG_CACHE_HOME": "/c"})) == "/c/vacc-deploy/answers"
    for environment in ({}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "relative"}):
        assert str(default_directory(environment)) == "/home/u/.cache/vacc-deploy/answers"
