"""``vacc-deploy quantize``: what it prints, what it refuses, and its exit codes."""

import json
import os

import click
import pytest
import torch
from checkpoint_builders import write_checkpoint
from click.testing import CliRunner
from texts import read_json, write_numbers

from vacc_deploy.cli import cli, terminal
from vacc_deploy.cli.quantize_options import QuantizationChoice
from vacc_deploy.errors import OutputError
from vacc_deploy.quantize import shards


@pytest.fixture
def source(tmp_path):
    return write_checkpoint(tmp_path / "model")


@pytest.fixture
def words(tmp_path):
    return write_numbers(tmp_path / "words.txt", 2000)


def run(*arguments):
    return CliRunner().invoke(cli, ["quantize", *(str(a) for a in arguments)])


def run_gptq(source, words, *arguments):
    common = ("--calibration", f"text={words}", "--num-samples", 10, "--seq-len", 32)
    return run(source, *common, *arguments)


def test_quantize_without_calibration_rounds(source):
    result = run(source)
    assert result.exit_code == 0, result.output
    output = f"{source}-int8"
    lines = result.stdout.splitlines()
    assert lines[0] == f"Quantized model to int8 in {output}"
    assert lines[-1] == f"Next: vacc-deploy verify {output}"
    assert "method       rtn" in result.stdout
    assert "calibration" not in result.stdout
    assert f"report       {output}/quantize_report.json" in result.stdout
    assert "Quantizing: 2 of 2 layers" in result.stderr


def test_quantize_with_calibration_is_gptq(source, words):
    result = run_gptq(source, words)
    assert result.exit_code == 0, result.output
    assert "method        gptq" in result.stdout
    assert "calibration   320 tokens (text 10 rows)" in result.stdout
    assert "relative to RTN, on held-out tokens" in result.stdout
    assert "layer 1, output error relative to RTN: q " in result.stderr


def test_quantize_options_reach_the_report(source, words, tmp_path):
    options = (
        "--seed 3 --no-act-order --evaluation-share 0.25 --effort fast --shrinkage 0.5 "
        "--dampening 0.05 --no-scale-search --compute-dtype float32 --device cpu"
    )
    result = run_gptq(source, words, "--output", tmp_path / "o", *options.split())
    assert result.exit_code == 0, result.output
    report = read_json(tmp_path / "o" / "quantize_report.json")
    assert report["options"] == {
        "method": "gptq",
        "formats": ["vamc"],
        "num_samples": 10,
        "sequence_length": 32,
        "seed": 3,
        "act_order": False,
        "held_out_share": 0.1,
        "evaluation_share": 0.25,
        "answers": "data",
        "effort": "fast",
        "shrinkage": 0.5,
        "dampening_frac": 0.05,
        "scale_search": False,
    }
    down = [linear for linear in report["linears"] if linear["name"].endswith("down_proj")]
    assert [linear["method"] for linear in down] == ["rtn", "rtn"]
    assert {linear["dampening_frac"] for linear in report["linears"]} == {None, 0.05}
    assert {linear["scale_shrink"] for linear in report["linears"]} == {0.0}


def test_quantize_compute_dtype_reaches_the_computation(source, words):
    errors = {}
    for dtype in ("float32", "bfloat16"):
        result = run_gptq(source, words, "--compute-dtype", dtype, "--overwrite", "--json")
        assert result.exit_code == 0, result.output
        errors[dtype] = [linear["error_gptq"] for linear in json.loads(result.stdout)["linears"]]
    assert errors["bfloat16"] != errors["float32"]


@pytest.mark.parametrize("extra", [(), ("--dry-run",)])
def test_quantize_json_is_one_object(source, words, extra):
    result = run_gptq(source, words, "--json", *extra)
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["method"] == "gptq" and values["dry_run"] is bool(extra)
    assert len(values["linears"]) == (0 if extra else 14)
    assert values["calibration"]["tokens"] == 320
    assert values["output_dir"] == f"{source}-int8"
    assert os.path.isdir(values["output_dir"]) is not bool(extra)


