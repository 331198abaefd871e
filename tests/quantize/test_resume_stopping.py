"""Runs that are stopped or fail: what they keep, and what they say."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from checkpoint_builders import write_checkpoint
from doubles import StopAfter
from resume_runs import NUM_LAYERS, RTN, contents, interrupt, names_around, shard_file
from texts import read_json

from vacc_deploy.cli.resuming import overwrite_command, resume_command
from vacc_deploy.errors import OutputError, QuantizationError
from vacc_deploy.progress import KeptLayers
from vacc_deploy.quantize import forecast, plan, records, row_buffers, rows, shards
from vacc_deploy.quantize.compute import choose_compute
from vacc_deploy.quantize.records import RUN_NAME, read_run, record_name
from vacc_deploy.quantize.result import TIMING_NAME
from vacc_deploy.quantize.run import quantize

FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_an_interruption_keeps_the_finished_layers(model, output, gptq, expected, method):
    options = gptq if method == "gptq" else RTN
    interrupt(model, output, options)
    assert not output.exists()
    partial = output.with_name("out.partial")
    assert read_run(partial, ("int8",)).finished == 1
    assert (partial / shard_file(1)).is_file()
    quantize(model, options=options, output=output, resume=True)
    assert contents(output) == expected[method]


def test_an_interruption_while_finished_layers_are_carried_keeps_them_all(
    model, output, gptq, expected
):
    interrupt(model, output, gptq, layers=2)
    before = contents(output.with_name("out.partial"))
    stop, arguments = StopAfter(1), {"options": gptq, "output": output, "resume": True}
    with pytest.raises(KeyboardInterrupt):
        quantize(model, **arguments, kept=stop.kept, progress=stop)
    assert (stop.kept.finished, stop.kept.total) == (2, NUM_LAYERS)
    replayed = "layer 0: already quantized; replaying it to restore the calibration state"
    assert stop.notes("skip") == [replayed]
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
    problem = (
        f"{partial} holds 2 of 3 finished layers of an interrupted run. Give --resume to go on "
        "from there, or --overwrite to begin again."
    )
    with pytest.raises(OutputError) as caught:
        quantize(model, options=gptq, output=output)
    assert str(caught.value) == problem
    with (partial / ".vacc-deploy-partial").open() as marker:  # as a run that is still at work
        fcntl.flock(marker, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match=f"Another run is writing {partial}"):
            quantize(model, options=gptq, output=output)
    plan = quantize(model, options=gptq, output=output, dry_run=True)
    assert plan.notes == (f"without --dry-run this is refused: {problem}",)
    for going_on in ({"resume": True}, {"overwrite": True}):
        assert not quantize(model, options=gptq, output=output, dry_run=True, **going_on).notes
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
    kept = KeptLayers()
    with pytest.raises(QuantizationError):
        quantize(source, options=RTN, kept=kept)
    assert kept.has_begun and kept.finished == layer
    assert (tmp_path / "model-int8.partial").exists() is bool(layer)


def test_an_interruption_while_text_is_read_says_what_an_earlier_run_left(
    model, output, gptq, monkeypatch
):
    interrupt(model, output, gptq, layers=2)

    def press(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(rows, "read_calibration_rows", press)
    kept = KeptLayers()
    with pytest.raises(KeyboardInterrupt):
        quantize(model, options=gptq, output=output, resume=True, kept=kept)
    assert (kept.finished, kept.total, kept.has_begun) == (2, NUM_LAYERS, False)


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
    kept = KeptLayers()
    with pytest.raises(OutputError, match="What is finished was kept. Free space"):
        quantize(model, options=gptq, output=output, kept=kept)
    assert kept.has_begun and kept.finished == 2
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

# Says when the first layer is made, and takes its time then.
SLOW = """
import hashlib, sys, time
from vacc_deploy.quantize import shards
def summarize(index, records):
    print("layer", index, flush=True)
    WAIT
shards.summarize_layer = summarize
from vacc_deploy.cli import main
sys.argv[0] = "vacc-deploy"
main()
"""
# In Python, and in a call that lets no signal through to Python.
WAITS = {
    "python": "time.sleep(60)",
    "a library": "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
}


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_at_once_and_names_the_command(
    tmp_path, words, gptq, expected, model, number, code, wait
):
    shutil.copytree(model, tmp_path / "model")
    arguments = ["quantize", str(tmp_path / "model"), "--calibration", f"text={words}", "--json"]
    arguments += ["--num-samples", "24", "--seq-len", "32"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW.replace("WAIT", WAITS[wait]), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout.readline() == "layer 0\n"
    record, deadline = tmp_path / "model-int8.partial" / record_name(1), time.monotonic() + 20
    while not record.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    began = time.monotonic()
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert time.monotonic() - began < 3
    assert process.returncode == code, stderr
    command = resume_command(["vacc-deploy", *arguments])
    message = f"Interrupted. 1 of 3 layers are finished and kept. Resume with: {command}"
    assert stderr.splitlines()[-1] == message and stderr.count("Interrupted") == 1
    assert json.loads(stdout) == {"error": {"type": "StoppedError", "message": message}}
    result = quantize(tmp_path / "model", options=gptq, resume=True)
    assert contents(result.output_dir) == expected["gptq"]


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/usr/x/vacc-deploy", "quantize", "a b"], "/usr/x/vacc-deploy quantize 'a b' --resume"),
        (["/x/vacc_deploy/__main__.py", "quantize", "m"], f"{sys.executable} -m vacc_deploy "),
        (["x", "quantize", "m", "--resume"], "x quantize m --resume"),
        (["x", "quantize", "--", "-m"], "x quantize --resume -- -m"),
        (["x", "quantize", "--overwrite", "m"], "x quantize m --resume"),
    ],
)
def test_resume_command_is_what_was_typed_and_resume(argv, command):
    got = resume_command(argv)
    assert got.startswith(command)
    assert got.count("--resume") == 1


def test_overwrite_command_is_what_was_typed_and_overwrite():
    assert overwrite_command(["x", "quantize", "m", "--resume"]) == "x quantize m --overwrite"
