"""The compatibility checks in this environment, and the page that is made of their reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from directories import write_directories
from run_matrix import INTRODUCTION, OLD_TORCH, VERSIONS, Environment, to_markdown

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER.parents[1] / "docs" / "compatibility.md"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    write_directories(folder / "directories")
    path = folder / "report.json"
    command = [sys.executable, str(FOLDER / "check_version.py"), str(folder / "directories")]
    result = subprocess.run(
        [*command, "--json", str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert path.exists(), result.stderr
    return dict(json.loads(path.read_text("utf-8")), status=result.returncode)


def test_every_check_passes_in_this_environment(report):
    failed = {name: result for name, result in report["checks"].items() if result["ok"] is False}
    assert failed == {}
    assert report["status"] == 0 and len(report["checks"]) >= 15


def test_the_page_is_of_these_checks_and_versions(report):
    text = PAGE.read_text("utf-8")
    assert text.startswith(INTRODUCTION)
    for name, result in report["checks"].items():
        assert f"* **{name}**: {result['about']}\n" in text
    for version in VERSIONS:
        assert f"| {version} | " in text


def test_markdown_names_what_failed_and_where():
    checks = {
        "load": {"ok": True, "known": False, "error": None, "about": "Loads."},
        "Llama": {"ok": False, "known": False, "error": "ValueError: no", "about": "Llama."},
        "save": {"ok": None, "known": False, "error": "no accelerate", "about": "Saves."},
    }
    report = {"python": "3.8", "torch": "2.1.0", "transformers": "4.37.2", "checks": checks}
    text = to_markdown([report, dict(report, transformers="4.40.2")])
    assert "| transformers | torch | Python | load | Llama | save |" in text
    assert "| 4.37.2 | 2.1.0 | 3.8 | yes | **no** | - |" in text
    assert "* Llama: no. ValueError: no\n  (transformers 4.37.2, torch 2.1.0, Python 3.8;" in text
    assert "* save: not applicable. no accelerate\n" in text


def test_environment_puts_its_packages_before_torch(tmp_path):
    plain = Environment("python", (3, 11), None, "4.37.2")
    assert [path.name for path in plain.folders(tmp_path)] == ["python3.11-transformers-4.37.2"]
    old = Environment("python", (3, 8), OLD_TORCH, "4.37.2")
    assert [path.name for path in old.folders(tmp_path)] == [
        "python3.8-torch-2.1.0-transformers-4.37.2",
        "python3.8-torch-2.1.0",
    ]


def test_environment_is_not_built_twice(tmp_path):
    environment = Environment("/no/such/python", (3, 11), None, "4.37.2")
    with pytest.raises(FileNotFoundError):
        environment.build(tmp_path)
    (folder,) = environment.folders(tmp_path)
    folder.mkdir()
    (folder / ".complete").touch()
    environment.build(tmp_path)
