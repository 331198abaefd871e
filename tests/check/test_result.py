"""Findings as text, JSON and SARIF, and the exit code of the command."""

import json
import os
import pty
import shutil
import subprocess
import sys

import pytest
from checked import change, make_prepared
from checkpoint_builders import write_checkpoint
from click.testing import CliRunner
from texts import ROOT

from vacc_deploy.check.result import CheckedTarget, CheckResult
from vacc_deploy.check.run import check
from vacc_deploy.check.sarif import to_sarif
from vacc_deploy.cli import cli
from vacc_deploy.errors import CheckpointError, UsageError
from vacc_deploy.problems.catalog import all_rules
from vacc_deploy.problems.configuration import ATTENTION_KEY, VENDOR_MODELING
from vacc_deploy.problems.files import MISSING_FILE, NO_MANIFEST
from vacc_deploy.problems.problem import SEVERITIES
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize


def invoke(*args):
    return CliRunner().invoke(cli, ["check", *map(str, args)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_prepared(tmp_path_factory.mktemp("made"))


@pytest.fixture
def broken(made, tmp_path):
    directory = shutil.copytree(made, tmp_path / "x")
    change(directory / "config_vacc.json", _attn_implementation="sdpa")
    return directory


def result_of(*problems, **more):
    return CheckResult((CheckedTarget("x", "directory", problems),), **more)


def test_every_rule_says_what_why_and_what_to_do():
    rules = all_rules()
    assert len(rules) > 50
    for code, rule in rules.items():
        assert code == rule.code and len(code) == 5 and code[:2] == "VD" and code[2:].isdigit()
        assert rule.severity in SEVERITIES
        assert rule.title[-1] != "."
        assert rule.why.endswith(".") and rule.fix.endswith(".")


def test_no_two_rules_have_one_code():
    modules = {module for module in sys.modules if module.startswith("vacc_deploy.problems.")}
    # A rule that one module imports of another counts twice, and is the same record.
    by_code = {}
    for module in modules:
        for value in vars(sys.modules[module]).values():
            if type(value) is type(MISSING_FILE):
                assert by_code.setdefault(value.code, value) is value
    assert by_code == all_rules()


def test_the_worst_finding_comes_first_and_errors_fail():
    note = NO_MANIFEST.broken("there is no manifest")
    warning = VENDOR_MODELING.broken("m.py is the vendor's", where="m.py")
    error = MISSING_FILE.broken("a is missing", where="a")
    result = result_of(note, warning, error)
    assert [f.problem for f in result.findings()] == [error, warning, note]
    assert result.counts() == {"error": 1, "warning": 1, "note": 1}
    assert not result.passed
    assert result_of(note, warning).passed
    assert not result_of(note, warning, is_strict=True).passed
    assert result_of(note, is_strict=True).passed


def test_text_of_a_finding():
    problem = ATTENTION_KEY.broken("k: got 1, expected 2", where="f: k", got=1, expected=2)
    assert result_of(problem).to_text().splitlines() == [
        "VD213 error: _attn_implementation is not eager, or is misspelt",
        "  where     x: f: k",
        "  found     k: got 1, expected 2",
        "  got       1",
        "  expected  2",
        f"  why       {ATTENTION_KEY.why}",
        f"  fix       {ATTENTION_KEY.fix}",
        "",
        "Failed: x: 1 error.",
    ]
    assert result_of().to_text() == "Passed: x: nothing found."


def test_a_text_shows_the_first_of_many_and_json_all():
    problems = [MISSING_FILE.broken(f"f{i} is missing", where=f"f{i}") for i in range(9)]
    result = result_of(*problems)
    assert result.to_text().count("is missing\n") == 5 + 6  # the title is in each, too
    assert "and 4 more of this kind" in result.to_text()
    assert len(result.to_dict()["findings"]) == 9


def test_json_of_a_finding(broken):
    result = invoke(broken, "--json")
    assert result.exit_code == 3
    values = json.loads(result.stdout)
    assert values["passed"] is False
    (finding,) = [f for f in values["findings"] if f["code"] == "VD213"]
    assert finding == {
        "code": "VD213",
        "severity": "error",
        "title": ATTENTION_KEY.title,
        "target": str(broken),
        "where": "config_vacc.json: _attn_implementation",
        "line": None,
        "text": "_attn_implementation: got 'sdpa', expected 'eager'",
        "got": "'sdpa'",
        "expected": "'eager'",
        "why": ATTENTION_KEY.why,
        "fix": ATTENTION_KEY.fix,
        "fixable": True,
    }
    assert json.loads(invoke(broken, "--format", "json").stdout) == values


def test_sarif_names_rule_file_and_place(broken):
    result = invoke(broken, "--format", "sarif")
    assert result.exit_code == 3
    log = json.loads(result.stdout)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(all_rules())
    (found,) = [each for each in run["results"] if each["ruleId"] == "VD213"]
    assert rules[found["ruleIndex"]]["id"] == "VD213"
    assert found["level"] == "error"
    (location,) = found["locations"]
    uri = location["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == (broken / "config_vacc.json").as_uri()
    assert location["logicalLocations"] == [{"fullyQualifiedName": "_attn_implementation"}]
    assert all(each["level"] in SEVERITIES and each["message"]["text"] for each in run["results"])


def test_sarif_of_a_relative_target_stays_relative_and_escapes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "a b")
    (results,) = [run["results"] for run in to_sarif(check(["a b"]))["runs"]]
    uris = {
        r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].partition("/")[0]
        for r in results
    }
    assert uris == {"a%20b"}


def test_names_that_are_no_text_are_shown_in_every_form(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = shutil.copytree(made, tmp_path / os.fsdecode(b"a\xff\x9b"))
    change(directory / "config_vacc.json", **{"x\x9b\u202e\n\nPassed: all.": 1})
    for form in (("--format", "sarif"), ("--format", "json"), ("--json",)):
        result = invoke(directory.name, *form)
        assert result.exit_code == 3
        values = json.loads(result.stdout)
    uris = {
        found["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        for found in to_sarif(check([directory.name]))["runs"][0]["results"]
    }
    assert "a%FF%9B/config_vacc.json" in uris and values["counts"]["error"] == 1


def test_no_line_of_a_text_begins_with_what_a_stranger_wrote(tmp_path):
    name = "x\n\nPassed: all"
    problem = MISSING_FILE.broken(f"{name} is missing", where=name, got=name, expected=name)
    result = CheckResult((CheckedTarget(name, "directory", (problem,), (("a", "b"),)),))
    assert [line for line in result.to_text().splitlines() if line.startswith("Passed")] == []


def test_the_exit_code_and_the_verdict(made, broken):
    passed, failed = invoke(made), invoke(broken)
    assert (passed.exit_code, failed.exit_code) == (0, 3)
    # How many notes depends on the installed transformers.
    assert f"Passed: {made}: " in passed.stdout and "error" not in passed.stdout
    assert "Failed: " in failed.stdout


def test_several_targets_are_each_named(made, broken):
    result = invoke(made, broken, "--json")
    values = json.loads(result.stdout)
    assert [(t["target"], t["passed"]) for t in values["targets"]] == [
        (str(made), True),
        (str(broken), False),
    ]


def test_a_directory_given_twice_is_checked_once(made):
    assert len(check([str(made), f"{made}/."]).targets) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "Give a directory or a compile file as TARGET."),
        (("x", "--fix"), "--fix and --output go together"),
        (("x", "--output", "y"), "--fix and --output go together"),
        (("x", "--json", "--format", "sarif"), "contradict each other"),
        (("x", "--card", "VA99"), "is not one of"),
    ],
)
def test_wrong_usage(args, message):
    result = invoke(*args)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize("name", ["Distill-Qwen-7B", "owner/name"])
