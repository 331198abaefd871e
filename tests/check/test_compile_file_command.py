"""``vacc-deploy check`` on compile files: text, JSON, SARIF, and mended copies."""

import errno
import json
import os

import pytest
from click.testing import CliRunner
from compile_files import VENDOR_FP16, change

from vacc_deploy.check import compile_file, directory
from vacc_deploy.cli import cli


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A compile file with a length that vamc does not take, in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.yaml"
    path.write_text(VENDOR_FP16.replace("[1024]", "[1000]"))
    return path


def invoke(*args):
    return CliRunner().invoke(cli, ["check", *map(str, args)])


def test_the_text_names_file_line_and_key(file):
    result = invoke("a.yaml")
    assert result.exit_code == 3
    assert "  where     a.yaml:8: frontend.shape.input_ids\n" in result.stdout
    assert result.stdout.endswith("Failed: a.yaml: 1 error, 1 warning, 2 notes.\n")


def test_json_has_the_line_and_the_memory(file):
    values = json.loads(invoke("a.yaml", "--card", "VA16", "--bandwidth", 100, "--json").stdout)
    (finding,) = [f for f in values["findings"] if f["code"] == "VD610"]
    assert (finding["where"], finding["line"]) == ("frontend.shape.input_ids", 8)
    (target,) = values["targets"]
    assert target["memory"]["memory_bandwidth"] == 100e9
    assert target["memory"]["max_tokens_per_second"] > 0
    assert (
        "at 100 GB/s no more than" in invoke("a.yaml", "--card", "VA16", "--bandwidth", 100).stdout
    )
    wrong = invoke("a.yaml", "--bandwidth", 100)
    assert wrong.exit_code == 2 and "--bandwidth goes with --card only" in wrong.output


def test_sarif_names_the_line(file):
    (run,) = json.loads(invoke("a.yaml", "--format", "sarif").stdout)["runs"]
    (found,) = [each for each in run["results"] if each["ruleId"] == "VD610"]
    (location,) = found["locations"]
    assert location["physicalLocation"] == {
        "artifactLocation": {"uri": "a.yaml"},
        "region": {"startLine": 8},
    }
    assert location["logicalLocations"] == [{"fullyQualifiedName": "frontend.shape.input_ids"}]


def test_fix_writes_a_mended_copy_and_checks_it(file):
    before = file.read_text()
    result = invoke("a.yaml", "--fix", "--output", "b.yaml")
    assert result.exit_code == 0
    assert "Fixed: frontend.shape.input_ids: was [1000, 2048], is [1008, 2048]" in result.stdout
    assert "Written: b.yaml" in result.stdout and "Passed: b.yaml" in result.stdout
    assert file.read_text() == before
    assert (
        "name: DeepSeek-R1-Distill-Qwen-7B-fp16-tp4-1008-2048\n"
        in file.with_name("b.yaml").read_text()
    )
    again = invoke("a.yaml", "--fix", "--output", "b.yaml")
    assert again.exit_code == 1 and "exists already" in again.output


def test_what_cannot_be_mended_leaves_nothing(file):
    file.write_text("- 1\n")
    result = invoke("a.yaml", "--fix", "--output", "b.yaml")
    assert result.exit_code == 1 and "a.yaml cannot be mended" in result.output
    assert not file.with_name("b.yaml").exists()


def test_a_file_that_is_not_there(file):
    result = invoke("absent.yaml")
    assert (result.exit_code, result.output.count("absent.yaml does not exist.")) == (1, 1)


def test_a_card_without_a_compile_file_is_wrong_usage(file):
    result = invoke(file.parent, "--card", "VA16")
    assert result.exit_code == 2
    assert "--card needs a compile file as TARGET" in result.output


def test_a_directory_that_is_closed_to_us_is_a_finding(file, monkeypatch):
    (file.parent / "closed").mkdir()

    def refuse(directory):
        raise PermissionError(errno.EACCES, "Permission denied", str(directory / "config.json"))

    monkeypatch.setattr(compile_file, "read_model", refuse)
    monkeypatch.setattr(directory, "examine", refuse)
    file.write_text(change(VENDOR_FP16, frontend__checkpoint=str(file.parent / "closed")))
    result = invoke("a.yaml", "--json")
    assert result.exit_code == 3
    found = {each["code"]: each["text"] for each in json.loads(result.stdout)["findings"]}
    assert "closed cannot be read: Permission denied" in found["VD705"]
    assert "config.json cannot be read: Permission denied" in found["VD100"]


def test_a_pipe_is_not_waited_for(file):
    os.mkfifo("b.yaml")
    result = invoke("b.yaml")
    assert result.exit_code == 3
    assert "b.yaml is a named pipe, not a file" in result.stdout


def test_a_number_that_cannot_be_written_is_not_mended(file):
    file.write_text(VENDOR_FP16.replace("tp: 4", f"tp: 0x{'f' * 4000}"))
    result = invoke("a.yaml", "--fix", "--output", "b.yaml")
    assert result.exit_code == 1
    assert "a.yaml cannot be mended: it holds a number of thousands of digits" in result.output
    assert [path.name for path in file.parent.iterdir()] == ["a.yaml"]