def test_quantize_dry_run_prints_the_plan(source, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    result = run(source, "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Would quantize model to int8 in {source}-int8\n")
    assert "time     about " in result.stdout and "memory   about " in result.stdout
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--method", "gptq"), 2, "Error: --method gptq needs text to calibrate on: "),
        (("--method", "rtn", "--calibration", "text=README"), 2, "Error: --method rtn uses no "),
        (("--calibration", "text"), 2, "Error: Calibration source 'text' is not of the form NAME"),
        (("--calibration", "c4=x", "--answers", "own"), 2, "--answers own needs questions to answ"),
        (("--calibration", "wiki=x"), 2, "has the unknown kind 'wiki', expected one of c4, ceval"),
        (("--calibration", "text=/nowhere/x"), 1, "Error: /nowhere/x does not exist. Give the "),
        (("--calibration", "text=x", "--num-samples", "1"), 2, "Error: --num-samples must be at "),
        (("--num-samples", "0"), 2, "Invalid value for '--num-samples'"),
        (("--format", "int4"), 2, "Invalid value for '--format'"),
        (("--shrinkage", "1.5"), 2, "Invalid value for '--shrinkage'"),
        (("--dampening", "0"), 2, "Invalid value for '--dampening'"),
        (("--device", "tpu"), 2, "Error: --device is 'tpu', expected cpu, cuda or cuda:N."),
        (("--device", "cuda"), 2, " sees 0 CUDA devices. Use --device cpu, or install a CUDA "),
        (("--device", "cuda:1"), 2, "Error: --device cuda:1: torch "),
    ],
)
def test_quantize_wrong_options(source, tmp_path, monkeypatch, arguments, code, message):
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # whatever the machine has
    result = run(source, *arguments)
    assert result.exit_code == code
    assert message in result.output
    assert "Traceback" not in result.output
    assert sorted(tmp_path.rglob("*")) == before


ONLY_8_BITS = (
    "quantize writes 8 bits, per channel, symmetric, and nothing else; see docs/formats.md."
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "int4"), "Invalid value for '--format': 'int4' is not one of "),
        (("--format", "w8a16_gptq"), "Invalid value for '--format': 'w8a16_gptq' is not one of "),
        (("--method", "awq"), "Invalid value for '--method': 'awq' is not one of 'gptq', 'rtn'."),
        (("--bits", "4"), "No such option '--bits'."),
        (
            ("--group-size", "64"),
            "Invalid value for '--group-size': '64' is not one of '128', '-1'.",
        ),
    ],
)
def test_quantize_says_what_there_is_where_4_bits_are_looked_for(source, arguments, message):
    result = run(source, *arguments)
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert result.exit_code == 2
    assert line.startswith(f"Error: {message}") and ONLY_8_BITS in line
    assert ONLY_8_BITS not in run(source, "--sede", "1").output


def test_the_former_name_of_a_format_gives_the_new_one():
    choice = QuantizationChoice(["int8", "vamc"])
    with pytest.raises(click.BadParameter, match="fp16 is now called vamc.$"):
        choice.convert("fp16", None, None)
    assert choice.convert("vamc", None, None) == "vamc"


def test_quantize_data_errors_exit_1_and_leave_nothing(source, words, tmp_path):
    assert run(tmp_path / "nowhere").exit_code == 1
    result = run_gptq(source, words, "--num-samples", 5000)
    assert result.exit_code == 1
    assert "Error: The calibration data hold too few tokens." in result.output
    (source / "tokenizer.json").unlink()
    result = run_gptq(source, words)
    assert result.exit_code == 1
    assert f"Error: {source / 'tokenizer.json'} is missing." in result.output
    assert not list(tmp_path.glob("*int8*"))


def test_quantize_int8_directory(source):
    output = f"{source}-int8"
    assert run(source).exit_code == 0
    result = run(output)
    assert result.exit_code == 1
    assert f"Error: {output} is quantized already. Give the float directory" in result.output
    again = run(source)
    assert again.exit_code == 1 and f"{output} exists and is not empty." in again.output
    assert run(source, "--overwrite").exit_code == 0


def test_quantize_resume_and_overwrite_together_names_both_commands(source, monkeypatch):
    argv = ["vacc-deploy-test", "quantize", "--overwrite", str(source), "--resume"]
    monkeypatch.setattr("sys.argv", argv)
    result = run(source, "--resume", "--overwrite")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "Error: --resume goes on with what an earlier run has finished, --overwrite begins again. "
        f"Give one of them.\n  vacc-deploy-test quantize {source} --resume\n"
        f"  vacc-deploy-test quantize --overwrite {source}\n"
    )


