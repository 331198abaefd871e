"""The tokenizer contract in this environment, and the table of the page on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import transformers
from run_tokenizers import (
    BEGIN,
    END,
    FORMS,
    VERSIONS,
    cell,
    to_markdown,
    write_directories,
    wrong_verdicts,
)

FOLDER = Path(__file__).resolve().parent
PAGE = (FOLDER.parents[1] / "docs" / "tokenizer.md").read_text("utf-8")


def result(**changes):
    sound = {"passed": True, "class": "TokenizersBackend", "found": [], "codes": [], "right": True}
    return {**sound, **changes}


def test_the_contract_is_what_a_comparison_without_the_package_says(tmp_path):
    command = [
        sys.executable,
        str(FOLDER / "check_tokenizers.py"),
        str(write_directories(tmp_path)),
    ]
    ran = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["transformers"] == transformers.__version__
    assert sorted(report["results"]) == sorted(FORMS)
    assert wrong_verdicts([report]) == []


def test_the_page_has_every_version_and_finds_wrong_ones():
    table = PAGE.partition(BEGIN)[2].partition(END)[0]
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if line}
    assert set(VERSIONS) <= set(rows)
    assert "VD403" in rows["5.12.1"] and "VD40" not in rows["4.57.1"] + rows["5.0.0"]


def test_a_wrong_reading_that_is_not_found_is_told():
    missed, invented = result(right=False), result(passed=False, codes=["VD402"])
    report = {"transformers": "5.12.1", "results": {"a": missed, "b": invented, "c": result()}}
    lines = wrong_verdicts([report])
    assert [line.split(":")[0] for line in lines] == ["5.12.1, a", "5.12.1, b"]


def test_the_table_names_codes_and_class():
    bad = result(passed=False, right=False, codes=["VD403"], **{"class": "LlamaTokenizer"})
    assert cell(bad) == "**VD403** (LlamaTokenizer)" and cell(result()) == "holds"
    text = to_markdown([{"transformers": "5.12.1", "results": dict.fromkeys(FORMS, result())}])
    assert text.splitlines()[2] == "| 5.12.1 |" + " holds |" * len(FORMS)
