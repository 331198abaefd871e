"""Runs that are stopped or fail: what they keep, and what they say."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from checkpoint_builders import write_checkpoint
from doubles import Recorder, StopAfter
from resume_runs import NUM_LAYERS, RTN, contents, interrupt, names_around, shard_file
from texts import read_json

from vacc_deploy.cli.signals import resume_command
from vacc_deploy.errors import OutputError, QuantizationError, StoppedError
from vacc_deploy.quantize import forecast, plan, records, row_buffers, shards
from vacc_deploy.quantize.compute import choose_compute
from vacc_deploy.quantize.records import RUN_NAME, read_run, record_name
from vacc_deploy.quantize.result import TIMING_NAME
from vacc_deploy.quantize.run import quantize

FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_stop_finishes_the_layer_and_keeps_it(model, output, gptq, expected, method):
    options = gptq if method == "gptq" else RTN
    assert interrupt(model, output, options) == "Stopped after 1 of 3 layers, which are kept."
    assert not output.exists()
    partial = output.with_name("out.partial")
    assert read_run(partial, ("int8",)).finished == 1
    assert (partial / shard_file(1)).is_file()
    quantize(model, options=options, output=output, resume=True)
    assert contents(output) == expected[method]


def test_stop_while_finished_layers_are_carried_keeps_them_all(model, output, gptq, expected):
    interrupt(model, output, gptq, layers=2)
    before = contents(output.with_name("out.partial"))
    control, recorder = StopAfter(1), Recorder()
    arguments = {"options": gptq, "output": output, "resume": True}
    with pytest.raises(StoppedError, match="after 2 of 3 layers") as caught:
        quantize(model, **arguments, control=control, progress=recorder)
    assert caught.value.exit_code == 143 and control.told == (2, NUM_LAYERS)
    replayed = "layer 0: already quantized; replaying it to restore the calibration state"
    assert recorder.notes("skip") == [replayed]
    after = contents(output.with_name("out.partial"))
    for files in (before, after):
        del files[RUN_NAME]
    assert after == before
    quantize(model, **arguments)
    assert contents(output) == expected["gptq"]


def test_without_resume_finished_layers_are_not_destroyed(model, output, gptq, expected):
    interrupt(model, output, gptq, layers=2)
    partial = output.with_name("out.partial")
    before = contents(partial)
    for dry_run in (False, True):
        with pytest.raises(OutputError) as caught:
            quantize(model, options=gptq, output=output, dry_run=dry_run)
        assert str(caught.value) == (
            f"{partial} holds 2 of 3 finished layers of an interrupted run. Give --resume to go on "
            "from there, or --overwrite to begin again."
        )
    assert contents(partial) == before
    result = quantize(model, options=gptq, output=output, overwrite=True)
    assert contents(output) == expected["gptq"]
    assert read_json(output / TIMING_NAME)["resumes"] == 0
    assert not result.already_finished


@pytest.mark.parametrize("layer", [0, 2])
def test_a_failure_keeps_what_is_finished(tmp_path, layer):
    bad = torch.full((160, 64), float("nan"), dtype=torch.bfloat16)
    name = f"model.layers.{layer}.mlp.up_proj.weight"
    source = write_checkpoint(tmp_path / "model", num_layers=3, extra_tensors={name: bad})
    control = StopAfter(99)
    with pytest.raises(QuantizationError):
        quantize(source, options=RTN, control=control)
    assert control.told == ((layer, 3) if layer else None)
    assert (tmp_path / "model-int8.partial").exists() is bool(layer)


def test_an_interruption_while_text_is_read_says_what_an_earlier_run_left(
    model, output, gptq, monkeypatch
):
    interrupt(model, output, gptq, layers=2)

    def press(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "read_calibration_rows", press)
    control = StopAfter(99)
    with pytest.raises(KeyboardInterrupt):
        quantize(model, options=gptq, output=output, resume=True, control=control)
    assert control.told == (2, NUM_LAYERS)


@pytest.mark.parametrize("what", ["shard", "record"])
def test_a_full_disk_keeps_what_is_finished_and_says_so(
    model, output, gptq, expected, monkeypatch, what
):
    def fail(module, name, is_third):
        plain = getattr(module, name)

        def full(first, second):
            if is_third(first, second):
                raise FULL
            return plain(first, second)

        monkeypatch.setattr(module, name, full)

    if what == "shard":
        fail(shards, "write_shard", lambda path, _: path.name == shard_file(3))
    else:
        fail(records, "write_record", lambda path, _: path.name == record_name(3))
    control = StopAfter(99)
    with pytest.raises(OutputError, match="What is finished was kept. Free space"):
        quantize(model, options=gptq, output=output, control=control)
    assert control.told == (2, 3)
    assert not (output.with_name("out.partial") / record_name(3)).exists()
    monkeypatch.undo()
    quantize(model, options=gptq, output=output, resume=True)
    assert contents(output) == expected["gptq"]


def test_rows_that_do_not_fit_the_disk_are_told_of(model, output, gptq, monkeypatch):
    def full(descriptor, offset, length):
        raise FULL

    monkeypatch.setattr(row_buffers, "available_memory_bytes", lambda: 0)
    monkeypatch.setattr(row_buffers.os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="The disk is full: .* Nothing was kept. Free space"):
        quantize(model, options=gptq, output=output)
    assert names_around(output) == []


def test_rows_on_the_disk_count_for_the_space_that_is_needed(model, output, gptq, monkeypatch):
    needed = []
    monkeypatch.setattr(plan, "check_space", lambda path, count: needed.append(count))
    quantize(model, options=gptq, output=output, dry_run=True)
    monkeypatch.setattr(forecast, "available_memory_bytes", lambda: 0)
    quantize(model, options=gptq, output=output, dry_run=True)
    # Two buffers of all 24 x 32 tokens, and the rows of the float stream, 64 wide.
    least = 2 * 24 * 32 * 64 * choose_compute("cpu").dtype.itemsize
    assert least < needed[1] - needed[0] <= 3 * least // 2


# ---- the command line -------------------------------------------------------------------------

# Says when the first layer is finished, and takes its time then.
SLOW = """
import sys, time
from vacc_deploy.quantize import shards
plain = shards.summarize_layer
def summarize(index, records):
    print("layer", index, flush=True)
    time.sleep(SECONDS)
    return plain(index, records)
