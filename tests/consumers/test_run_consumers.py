"""``make consumers`` with a script in a consumer's place: no environment, no network."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import run_consumers
from checkpoint_builders import write_checkpoint
from consumer_table import (
    BEGIN,
    END,
    EQUAL,
    REFUSES,
    ROUNDS,
    Row,
    describe,
    name_versions,
    put_table,
    to_markdown,
)
from run_consumers import CONSUMERS, Consumer, read_answer, texts_as_ids
from texts import ROOT

from vacc_deploy.formats.layouts import LAYOUTS

EXPECTED = [[1, 2, 3], [4, 5, 6]]
# Answers as our own loader does, but for a layout that it refuses, one at which it breaks and one
# that it gets wrong.
FAKE = """
import sys
from importlib import metadata
from pathlib import Path
from vacc_deploy.reference.loader import load_model
from consumer_io import continue_all, respond

def load(directory):
    print("loading", flush=True)
    if Path(directory).name == "int8":
        raise ValueError("int8 | is not for us")
    return load_model(Path(directory))

def go_on(model, request):
    if request["layout"] == "vamc":
        sys.exit("Traceback ...\\nKeyError: 'vamc'")
    found = continue_all(model, request)
    if request["layout"] == "int-quantized":
        found["tokens"][1][2] += 1
    return {**found, "note": "slow"}