def test_quantize_dry_run_of_an_output_that_exists_says_what_the_run_needs(source):
    output = f"{source}-int8"
    assert run(source).exit_code == 0
    result = run(source, "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.endswith(
        f"\nNote: without --dry-run this is refused: {output} exists and is not empty. Give "
        "--overwrite to replace it, or choose another --output.\n"
    )
    values = json.loads(run(source, "--dry-run", "--overwrite", "--json").stdout)
    assert values["notes"] == []
    for name in ("seconds", "peak_memory_bytes", "totals"):
        assert values[name] is None


def test_quantize_device_is_checked_before_the_output(source, monkeypatch):
    assert run(source).exit_code == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # whatever the machine has
    for device, message in (("cuda", "sees 0 CUDA devices"), ("gpu", "--device is 'gpu'")):
        result = run(source, "--device", device)
        assert result.exit_code == 2 and message in result.output
        assert "exists" not in result.output


def test_quantize_in_the_directory_itself(source, monkeypatch):
    monkeypatch.chdir(source)
    result = run(".")
    assert result.exit_code == 0, result.output
    assert f"Quantized model to int8 in {source}-int8" in result.stdout


def test_quantize_writes_several_formats(source):
    result = run(source, "--format", "vamc", "--format", "int8", "--format", "vamc", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["formats"] == ["vamc", "int8"]
    assert sorted(os.listdir(f"{source}-quantized")) == [
        *("int8", "quantize_timing.json", "vacc_deploy.json", "vamc")
    ]


def test_quantize_resume_of_a_finished_output(source):
    first = json.loads(run(source, "--json").stdout)
    result = run(source, "--resume", "--json")
    assert result.exit_code == 0, result.output
    again = json.loads(result.stdout)
    assert (first.pop("already_finished"), again.pop("already_finished")) == (False, True)
    for values in (first, again):
        values["seconds"] = values["peak_memory_bytes"] = 0
        # They begin with what the process holds already.
        del values["estimated_memory_bytes"], values["estimated_parts"]
    assert again == first
    assert run(source, "--resume").stdout.startswith("Already finished; all file hashes verified.")


def test_quantize_bad_weight_advises_no_resume(source, monkeypatch):
    bad = torch.linspace(-1, 1, 160 * 64).view(160, 64).bfloat16()
    bad[137, 5] = float("nan")  # a row that is not among the few that are read at the start
    name = "model.layers.1.mlp.up_proj.weight"
    write_checkpoint(source, extra_tensors={name: bad})
    monkeypatch.setattr("sys.argv", ["vacc-deploy-test", "quantize", str(source)])
    result = run(source)
    assert result.exit_code == 1
    assert result.output.endswith(
        " make the model again. 1 of 2 layers are finished and kept. "
        "--resume needs the same input files and options. With others, start over with "
        "--overwrite.\n"
    )
    result = run(source)
    assert "holds 1 of 2 finished layers of an interrupted run." in result.output
    assert "Resume with" not in result.output
    write_checkpoint(source)
    result = run(source, "--resume")
    assert "weights model.safetensors: " in result.output and result.exit_code == 1
    assert run(source, "--overwrite").exit_code == 0


def test_quantize_failure_names_the_command_that_goes_on(source, monkeypatch):
    plain = shards.write_shard

    def write(path, tensors):
        if path.name.startswith("model-00003"):
            raise OutputError("The disk is full.")
        return plain(path, tensors)

    monkeypatch.setattr(shards, "write_shard", write)
    monkeypatch.setattr("sys.argv", ["vacc-deploy-test", "quantize", str(source)])
    result = run(source)
    assert result.exit_code == 1
    assert result.output.endswith(
        "Error: The disk is full. 1 of 2 layers are finished and kept. Resume with: "
        f"vacc-deploy-test quantize {source} --resume\n"
    )
    monkeypatch.setattr(shards, "write_shard", plain)
    assert run(source, "--resume").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--num-samples", "128"),
            "Without --calibration the weights are rounded to nearest, with no effect of "
            "--num-samples. Give --calibration NAME=PATH (c4, ceval, alpaca, chat, text or "
            "traces), or leave it out.",
        ),
        (
            ("--no-act-order", "--scale-search", "--dampening", "0.2"),
            "with no effect of --no-act-order, --dampening, --scale-search. Give --calibration "
            "NAME=PATH (c4, ceval, alpaca, chat, text or traces), or leave them out.",
        ),
        (
            ("--method", "rtn", "--calibration", "text=x", "--seq-len", "64"),
            "--method rtn uses no calibration data. Leave --calibration, --seq-len out, or use "
            "--method gptq with --calibration NAME=PATH.",
        ),
        (
            (
                *("--answers", "own", "--max-answer-tokens", "9", "--answers-cache", "x"),
                *("--evaluation-share", "0.1", "--effort", "fast", "--shrinkage", "0.2"),
                *("--compute-dtype", "float32"),
            ),
            "no effect of --answers, --max-answer-tokens, --answers-cache, --evaluation-share, "
            "--effort, --shrinkage, --compute-dtype. Give",
        ),
    ],
)
def test_quantize_refuses_options_that_rounding_would_ignore(source, tmp_path, arguments, message):
    result = run(source, *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "model-int8").exists()


