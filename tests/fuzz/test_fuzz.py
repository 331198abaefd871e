"""Every reader with its corpus, with every input that was a finding, and with near-valid inputs."""

import importlib.util
import json
import subprocess
import sys

import pytest
from files import clear
from hypothesis import HealthCheck, Phase, given, settings
from sandbox import FindingError, Sandbox
from strategies import near_valid
from targets import CORPUS, HERE, REGRESSIONS, TARGETS

from vacc_deploy.errors import CheckpointError

NAMES = sorted(TARGETS)
_QUICK = settings(
    max_examples=20,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def box():
    box = Sandbox()
    yield box
    box.close()


@pytest.fixture(params=NAMES)
def target(request, box):
    target = TARGETS[request.param]
    function = target.load()
    clear(box.directory)
    # Once without the watch: a reader imports its libraries when it first needs them.
    for data in target.inputs():
        try:
            function(data, box.directory)
        except Exception as err:
            assert type(err).__module__ == "vacc_deploy.errors"
    yield lambda data: box.execute(function, data, allowed=target.allowed)
    clear(box.directory)


def test_inputs_of_the_corpus(target, request):
    for data in TARGETS[request.node.callspec.params["target"]].inputs():
        target(data)


def test_near_valid_inputs(target, request):
    name = request.node.callspec.params["target"]

    @_QUICK
    @given(near_valid(name))
    def check(data):
        target(data)

    check()


def test_corpus_is_small_and_belongs_to_the_targets():
    folders = [*CORPUS.iterdir(), *REGRESSIONS.iterdir()]
    assert {folder.name for folder in CORPUS.iterdir()} == set(NAMES)
    assert {folder.name for folder in folders} <= set(NAMES)
    assert sum(p.stat().st_size for folder in folders for p in folder.iterdir()) < 200_000


def test_table_adds_up_the_runs_below_a_directory(tmp_path):
    row = {"target": "c4", "executions": 1_000, "findings": 0, "peak": 90, "slowest": 0.5}
    other = {"target": "c4", "executions": 500, "findings": 2, "peak": 80, "slowest": 0.75}
    for name, rows in (
        ("a", {"c4": row}),
        ("b/c", {"c4": other, "text": {**row, "target": "text"}}),
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "totals.json").write_text(json.dumps(rows))
    (tmp_path / "page.md").write_text("a\n<!-- fuzzing: begin -->\nold\n<!-- fuzzing: end -->\nb\n")
    command = [sys.executable, str(HERE), "--work", ".", "--markdown", "page.md"]
    subprocess.run(command, cwd=tmp_path, check=True)
    lines = (tmp_path / "page.md").read_text().splitlines()
    assert [lines[0], *lines[-2:]] == ["a", "<!-- fuzzing: end -->", "b"]
    assert [line for line in lines if line.startswith("| ")][1:] == [
        "| c4 | 1,500 | 2 | 90 MB | 0.75 s |",
        "| text | 1,000 | 0 | 90 MB | 0.50 s |",
        "| all | 2,500 | 2 | 90 MB | 0.75 s |",
    ]


def test_watch_sees_a_file_outside(box, tmp_path):
    def read(data, directory):
        (directory / "a").write_bytes(data)
        try:
            (tmp_path / "a").open("w")
        except Exception:
            pytest.fail("the watch is an ordinary exception")

    with pytest.raises(FindingError, match="escape: open"):
        box.execute(read, b"")


def test_watch_sees_an_import_and_a_caught_escape(box):
    def import_new(data, directory):
        try:
            import this  # noqa: F401
        except BaseException:
            return

    with pytest.raises(FindingError, match="escape: import"):
        box.execute(import_new, b"")


def test_watch_sees_what_takes_too_long(box, monkeypatch):
    monkeypatch.setattr("sandbox.SECONDS", 0.0)
    with pytest.raises(FindingError, match="slow"):
        box.execute(lambda data, directory: sum(range(1_000_000)), b"")


def test_watch_sees_another_error_and_a_long_message(box):
    with pytest.raises(KeyError):
        box.execute(lambda data, directory: {}["a"], b"")

    def complain(data, directory):
        raise CheckpointError("a" * 50_001)

    with pytest.raises(FindingError, match="message: 50,001 characters"):
        box.execute(complain, b"")


def runner():
    spec = importlib.util.spec_from_file_location("fuzz_runner", HERE / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_of_each_place_in_the_code_the_shortest_input_is_kept(tmp_path):
    findings = runner().Findings(tmp_path)
    for data in (b"abc", b"a", b"ab"):
        try:
            raise KeyError("b")
        except KeyError as err:
            findings.add(err, data)
    (path,) = (path for path in tmp_path.iterdir() if not path.suffix)
    assert path.read_bytes() == b"a" and "KeyError" in path.with_suffix(".txt").read_text()


def test_the_fuzzer_runs_one_target_counts_and_goes_on(tmp_path):
    pytest.importorskip("atheris")
    command = [sys.executable, HERE, "--target", "adapter", "--runs", "30", "--work", tmp_path]
    for executions in (30, 60):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert f"| adapter | {executions} | 0 | " in done.stdout
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- fuzzing: begin -->\n-\n<!-- fuzzing: end -->\nb\n")
    subprocess.run([*command, "--markdown", page], check=True)
    assert "| all | 60 | 0 | " in page.read_text() and page.read_text().endswith("-->\nb\n")
