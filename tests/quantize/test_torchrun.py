"""``quantize`` on several ranks: the same bytes, nearly the same errors, one message, resumable."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from checkpoint_builders import write_checkpoint
from click.testing import CliRunner
from doubles import StopAfter
from rank_processes import Raised, run_ranks
from texts import ROOT, contents, number_words, read_json

from vacc_deploy.cli import cli
from vacc_deploy.cli.launcher import Launch, device_of, launcher, read_launch
from vacc_deploy.cli.resuming import resume_command
from vacc_deploy.datasets.sources import CalibrationSource
from vacc_deploy.errors import CheckpointError, OutputError, RankLostError, UsageError
from vacc_deploy.models.config import LAYER_LINEARS
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.result import REPORT_NAME, TIMING_NAME
from vacc_deploy.quantize.run import quantize

NUM_LAYERS, LONG = 3, 8
NUM_LINEARS = NUM_LAYERS * len(LAYER_LINEARS)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a checkpoint and a text in it, beside which every test writes."""
    directory = tmp_path_factory.mktemp("ranks")
    write_checkpoint(directory / "model", num_layers=NUM_LAYERS)
    (directory / "words.txt").write_text(number_words(6000), "utf-8")
    return directory


def options_of(place, **changes):
    values = {"num_samples": 60, "sequence_length": 64, "compute_dtype": "float32", **changes}
    return QuantizeOptions("gptq", (CalibrationSource("text", place / "words.txt"),), **values)


def bytes_of(directory):
    """Return every file with its bytes, the times of the run aside."""
    return contents(directory, without=(TIMING_NAME,))


def errors_of(directory):
    report = read_json(directory / REPORT_NAME)
    assert len(report["linears"]) == NUM_LINEARS
    return {
        (record["name"], method): record[f"error_{method}"]
        for record in report["linears"]
        for method in ("gptq", "rtn")
    }


def quantize_on(count, source, options, output, *, sources=None, stop=None, **arguments):
    """Quantize on ``count`` ranks; return how many linears each one reports.

    Args:
        sources: checkpoints of ranks that have another one than ``source``.
        stop: interrupts rank 0.
    """

    def work(ranks):
        listeners = {"progress": stop, "kept": stop.kept} if stop and ranks.rank == 0 else {}
        result = quantize(
            (sources or {}).get(ranks.rank, source),
            options=options,
            # Only the first one may enter the output's directory.
            output=output if ranks.rank == 0 else output.parent / "not here" / "out",
            ranks=ranks,
            **listeners,
            **arguments,
        )
        return len(result.linears)

    return run_ranks(count, work)


@pytest.fixture(scope="module")
def two(place):
    """The output of two ranks."""
    outcomes = quantize_on(2, place / "model", options_of(place), place / "two")
    assert outcomes == [NUM_LINEARS, 0]
    return place / "two"


# ---- results -----------------------------------------------------------------------------------


def test_the_same_number_of_ranks_gives_the_same_bytes(place, two):
    quantize_on(2, place / "model", options_of(place), place / "again")
    assert bytes_of(place / "again") == bytes_of(two)


def test_another_number_of_ranks_gives_nearly_the_same_errors(place, two):
    quantize(place / "model", options=options_of(place), output=place / "one")
    quantize_on(4, place / "model", options_of(place), place / "four")
    alone = errors_of(place / "one")
    for output, count in ((two, 2), (place / "four", 4)):
        got = errors_of(output)
        assert got.keys() == alone.keys()
        assert all(abs(got[key] / alone[key] - 1) < 0.01 for key in alone)
        assert read_json(output / TIMING_NAME)["identity"]["processes"] == count


@pytest.mark.parametrize(
    "changes",
    [
        # 1 row held out, 2 with a float stream: not every rank has one
        {"num_samples": 6, "sequence_length": 256},
        {"effort": "fast"},
        {"compute_dtype": "bfloat16", "act_order": False},
    ],
)
def test_ranks_without_rows_of_a_kind_and_other_options(place, tmp_path, changes):
    options = options_of(place, **changes)
    outcomes = quantize_on(3, place / "model", options, tmp_path / "three")
    assert outcomes == [NUM_LINEARS, 0, 0]
    quantize(place / "model", options=options, output=tmp_path / "one")
    errors = []
    for directory in (tmp_path / "three", tmp_path / "one"):
        report = read_json(directory / REPORT_NAME)
        errors.append([record["error_rtn"] for record in report["linears"][:6]])
    for got, expected in zip(*errors, strict=True):
        assert got == pytest.approx(expected, rel=0.03)


def test_a_dry_run_ends_on_every_rank_and_leaves_nothing(place, tmp_path):
    options = options_of(place)
    outcomes = quantize_on(2, place / "model", options, tmp_path / "out", dry_run=True)
    assert outcomes == [0, 0]
    assert not list(tmp_path.iterdir())