respond("click", load, go_on, ("torch",))
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A consumer in this environment."""
    script = tmp_path / "check_fake.py"
    script.write_text(FAKE, "utf-8")
    monkeypatch.setattr(run_consumers, "NUM_TOKENS", 3)
    path = f"{ROOT}:{ROOT / 'tests' / 'consumers'}"
    formats = {"gptq": EQUAL, "compressed-tensors": EQUAL, "int-quantized": ROUNDS}
    formats |= {"int8": REFUSES, "vamc": EQUAL}
    return Consumer("fake", formats, environment={"PYTHONPATH": path}, script=script)


def test_a_run_gives_a_row_for_each_layout_and_goes_on_after_a_refusal(tmp_path, fake, capsys):
    model = write_checkpoint(tmp_path / "tiny")
    work = tmp_path / "work"
    work.mkdir()
    rows = run_consumers.run_consumers([model], [fake], tmp_path, work)
    not_written, equal, rounding, refused, failed = rows
    assert not_written.outcome.startswith("not written: The gptq layout holds linears")
    version = f"{metadata.version('click')} (torch {metadata.version('torch')})"
    words = "12 of 12 tokens equal; slow"
    assert equal == Row("compressed-tensors", "fake", version, "tiny", words)
    assert rounding.outcome == (
        "rounds activations: 11 of 12 tokens equal; first difference of text 2 at token 3; slow"
    )
    assert refused.outcome == "refused: ValueError: int8 \\| is not for us"
    assert failed.outcome == "failed: ended with 1: KeyError: 'vamc'"
    assert [row.is_expected for row in rows] == [True, True, True, True, False]
    assert "tiny, compressed-tensors, fake: 12 of 12 tokens equal" in capsys.readouterr().err
    assert list(work.glob("tiny*")) == []
    assert str(tmp_path) not in to_markdown(rows)


SOME = "4 of 6 tokens equal; first difference of text 2 at token 2"
TWO = "2 of 6 tokens equal; first difference of text 1 at token 1, of text 2 at token 3"


@pytest.mark.parametrize(
    ("expectation", "answer", "outcome", "is_expected"),
    [
        (EQUAL, {"tokens": EXPECTED}, "6 of 6 tokens equal", True),
        (EQUAL, {"tokens": [[1, 2, 3], [4, 9, 6]]}, SOME, False),
        (EQUAL, {"tokens": [[7, 2, 3], [4, 5, 7]]}, TWO, False),
        (EQUAL, {"tokens": EXPECTED, "note": "but slow"}, "6 of 6 tokens equal; but slow", True),
        (EQUAL, {"tokens": [[1, 2, 3]]}, "answered [3] tokens, [3, 3] asked", False),
        (ROUNDS, {"tokens": [[1, 2], [4, 5, 6]]}, "answered [2, 3] tokens, [3, 3] asked", False),
        (ROUNDS, {"tokens": [[1, 2, 3], [4, 9, 6]]}, f"rounds activations: {SOME}", True),
        (EQUAL, {"refused": "no\n kernel"}, "refused: no kernel", False),
        (ROUNDS, {"refused": "no\n kernel"}, "refused: no kernel", False),
        (REFUSES, {"refused": "no\n kernel"}, "refused: no kernel", True),
        (REFUSES, {"tokens": EXPECTED}, "6 of 6 tokens equal", False),
        (REFUSES, {"failed": "no answer"}, "failed: no answer", False),
    ],
)
def test_what_an_answer_showed(expectation, answer, outcome, is_expected):
    assert describe(expectation, EXPECTED, answer) == (outcome, is_expected)


@pytest.mark.parametrize(("is_expected", "status"), [(True, 0), (False, 1)])
def test_the_status_tells_what_is_not_as_expected(monkeypatch, capsys, is_expected, status):
    row = Row("gptq", "gptqmodel", "1", "m", "0 of 6 tokens equal", is_expected)
    monkeypatch.setattr(run_consumers, "run_consumers", lambda *_: [row])
    monkeypatch.setattr(sys, "argv", ["run_consumers.py", "--model", "m"])
    assert run_consumers.main() == status
    told = capsys.readouterr()
    assert "0 of 6 tokens equal" in told.out
    assert ("not as expected: m, gptq, gptqmodel" in told.err) is not is_expected


@pytest.mark.parametrize("is_changed", [False, True])
def test_ids_of_texts_are_compared(tmp_path, fake, monkeypatch, is_changed):
    model = write_checkpoint(tmp_path / "tiny")
    ids = texts_as_ids(model)
    ids[0][0] += is_changed
    tokens = [[1, 2, 3]] * 4
    monkeypatch.setattr(run_consumers, "expected_tokens", lambda *_: tokens)
    monkeypatch.setattr(Consumer, "check", lambda *_: {"tokens": tokens, "ids": ids})
    consumer = Consumer("fake", {"compressed-tensors": EQUAL})
    (work := tmp_path / "work").mkdir()
    (row,) = run_consumers.run_consumers([model], [consumer], tmp_path, work)
    words = "12 of 12 tokens equal"
    assert row.outcome == (f"{words}; other ids of a text" if is_changed else words)
    assert row.is_expected is not is_changed


def finished(stdout="", stderr="", code=0):
    return subprocess.CompletedProcess([], code, stdout, stderr)


def test_the_answer_is_the_last_line_of_json():
    noise = '{"progress": 1}\n{broken\n'
    line = json.dumps({"tokens": EXPECTED})
    assert read_answer(finished(f"{noise}{line}\nbye\n")) == {"tokens": EXPECTED}
    assert read_answer(finished(noise, "a\nKilled\n", -9)) == {"failed": "ended with -9: Killed"}
    assert read_answer(finished()) == {"failed": "ended with 0: nothing was said"}


def test_an_answer_that_does_not_come_is_a_failure(tmp_path, monkeypatch):
    (tmp_path / "slow.py").write_text("import time; time.sleep(60)", "utf-8")
    monkeypatch.setattr(run_consumers, "TIMEOUT", 0.2)
    consumer = Consumer("slow", {}, script=tmp_path / "slow.py")
    answer = consumer.check(Path(sys.executable), {}, tmp_path)
    assert answer == {"failed": "no answer in 0.2 seconds"}


def test_versions_in_words():
    answer = {"version": "1.0", "versions": {"torch": "2.13.0+cpu", "x": "3"}}
    assert name_versions(answer) == "1.0 (torch 2.13.0+cpu, x 3)"
    assert name_versions({"failed": "it crashed"}) == "?"


def test_the_table_goes_between_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"a\n{BEGIN}\nold\n{END}\nb\n", "utf-8")
    row = Row("gptq", "fake", "1", "tiny", "6 of 6 tokens equal")
    put_table(page, to_markdown([row]))
    lines = page.read_text("utf-8").splitlines()
    assert lines[4] == "| `gptq` | fake | 1 | tiny | 6 of 6 tokens equal |"
    assert (lines[0], lines[-1], len(lines)) == ("a", "b", 7)
    page.write_text("a\nb\n", "utf-8")
    with pytest.raises(ValueError, match="lacks the lines"):
        put_table(page, "x")


def test_every_consumer_has_its_script_and_the_page_its_rows():
    page = (ROOT / "docs" / "formats.md").read_text("utf-8")
    table = page.partition(BEGIN)[2].partition(END)[0]
    for consumer in CONSUMERS:
        script = f"check_{consumer.name.replace('-', '_')}.py"
        assert (ROOT / "tests" / "consumers" / script).is_file()
        assert set(consumer.formats) <= set(LAYOUTS)
        for layout in consumer.formats:
            assert re.search(rf"^\| `{layout}` \| {consumer.name} \| ", table, re.MULTILINE)


def test_a_missing_environment_is_built_once_and_in_order(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda call, **_: calls.append(call))
    consumer = Consumer("x-y", {}, (("torch",), ("x", "z")), ("torchvision",))
    (tmp_path / "x-y").mkdir()
    with pytest.raises(FileNotFoundError):  # the folder is made by venv, which is not run here
        consumer.python(tmp_path)
    assert [call[1:4] for call in calls] == [
        ["-m", "venv", str(tmp_path / "x-y")],
        *(["-m", "pip", verb] for verb in ("install", "install", "uninstall")),
    ]
    assert calls[2][-2:] == ["x", "z"] and calls[3][-1] == "torchvision"
    (tmp_path / "x-y").mkdir()
    (tmp_path / "x-y" / ".complete").touch()
    calls.clear()
    assert consumer.python(tmp_path) == tmp_path / "x-y" / "bin" / "python" and not calls
