"""Commands that begin with stdin, stdout or stderr closed, as some services start them."""

import json
import os
import subprocess
import sys

import pytest
from texts import ROOT

from vacc_deploy import cli

DEMO = ROOT / "vacc_deploy/data/demo_model"
CLOSINGS = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"]


def run(script, *words):
    words = ["bash", "-c", script, "bash", sys.executable, *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("closing", CLOSINGS)
def test_a_command_does_its_work(tmp_path, closing):
    words = ["-m", "vacc_deploy", "prepare", DEMO, "--output", tmp_path / "out"]
    result = run(f'"$@" {closing}', *words)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out/vacc_deploy.json").is_file()


def test_the_object_of_json_tells_the_error_that_happened(tmp_path):
    result = run('"$@" 2>&-', "-m", "vacc_deploy", "prepare", tmp_path / "none", "--json")
    assert result.returncode == 1
    assert "does not exist" in json.loads(result.stdout)["error"]["message"]


@pytest.mark.parametrize("closing", CLOSINGS)
def test_no_file_gets_the_descriptor_of_a_stream(tmp_path, closing):
    """What a library prints there would be written into it; children have the three too."""
    code = """
import os, subprocess, sys
from vacc_deploy.cli import streams
streams.open_closed()
held = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
assert held > 2
for name in ("stdin", "stdout", "stderr"):
    assert not getattr(sys, name).isatty()
print("a", file=sys.stderr)
os.write(2, b"b")
subprocess.run([sys.executable, "-c", "import os; [os.fstat(n) for n in range(3)]"], check=True)
os.write(held, b"done")
"""
    run(f'"$@" {closing}', "-c", code, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "done"


def test_an_interruption_keeps_its_code_where_stderr_takes_nothing(monkeypatch):
    def interrupt(**options):
        raise KeyboardInterrupt

    def refuse(*args, **options):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(cli.cli, "main", interrupt)
    monkeypatch.setattr(cli.click, "echo", refuse)
    monkeypatch.setattr(cli.SignalGuard, "install", lambda self: None)
    monkeypatch.setattr(cli.threading, "excepthook", cli.threading.excepthook)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 130