def test_a_finished_output_is_taken_as_it_is(place, two):
    before = {path: path.stat().st_mtime_ns for path in two.iterdir()}
    assert quantize_on(2, place / "model", options_of(place), two, resume=True) == [NUM_LINEARS, 0]
    assert {path: path.stat().st_mtime_ns for path in two.iterdir()} == before


def test_a_run_killed_after_its_last_layer_goes_on(place, two):
    """Nothing is left to calibrate: no rank may wait for another one."""
    arguments = (place / "model", options_of(place), place / "last")
    assert quantize_on(2, *arguments, stop=StopAfter(3))[0].kind is KeyboardInterrupt
    assert quantize_on(2, *arguments, resume=True) == [NUM_LINEARS, 0]
    assert bytes_of(place / "last") == bytes_of(two)


def test_a_stopped_run_goes_on_with_as_many_ranks_only(place, two):
    arguments = (place / "model", options_of(place), place / "stopped")
    stopped, other = quantize_on(2, *arguments, stop=StopAfter(1))
    assert stopped.kind is KeyboardInterrupt and other.kind is RankLostError
    # Now while the rows are carried through the finished layer.
    stopped, other = quantize_on(2, *arguments, stop=StopAfter(1), resume=True)
    assert stopped.kind is KeyboardInterrupt and other.kind is RankLostError
    refused = quantize_on(3, *arguments, resume=True)[0]
    assert refused.kind is OutputError and "  - processes: 2 then, 3 now" in refused.text
    assert quantize_on(2, *arguments, resume=True) == [NUM_LINEARS, 0]
    assert bytes_of(place / "stopped") == bytes_of(two)


# ---- refusals ----------------------------------------------------------------------------------


def test_another_checkpoint_on_another_rank_is_refused(place, tmp_path):
    other = write_checkpoint(tmp_path / "model", num_layers=NUM_LAYERS, seed=5)
    same, error = quantize_on(
        2, place / "model", options_of(place), tmp_path / "out", sources={1: other}
    )
    assert same == error and error.kind is CheckpointError
    lines = error.text.splitlines()
    assert lines[0] == ("Process 1 has other inputs, options or versions than process 0:")
    assert lines[1].startswith("  - weights model.safetensors: ")
    assert " in process 0, " in lines[1] and lines[1].endswith(" in process 1")
    assert not list(tmp_path.glob("out*"))


def test_ranks_without_work_are_refused(place, tmp_path):
    for options, text in (
        (
            QuantizeOptions("rtn"),
            "--method rtn is bound by reading and writing files, which further processes do not "
            "speed up: run it in one instead of 3.",
        ),
        (
            options_of(place, num_samples=3),
            "3 processes are too many: there are 2 calibration rows to fit. Start at most 2, or "
            "raise --num-samples.",
        ),
    ):
        outcomes = quantize_on(3, place / "model", options, tmp_path / "out")
        assert outcomes == 3 * [Raised(UsageError, text)]
        assert not list(tmp_path.iterdir())


TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "1",
    "TORCHELASTIC_RUN_ID": "none",
}


def test_read_launch_of_torchrun():
    launch = read_launch(TORCHRUN)
    assert launch == Launch(rank=5, count=8, local_rank=1, local_count=4)
    command = launcher(TORCHRUN, launch)
    assert command == ("torchrun", "--nnodes", "2", "--nproc-per-node", "4")
    argv = ["/x/vacc_deploy/__main__.py", "quantize", "a b"]
    assert resume_command(argv, command) == (
        "torchrun --nnodes 2 --nproc-per-node 4 -m vacc_deploy quantize 'a b' --resume"
    )
    assert read_launch({}) is None and read_launch({**TORCHRUN, "WORLD_SIZE": "1"}) is None
    without = {name: value for name, value in TORCHRUN.items() if "ELASTIC" not in name}
    assert launcher(without, launch) == () and launcher(TORCHRUN, None) == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', expected a whole number"),
        ({"RANK": "-1"}, "RANK is '-1', expected a whole number"),
        ({"RANK": "8"}, "RANK 8 of WORLD_SIZE 8 and LOCAL_RANK 1 of LOCAL_WORLD_SIZE 4 contrad"),
        ({"LOCAL_RANK": "4"}, "LOCAL_RANK 4 of LOCAL_WORLD_SIZE 4 contradict each other"),
        ({"MASTER_ADDR": "", "RANK": ""}, "but RANK, MASTER_ADDR are not set. Start the processes"),
        ({"LOCAL_RANK": ""}, "but LOCAL_RANK is not set. Start the processes"),
    ],
)
def test_read_launch_refuses_what_contradicts_itself(changes, message):
    with pytest.raises(UsageError) as err:
        read_launch({**TORCHRUN, **changes})
    assert message in str(err.value)


