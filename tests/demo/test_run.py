"""The demo runs the real chain, and its figures are what the models really answered."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from vacc_deploy.checkpoint.manifest import MANIFEST_NAME, stored_layout
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.cli import cli
from vacc_deploy.demo import run as run_module
from vacc_deploy.demo.run import INT8_DIR, PREPARED_DIR, demo, write_yaml
from vacc_deploy.demo.task import is_held_out
from vacc_deploy.errors import OutputError
from vacc_deploy.outputs.output_rules import check_output
from vacc_deploy.vamc.compile_file import load_compile_file


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return demo(output=tmp_path_factory.mktemp("demo") / "out", num_problems=100)


def test_demo_answers_at_least_99_percent_with_both_models(result):
    assert result.accuracy_float >= 0.99
    assert result.accuracy_int8 >= 0.99


def test_demo_asks_only_held_out_sums(result):
    assert len(set(result.problems)) == len(result.problems) == 100
    assert all(is_held_out(problem.a, problem.b) for problem in result.problems)


def test_demo_example_is_a_long_sum_with_its_whole_thought(result):
    question, answer = result.example
    problem = max(result.problems, key=lambda problem: len(problem.question))
    assert question == problem.question
    assert len(question) == len("1234+5678=")
    assert answer == problem.response


def test_demo_leaves_the_chain_s_directories(result):
    assert not Checkpoint.open(result.output_dir / PREPARED_DIR).config.quantization_bit
    deployed = Checkpoint.open(result.output_dir / INT8_DIR)
    assert stored_layout(deployed.directory, deployed.config) == "vamc"
    compiled = load_compile_file(result.output_dir / f"{INT8_DIR}.yaml", config=deployed.config)
    assert compiled["backend"]["dtype"] == "int8"
    assert compiled["frontend"]["checkpoint"] == str(result.output_dir / INT8_DIR)


@pytest.mark.parametrize(
    ("output", "checkpoint"),
    [
        ("out", f"./out/{INT8_DIR}"),
        ("a/out", f"./a/out/{INT8_DIR}"),
        ("/data/out", f"/data/out/{INT8_DIR}"),
    ],
)
def test_demo_compile_file_names_the_directory_as_it_was_given(
    result, tmp_path, output, checkpoint
):
    config = Checkpoint.open(result.output_dir / INT8_DIR).config
    write_yaml(tmp_path, Path(output), config)
    compiled = load_compile_file(tmp_path / f"{INT8_DIR}.yaml", config=config)
    assert compiled["frontend"]["checkpoint"] == checkpoint


def test_demo_manifest_lists_everything_so_that_overwrite_spares_the_rest(result):
    out = result.output_dir
    listed = json.loads((out / MANIFEST_NAME).read_text())["files"]
    assert {name.partition("/")[0] for name in listed} == set(os.listdir(out)) - {MANIFEST_NAME}
    assert all((out / name).stat().st_size == entry["bytes"] for name, entry in listed.items())
    check_output(out, overwrite=True, source=None)
    for mine in (out / "mine.txt", out / PREPARED_DIR / "mine.txt"):
        mine.write_text("x")
        with pytest.raises(OutputError, match="mine.txt: not listed"):
            check_output(out, overwrite=True, source=None)
        mine.unlink()


def test_demo_verify_is_close_to_float(result):
    assert result.scores.mean_kl < 0.001
    assert result.scores.top1 > 0.99


def test_demo_gives_the_verdict_of_verify(result, monkeypatch):
    assert result.failures == () and "\nPassed: mean KL 0.000" in result.to_text()
    assert result.to_dict()["verify"]["passed"] is True
    failed = replace(result, failures=("mean KL is 1",))
    assert "\nFailed: mean KL is 1\n" in failed.to_text() and "Passed" not in failed.to_text()
    assert failed.to_dict()["verify"]["failures"] == ["mean KL is 1"]
    monkeypatch.setattr(run_module, "demo", lambda **options: failed)
    assert CliRunner().invoke(cli, ["demo"]).exit_code == 3


def test_demo_text_names_figures_files_and_next_step(result):
    text = result.to_text()
    assert f"{result.accuracy_int8:.1%}" in text
    assert str(result.output_dir / INT8_DIR) in text
    assert "vacc-deploy prepare --model Distill-Qwen-1.5B" in text
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["num_problems"] == 100


def test_demo_refuses_an_existing_output(result):
    run = CliRunner().invoke(cli, ["demo", "--output", str(result.output_dir)])
    assert run.exit_code == 1
    assert "--overwrite" in run.output
