import json
import subprocess
import sys

import pytest
import yaml
from checkpoint_builders import write_checkpoint
from click.testing import CliRunner
from texts import ROOT

from vacc_deploy.cli import cli


def invoke(*args):
    return CliRunner().invoke(cli, ["yaml", *map(str, args)])


def test_without_output_the_yaml_is_on_stdout_and_notes_on_stderr():
    result = invoke("Distill-Qwen-32B", "--dtype", "int8", "--card", "va16")
    assert result.exit_code == 0
    values = yaml.safe_load(result.stdout)
    assert values["name"] == "DeepSeek-R1-Distill-Qwen-32B-int8-tp4-1024-2048"
    assert "before compiling: export VACC_STACK_SIZE=256" in result.stderr
    assert "cards: 1 x VA16" in result.stderr
    assert "no bandwidth is published for VA16" in result.stderr
    known = invoke("Distill-Qwen-32B", "--card", "va16", "--bandwidth", 400)
    assert "at 400 GB/s no more than" in known.stderr


def test_stdout_and_output_hold_the_same_bytes(tmp_path):
    path = tmp_path / "a.yaml"
    result = invoke("distill-llama-8b", "--output", path)
    assert result.exit_code == 0
    assert "compile     vamc compile" in result.stdout
    assert invoke("distill-llama-8b").stdout.encode() == path.read_bytes()


def test_every_option_reaches_the_file():
    options = "--dtype int8 --tp 8 --seq-len 4096 --max-seq-len 16384 --optimize latency"
    result = invoke("Distill-Qwen-1.5B", *options.split(), "--calibration", "c4=allenai/c4=x")
    values = yaml.safe_load(result.stdout)
    assert values["name"] == "DeepSeek-R1-Distill-Qwen-1.5B-int8-tp8-4096-16384"
    assert values["frontend"]["shape"]["input_ids"] == [[4096], [16384]]
    kwargs = {"b2s": False, "tp": 8, "model_arch": "vacc", "align_qkv": True}
    assert values["frontend"]["model_kwargs"] == kwargs
    assert values["dataset"]["path"] == "allenai/c4=x"


def test_directory_target_keeps_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "Mine-vacc", model_type="llama", num_heads=8, num_kv_heads=4)
    content = yaml.safe_load(invoke("./Mine-vacc").stdout)
    assert content["frontend"]["checkpoint"] == "./Mine-vacc"
    assert content["name"] == "Mine-fp16-tp4-1024-2048"


def test_a_relative_checkpoint_says_where_vamc_must_be_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = invoke("Distill-Llama-8B")
    lacks = f"There is no directory ./DeepSeek-R1-Distill-Llama-8B-vacc in {tmp_path}."
    assert lacks in missing.stderr and lacks not in missing.stdout
    write_checkpoint(tmp_path / "Mine-vacc", model_type="llama", num_heads=8, num_kv_heads=4)
    (tmp_path / "out").mkdir()
    here = invoke("./Mine-vacc", "--output", "a.yaml")
    assert "There is no directory" not in here.output and "is found from" not in here.output
    elsewhere = invoke("./Mine-vacc", "--output", "out/a.yaml")
    assert f"./Mine-vacc is found from {tmp_path}, not from out" in elsewhere.output
    assert (tmp_path / "out/a.yaml").read_bytes() == (tmp_path / "a.yaml").read_bytes()
    absolute = invoke(tmp_path / "Mine-vacc", "--output", "out/b.yaml")
    assert "is found from" not in absolute.output and "relative path" not in absolute.output


def test_json_is_one_object(tmp_path):
    path = tmp_path / "a.yaml"
    result = invoke("Distill-Qwen-32B", "--json", "--output", path)
    values = json.loads(result.stdout)
    assert sorted(values) == ["content", "environment", "file", "notes", "untried"]
    assert values["file"] == str(path)
    assert values["environment"] == {"VACC_STACK_SIZE": "256"}
    assert values["content"] == yaml.safe_load(path.read_text())
    printed = invoke("Distill-Qwen-32B", "--json", "--card", "VA16")
    assert json.loads(printed.stdout)["file"] is None
    assert json.loads(printed.stdout)["memory"]["num_cards"] == 1
    assert printed.stderr == ""


def test_existing_output_is_refused_without_overwrite(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("mine")
    result = invoke("Distill-Qwen-7B", "--output", path)
    assert result.exit_code == 1
    assert "exists already. Add --overwrite to replace it." in result.output
    foreign = invoke("Distill-Qwen-7B", "--output", path, "--overwrite")
    assert foreign.exit_code == 1
    assert "was not written by vacc-deploy" in foreign.output
    assert path.read_text() == "mine"
    path.unlink()
    assert invoke("Distill-Qwen-7B", "--output", path).exit_code == 0
    assert invoke("Distill-Qwen-7B", "--tp", 2, "--output", path, "--overwrite").exit_code == 0
    assert yaml.safe_load(path.read_text())["frontend"]["model_kwargs"]["tp"] == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "Give a directory or a model name as TARGET, or --all."),
        (("--all",), "--all needs --output DIR."),
        (("Distill-Qwen-7B", "--all", "--output", "x"), "takes no TARGET."),
        (("--all", "--output", "x", "--tp", "4", "--dtype", "int8"), "takes no --dtype, --tp."),
        (("Distill-Qwen-7B", "--build-in", "x"), "--build-in goes with --all only."),
        (("Distill-Qwen-7B", "--calibration", "c4=x"), "for int8 only"),
        (("x", "--calibration", "text=x"), "expected NAME=PATH with NAME one of alpaca, c4, ceval"),
        (("x", "--calibration", "c4="), "expected NAME=PATH"),
        (("x", "--calibration", "c4=a", "--calibration", "c4=b"), "can be given once"),
        (("Distill-Qwen-7B", "--card", "VA99"), "Invalid value for '--card'"),
        (("Distill-Qwen-7B", "--bandwidth", 100), "--bandwidth goes with --card only"),
        (("Distill-Qwen-7B", "--card", "VA16", "--bandwidth", 0), "Invalid value for '--bandwid"),
        (("Distill-Qwen-7B", "--seq-len", "1000"), "--seq-len: is 1000, expected"),
        (("Distill-Qwen-7B", "--tp", "3"), "--tp: got 3, expected one of 1, 2, 4, 8, 16"),
    ],
)
def test_wrong_usage_exits_2(args, message):
    result = invoke(*args)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("no-such-model",), "no-such-model does not exist"),
        (("Distill-Llama-70B", "--card", "VA16"), "do not fit a die of VA16"),
    ],
)
def test_data_at_fault_exits_1(args, message):
    result = invoke(*args)
    assert result.exit_code == 1
    assert message in result.output


def test_all_writes_the_committed_set(tmp_path):
    result = invoke("--all", "--output", tmp_path / "yaml", "--build-in", tmp_path / "build_in")
    assert result.exit_code == 0
    for folder in ("yaml", "build_in"):
        for path in (ROOT / folder).rglob("*.*"):
            copy = tmp_path / path.relative_to(ROOT)
            assert path.is_dir() or copy.read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "yaml").iterdir())) == 14
    assert len(list((tmp_path / "build_in").iterdir())) == 5
    assert not list(tmp_path.rglob("*.partial"))


def test_the_command_imports_no_heavy_library():
    code = (
        "import sys, vacc_deploy.cli; assert 'yaml' not in sys.modules; "
        "import vacc_deploy.vamc.committed; "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