def test_quantize_rounds_with_a_seed_and_on_a_device_all_the_same(source):
    assert run(source, "--seed", 7, "--device", "cpu", "--profile").exit_code == 0


@pytest.mark.parametrize(("answers", "calls"), [("own", 1), ("data", 0)])
def test_the_library_that_writes_own_answers_is_kept_quiet(tmp_path, monkeypatch, answers, calls):
    quieted = []
    monkeypatch.setattr(terminal, "quiet_transformers", lambda: quieted.append(1))
    source = ("--calibration", f"alpaca={tmp_path}/no.json", "--answers", answers)
    assert run(tmp_path / "nosuch", *source).exit_code == 1
    assert len(quieted) == calls


def test_quantize_preset_sets_what_no_option_sets(source, words):
    light = ("--calibration", f"text={words}", "--preset", "light", "--dry-run", "--json")
    values = json.loads(run(source, *light, "--num-samples", 12).stdout)
    assert values["calibration"]["tokens"] == 12 * 512
    report = run(source, *light[:-2], "--num-samples", 12, "--json", "--overwrite")
    assert report.exit_code == 0, report.output
    linears = json.loads(report.stdout)["linears"]
    assert {r["method"] for r in linears if r["name"].endswith("down_proj")} == {"rtn"}
    result = run(source, "--preset", "light")
    assert result.exit_code == 2
    assert "Without --calibration" in result.output and "--preset" in result.output


# ---- the group size of the gptq format ----------------------------------------------------------


def run_json(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_gptq_is_written_in_groups_of_128_and_says_how_it_splits(tmp_path):
    source = write_checkpoint(tmp_path / "wide", hidden_size=256, intermediate_size=512)
    result = run_json(source, "--format", "gptq", "--format", "int-quantized")
    assert result["tensor_parallel"] == {"gptq": [1, 2]}
    split, rounded = result["notes"]
    assert split == (
        "vLLM can serve the gptq directory with tensor parallel 1, 2: each die takes whole heads "
        "and whole groups of 128 columns, of o_proj (2 groups) and of down_proj (4)."
    )
    assert "rounds the inputs of the linears too, to int8 with a scale for each token" in rounded
    for layout, notes in (("gptq", [split]), ("int-quantized", [rounded])):
        directory = tmp_path / "wide-quantized" / layout
        report = read_json(directory / "quantize_report.json")
        assert report["notes"] == notes
        assert read_json(directory / "vacc_deploy.json")["options"] == report["options"]
        assert report["options"].get("group_size") == (128 if layout == "gptq" else None)


def test_group_size_minus_1_writes_one_group(source):
    result = run_json(source, "--format", "gptq", "--group-size", "-1")
    assert result["output_dir"] == f"{source}-gptq"
    assert (result["formats"], result["notes"]) == (["gptq-one-group"], [])
    options = read_json(source.parent / "model-gptq/vacc_deploy.json")["options"]
    assert options == {"method": "rtn", "formats": ["gptq-one-group"], "group_size": -1}
    assert read_json(source.parent / "model-gptq/quantize_config.json")["group_size"] == -1


def test_group_size_is_of_the_gptq_format(source):
    result = run(source, "--group-size", "-1", "--format", "int8")
    assert result.exit_code == 2
    assert "--group-size -1 is of the gptq format. Add --format gptq, or leave" in result.output


def test_a_width_that_is_no_multiple_of_128_names_the_other_group_size(source):
    result = run(source, "--format", "gptq", "--format", "vamc")
    assert result.exit_code == 1
    assert "Give --group-size -1 for one group of all columns" in " ".join(result.output.split())
    assert [path.name for path in source.parent.iterdir()] == ["model"]