shards.summarize_layer = summarize
from vacc_deploy.cli import main
sys.argv[0] = "vacc-deploy"
main()
"""


def start_command(source, words, seconds):
    arguments = ["quantize", str(source), "--calibration", f"text={words}"]
    arguments += ["--num-samples", "24", "--seq-len", "32"]
    code = SLOW.replace("SECONDS", str(seconds))
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout.readline() == "layer 0\n"
    return process, arguments


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_after_the_layer_and_names_the_command(
    tmp_path, words, gptq, expected, model, number, code
):
    shutil.copytree(model, tmp_path / "model")
    process, arguments = start_command(tmp_path / "model", words, 0.7)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert stdout == ""
    command = resume_command(["vacc-deploy", *arguments])
    lines = [line for line in stderr.splitlines() if line and not line.startswith("Quantizing")]
    assert lines[-2:] == [
        "Finishing the current layer; once more stops at once.",
        f"Error: Stopped after 1 of 3 layers, which are kept. Resume with: {command}",
    ]
    result = quantize(tmp_path / "model", options=gptq, resume=True)
    assert contents(result.output_dir) == expected["gptq"]


def test_a_second_signal_ends_at_once(tmp_path, words, gptq, expected, model):
    shutil.copytree(model, tmp_path / "model")
    process, _ = start_command(tmp_path / "model", words, 30)
    record = tmp_path / "model-int8.partial" / record_name(1)
    deadline = time.monotonic() + 20
    while not record.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert time.monotonic() - started < 15
    assert "Error: Interrupted. 1 of 3 layers are finished and kept. Resume with: " in stderr
    result = quantize(tmp_path / "model", options=gptq, resume=True)
    assert contents(result.output_dir) == expected["gptq"]


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/usr/x/vacc-deploy", "quantize", "a b"], "/usr/x/vacc-deploy quantize 'a b' --resume"),
        (["/x/vacc_deploy/__main__.py", "quantize", "m"], f"{sys.executable} -m vacc_deploy "),
        (["x", "quantize", "m", "--resume"], "x quantize m --resume"),
        (["x", "quantize", "--", "-m"], "x quantize --resume -- -m"),
    ],
)
def test_resume_command_is_what_was_typed_and_resume(argv, command):
    got = resume_command(argv)
    assert got.startswith(command)
    assert got.count("--resume") == 1
