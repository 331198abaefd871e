"""``quantize`` on calibration files as people have them."""

import json

import pytest
from checkpoint_builders import write_checkpoint
from click.testing import CliRunner
from texts import read_json

from vacc_deploy.cli import cli

TABLE = "id,question,A,B,C,D,answer\n" + "".join(f"{n},q{n},1,2,3,4,A\n" for n in range(40))


@pytest.fixture
def source(tmp_path):
    return write_checkpoint(tmp_path / "model")


def run(source, calibration, *arguments):
    common = ("--calibration", calibration, "--num-samples", "10", "--seq-len", "32")
    return CliRunner().invoke(cli, ["quantize", str(source), *common, *map(str, arguments)])


def write_records(path, num_odd):
    records = [{"prompt": f"question {n}", "response": f"answer {n}"} for n in range(100)]
    for number in range(num_odd):
        records[11 + number]["response"] = number
    path.write_text(json.dumps(records))
    return path


def test_odd_records_are_told_in_text_json_and_report(source, tmp_path):
    path = write_records(tmp_path / "chat.json", 3)
    warning = (
        "chat.json: 3 odd records were skipped, the first: record 12 has no text under "
        '"response": got int'
    )
    result = run(source, f"chat={path}")
    assert result.exit_code == 0, result.output
    assert warning in result.stdout and warning in result.stderr
    report = read_json(tmp_path / "model-int8" / "quantize_report.json")
    assert warning in report["warnings"]
    assert report["calibration"]["sources"][0]["records_skipped"] == 3
    result = run(source, f"chat={path}", "--dry-run", "--json", "--output", tmp_path / "o")
    plan = json.loads(result.stdout)
    assert warning in plan["warnings"]
    assert plan["calibration"]["sources"][0]["records_skipped"] == 3


def test_too_many_odd_records_end_with_1_and_name_the_first(source, tmp_path):
    path = write_records(tmp_path / "chat.json", 6)
    result = run(source, f"chat={path}", "--dry-run")
    assert result.exit_code == 1
    assert (
        f'{path}, record 12 has no text under "response": got int. Of the first 100 records 6 are '
        "odd; at most 5 % are skipped."
    ) in result.stderr


def test_a_folder_of_c_eval_is_quantized_and_resumed(source, tmp_path):
    folder = tmp_path / "ceval-exam"
    (folder / "val").mkdir(parents=True)
    (folder / "val/law_val.csv").write_text(TABLE, "utf-8")
    result = run(source, f"ceval={folder}")
    assert result.exit_code == 0, result.output
    assert "calibration   320 tokens (ceval 10 rows)" in result.stdout
    result = run(source, f"ceval={folder}", "--resume")
    assert "Already finished; all file hashes verified." in result.stdout
    (folder / "val/law_val.csv").write_text(TABLE.replace(",A\n", ",B\n"), "utf-8")
    result = run(source, f"ceval={folder}", "--resume")
    assert result.exit_code == 1
    assert "calibration file ceval-exam: " in result.stderr