def test_device_of_gives_each_process_its_own():
    launch = Launch(5, 8, 1, 4)
    assert device_of("cuda", launch) == "cuda:1" and device_of("cpu", launch) == "cpu"
    assert device_of("cuda:3", None) == "cuda:3"
    with pytest.raises(UsageError, match="--device cuda:3 names one device for 8 processes"):
        device_of("cuda:3", launch)


def test_a_command_whose_environment_is_incomplete_exits_2(place):
    environment = {"WORLD_SIZE": "2", "RANK": None, "LOCAL_RANK": None}
    result = CliRunner(env=environment).invoke(cli, ["quantize", str(place / "model")])
    assert result.exit_code == 2
    assert "Error: WORLD_SIZE is 2, but RANK, LOCAL_RANK" in result.output


# ---- torchrun ----------------------------------------------------------------------------------


def torchrun(place, source, output, *arguments):
    """Start the command on two ranks of this machine."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    options = ("--calibration", f"text={place / 'words.txt'}", "--num-samples", "60")
    options += ("--seq-len", "64", "--compute-dtype", "float32", "--output", str(output))
    command = (*launch, "-m", "vacc_deploy", "quantize", str(source), *options, *arguments)
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


@pytest.fixture(scope="module")
def long_model(place):
    """A checkpoint of so many layers that a signal after the first one comes in time."""
    return write_checkpoint(place / "long", num_layers=LONG)


def interrupt(process, interrupt_ranks):
    """Call ``interrupt_ranks`` with the process once a layer is finished; return its stderr."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if f" 1 of {LONG} layers" in line:
            interrupt_ranks(process)
            break
    _, rest = process.communicate(timeout=60)
    return "".join(lines) + rest


def test_torchrun_stopped_by_sigterm_goes_on_with_resume(place, long_model):
    output = place / "long-out"
    process = torchrun(place, long_model, output)
    text = interrupt(process, lambda launched: launched.send_signal(signal.SIGTERM))
    assert not output.exists() and process.returncode != 0
    stopped = r"Interrupted\. \d+ of 8 layers are finished and kept\. Resume with: torchrun --nproc"
    assert len(re.findall(stopped, text)) == text.count("Interrupted") == 1
    assert "Error: " not in text
    process = torchrun(place, long_model, output, "--resume")
    result, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert result.count("Quantized long to int8 in ") == 1
    quantize_on(2, long_model, options_of(place), place / "long-two")
    assert bytes_of(output) == bytes_of(place / "long-two")


def kill_a_rank(launched):
    """Kill the second of torchrun's processes, as the system does for lack of memory."""
    children = Path(f"/proc/{launched.pid}/task/{launched.pid}/children").read_text("ascii")
    os.kill(int(children.split()[1]), signal.SIGKILL)


def test_torchrun_with_a_killed_rank_ends_with_one_message(place, long_model, tmp_path):
    process = torchrun(place, long_model, tmp_path / "out")
    began = time.monotonic()
    text = interrupt(process, kill_a_rank)
    assert time.monotonic() - began < 50
    assert process.returncode != 0
    assert len(re.findall(r"\d+ of 8 layers are finished and kept\. Resume with: ", text)) == 1
    # Whichever comes first: the closed connection, or the signal by which torchrun ends the rest.
    ends = ("Error: Process 0 has lost the others: ", "Interrupted. ")
    assert sum(map(text.count, ends)) == 1
    assert (tmp_path / "out.partial").is_dir() and not (tmp_path / "out").exists()


def test_torchrun_tells_of_a_bad_weight_once(place, tmp_path):
    """Every rank meets it; one of them says so, and the first one says what stays."""
    name = "model.layers.1.mlp.up_proj.weight"
    bad = torch.randn(160, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16) / 8
    bad[130, 3] = float("nan")
    source = write_checkpoint(tmp_path / "model", num_layers=NUM_LAYERS, extra_tensors={name: bad})
    began = time.monotonic()
    process = torchrun(place, source, tmp_path / "out", "--json")
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 50
    assert process.returncode != 0
    message = (
        f"{name} in {source}: row 130 holds NaN or infinity. Download the file model.safetensors "
        "again."
    )
    error = json.loads(out)["error"]
    assert error["type"] == "QuantizationError" and error["message"].startswith(message)
    assert err.count(f"Error: {message}") == 1 and err.count(name) == 1
    assert (
        err.count("1 of 3 layers are finished and kept. --resume needs the same input files") == 1
    )
    assert (tmp_path / "out.partial").is_dir() and not (tmp_path / "out").exists()