def test_a_repository_is_prepared_first(name):
    result = invoke(name)
    assert result.exit_code == 1
    assert result.output.endswith(f"Run first: vacc-deploy prepare {name}\n")


def test_a_target_that_is_not_there(tmp_path):
    result = invoke(tmp_path / "absent")
    assert result.exit_code == 1
    assert "does not exist" in result.output
    with pytest.raises(CheckpointError):
        check([str(tmp_path / "absent")])
    with pytest.raises(UsageError):
        check([])


@pytest.mark.parametrize("columns", ["160", "60"])
def test_a_terminal_gets_one_table(broken, columns):
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "vacc_deploy", "check", str(broken)]
    env = {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": columns, "PATH": "/usr/bin"}
    done = subprocess.Popen(command, stdout=follower, stderr=subprocess.DEVNULL, env=env)

    os.close(follower)
    data = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:
            break
        if not piece:
            break
        data += piece
    assert done.wait(60) == 3
    text = data.decode()
    assert "╭" in text and "VD213" in text and "what" in text
    assert "Failed: " in text


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_quantize_of_an_unprepared_checkpoint_writes_a_prepared_one(tmp_path, model_type):
    source = write_checkpoint(tmp_path / "raw", model_type=model_type)
    output = quantize(source, options=QuantizeOptions("rtn"), output=tmp_path / "q").output_dir
    counts = check([str(output)]).counts()
    assert (counts["error"], counts["warning"]) == (0, 0)
