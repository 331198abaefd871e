"""The demo runs the real chain, and its figures are what the models really answered."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from vacc_deploy import demo as demo_module
from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.cli import cli
from vacc_deploy.compile_yaml import load_compile_file
from vacc_deploy.demo import INT8, PREPARED, _accuracy, demo
from vacc_deploy.demo_task import Problem, is_held_out, sample_problems


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_module, "NUM_PROBLEMS", 100)
        return demo(output=tmp_path_factory.mktemp("demo") / "out")


def test_demo_answers_at_least_99_percent_with_both_models(result):
    assert result.accuracy_float >= 0.99
    assert result.accuracy_int8 >= 0.99


def test_demo_asks_only_held_out_sums():
    assert all(is_held_out(p.a, p.b) for p in sample_problems(100, seed=0, held_out=True))


def test_demo_accuracy_counts_exact_answers():
    problems = [Problem(1, 2), Problem(30, 4)]
    texts = ["ones\n</think>\n\n3", "</think>\n\n35"]
    assert _accuracy(problems, texts) == 0.5


def test_demo_leaves_the_chain_s_directories(result):
    assert not Checkpoint.open(result.output_dir / PREPARED).config.quantization_bit
    deployed = Checkpoint.open(result.output_dir / INT8)
    assert deployed.config.quantization_bit == 8
    compiled = load_compile_file(result.output_dir / f"{INT8}.yaml", config=deployed.config)
    assert compiled.backend.dtype == "int8"
    assert compiled.frontend.checkpoint == f"./{result.output_dir.name}/{INT8}"


def test_demo_verify_is_close_to_float(result):
    assert result.verified.scores.mean_kl < 0.001
    assert result.verified.scores.top1 > 0.99
    assert result.verified.deployed_dir == result.output_dir / INT8


def test_demo_text_names_figures_files_and_next_step(result):
    text = result.to_text()
    assert f"{result.accuracy_int8:.1%}" in text
    assert str(result.output_dir / INT8) in text
    assert "vacc-deploy prepare --model Distill-Qwen-1.5B" in text


def test_demo_result_is_json(result):
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["num_problems"] == 100


def test_demo_refuses_an_existing_output(result):
    run = CliRunner().invoke(cli, ["demo", "--output", str(result.output_dir)])
    assert run.exit_code == 1
    assert "--overwrite" in run.output
