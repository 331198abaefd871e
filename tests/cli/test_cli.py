import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import click
import pytest
import torch
from checkpoint_builders import write_checkpoint
from click.testing import CliRunner
from texts import ROOT, read_json

from vacc_deploy import __version__
from vacc_deploy.assets import SOURCE_FILES
from vacc_deploy.cli import ErrorGroup, cli, terminal
from vacc_deploy.cli.options import emit
from vacc_deploy.cli.prepare import LINK_MODES
from vacc_deploy.cli.terminal import LineProgress
from vacc_deploy.errors import OutputError
from vacc_deploy.outputs import files

COMMANDS = sorted(cli.commands)


def invoke(*args):
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def run(*args, code="from vacc_deploy.cli import main; main()", **options):
    """Run the command line in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, env=env, timeout=60, check=False, **options
    )


def test_link_modes_of_the_option_are_those_of_the_module():
    assert files.LINK_MODES == LINK_MODES


def test_models_text_and_json():
    result = invoke("models")
    assert result.exit_code == 0
    assert result.stderr == ""
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["Distill-Qwen-7B", "28", "3584", "28/4", "15.2", "56"] in [row[:6] for row in rows]
    values = json.loads(invoke("models", "--json").stdout)
    assert [len(values), len(values["models"])] == [1, 25]


def test_prepare_prints_its_result_on_stdout_and_progress_on_stderr(tmp_path):
    source, out = write_checkpoint(tmp_path / "Mine", shards=2), tmp_path / "out"
    result = invoke("prepare", "--weights", source, "--output", out)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Prepared Mine in {out}\n")
    progress = result.stderr.splitlines()
    assert len(progress) == 4
    assert progress[1].startswith("Checking weights: 237.")
    assert progress[3].startswith("Placing weights: 239.")
    for line in (progress[1], progress[3]):
        assert line.endswith("0.0 s left  model-00002-of-00002.safetensors")


def test_prepare_json_is_exactly_one_object(tmp_path):
    source, out = write_checkpoint(tmp_path / "Mine"), tmp_path / "out"
    result = invoke("prepare", "--weights", source, "--output", out, "--json")
    assert result.exit_code == 0
    values = json.loads(result.stdout)
    assert (values["model"], values["output_dir"], values["dry_run"]) == ("Mine", str(out), False)
    listed = {file["name"]: file["bytes"] for file in values["files"]}
    assert listed == {path.name: path.stat().st_size for path in out.iterdir()}
    assert {*SOURCE_FILES, "config_vacc.json", "vacc_deploy.json"} < listed.keys()


def test_prepare_options_reach_the_work(tmp_path):
    source, out = write_checkpoint(tmp_path / "Mine"), tmp_path / "out"
    options = ("prepare", "--weights", source, "--output", out)
    assert invoke(*options, "--dry-run").stdout.startswith("Would prepare Mine in ")
    assert invoke(*options).exit_code == 0
    refused = invoke(*options)
    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"Error: {out} exists") and "--overwrite" in refused.stderr
    again = invoke(*options, "--overwrite", "--link-mode", "symlink")
    assert again.exit_code == 0
    assert (out / "model.safetensors").is_symlink()


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("prepare", "--link-mode", "hard"), "'hard' is not one of 'auto', 'hardlink', 'symlink'"),
        (("prepare", "--modell", "x"), "No such option"),
        (("prepare", "--output", __file__), "is a file"),
        (("prepare", "x", "y"), "Got unexpected extra argument"),
        (("prepare", "--model", "Distil-Qwen-7B"), "--model: Unknown model 'Distil-Qwen-7B'."),
        (("prepare", "x", "--weights", "y"), "SOURCE x and --weights y both say where"),
        (("models", "x"), "Got unexpected extra argument"),
        (("nope",), "No such command 'nope'"),
    ],
)
def test_wrong_usage_exits_2(args, text):
    result = invoke(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert text in result.stderr


# check takes as many targets as are given.
@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"check"}))
def test_one_argument_too_many_is_told_its_option(command):
    required = {
        "evaluate": ("--task", "text"),
        "export-onnx": ("--output", "x"),
        "generate": ("--prompt", "x"),
    }
    result = invoke(command, "one", "two", "three", *required.get(command, ()))
    assert result.exit_code == 2
    message = result.stderr.splitlines()[-1]
    assert re.search(r"Got unexpected extra arguments? \(.*\)\. [A-Z].*\.$", message), message
    options = re.findall(r"--[a-z]+", message)
    known = {name for param in cli.commands[command].params for name in param.opts}
    assert set(options) <= known and bool(options) is (command != "models")


def test_verify_with_two_directories_is_told_of_the_reference():
    result = invoke("verify", "deployed", "float")
    assert result.exit_code == 2
    assert result.stderr.endswith(
        "Got unexpected extra argument (float). Give the float model with --reference REFERENCE.\n"
    )


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("prepare", "--json", "--modell", "x"), "No such option"),
        (("quantize", "--json"), "Missing argument 'DIR'"),
        (("verify", "x", "--max-tokens", "few", "--json"), "Invalid value for '--max-tokens'"),
        (("--json", "nope"), "No such option"),
        (("nope", "--json"), "No such command 'nope'"),
        (("verify", "x", "y", "--json"), "(y). Give the float model with --reference REFERENCE."),
        (("prepare", "--json"), "Give what to prepare: a checkpoint directory, the id of a"),
    ],
)
def test_wrong_usage_is_an_object_under_json(args, text):
    result = run(*args)
    assert result.returncode == 2
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "UsageError"
    assert text in error["message"]
    assert text in result.stderr


@pytest.mark.parametrize(
    ("change", "args", "kind", "text"),
    [
        ({"model_type": "mamba"}, (), "UnsupportedModelError", "model_type 'mamba'"),
        ({}, ("--model", "Distill-Qwen-7B"), "CheckpointError", "hidden_size is 64"),
        ({}, ("--output", "in/out"), "OutputError", "in/out"),
        ({}, ("--output", "no/out"), "OutputError", "does not exist"),
    ],
    ids=lambda value: None,
)
def test_prepare_errors_exit_1(tmp_path, monkeypatch, change, args, kind, text):
    config = write_checkpoint(tmp_path / "in") / "config.json"
    config.write_text(json.dumps({**read_json(config), **change}))
    monkeypatch.chdir(tmp_path)
    result = invoke("prepare", "--weights", "in", *args)
    as_json = invoke("prepare", "--weights", "in", *args, "--json")
    error = json.loads(as_json.stdout)["error"]
    assert (result.exit_code, as_json.exit_code, result.stdout) == (1, 1, "")
    assert result.stderr == as_json.stderr == f"Error: {error['message']}\n"
    assert error["type"] == kind and text in error["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_value_of_an_option_after_two_dashes_asks_for_no_json():
    result = run("models", "--", "--json")
    assert (result.returncode, result.stdout) == (2, "")


def test_a_system_error_names_the_file(tmp_path, monkeypatch):
    source = write_checkpoint(tmp_path / "in")

    def fsync(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    result = invoke("prepare", "--weights", source, "--output", tmp_path / "out", "--json")
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "OSError"
    assert error["message"].startswith(f"{tmp_path / 'out.partial'}: Input/output error. The disk")


def test_debug_shows_the_traceback_and_the_message_still_comes_last(tmp_path):
    result = invoke("prepare", "--weights", tmp_path / "none\x1b[2J", "--debug")
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert "vacc_deploy/lookup/locate.py" in result.stderr and "\x1b" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"Error: {tmp_path / 'none'}\\x1b[2J ")


def test_a_hint_is_shown_behind_the_message():
    def full():
        err = OutputError("The disk is full.")
        err.hint = "Resume with: vacc-deploy models --resume"
        raise err

    group = ErrorGroup(commands={"full": click.Command("full", callback=full)})
    message = "The disk is full. Resume with: vacc-deploy models --resume"
    assert CliRunner().invoke(group, ["full"]).stderr == f"Error: {message}\n"


def test_no_escape_sequence_of_a_strangers_file_reaches_the_terminal(tmp_path):
    name = "\x1b[2Jmodel.\x9b31mred\u202e"
    source = write_checkpoint(tmp_path / "in", extra_tensors={name: torch.ones(1)})
    result = invoke("prepare", "--weights", source, "--json")
    assert r"tensor '\x1b[2Jmodel.\x9b31mred\u202e' has a name with control" in result.stderr
    assert result.stderr.isascii()
    assert result.stdout.isascii()
    assert ascii(name) in json.loads(result.stdout)["error"]["message"]


@pytest.mark.parametrize("as_json", [False, True])
def test_no_escape_sequence_in_a_result_reaches_the_terminal(capsys, as_json):
    foreign = "\x1b[2J\x9b31m\u202e\x07 模\u3000型\tone\ntwo"
    result = SimpleNamespace(to_dict=lambda: {"text": foreign}, to_text=lambda: foreign)
    with click.Context(cli) as ctx:
        ctx.meta["json"] = as_json
        emit(result)
    text = capsys.readouterr().out
    assert not {"\x1b", "\x9b", "\u202e"} & set(text)
    if as_json:
        assert "模\u3000型" in text and json.loads(text)["text"] == foreign
    else:
        assert text == "\\x1b[2J\\x9b31m\\u202e\\x07 模\u3000型\tone\ntwo\n"


def test_no_escape_sequence_in_plain_progress_reaches_the_terminal(capsys):
    progress = LineProgress()
    progress.start("Adding with \x1b[2J", 1, "sums")
    progress.advance(1, "\x9b31m")
    progress.warn("\u202e")
    text = capsys.readouterr().err
    assert not {"\x1b", "\x9b", "\u202e"} & set(text)
    assert "\\x1b[2J" in text and "\\x9b31m" in text and "Warning: \\u202e" in text


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "en_US.UTF-8"])
def test_paths_beyond_utf_8_work(tmp_path, locale):
    source = write_checkpoint(tmp_path / "in")
    odd = tmp_path / os.fsdecode(b"caf\xe9-\xe6\xa8\xa1")
    source.rename(odd)
    out, env = tmp_path / "out", {"LC_ALL": locale, "PYTHONIOENCODING": "utf-8:strict"}
    for option in ("--json", "--debug"):
        result = run("prepare", "--weights", odd, "--output", out, "--overwrite", option, env=env)
        assert result.returncode == 0, result.stderr
    assert read_json(out / "vacc_deploy.json")["model"] == odd.name
    result = run("prepare", "--weights", f"{odd}/none", "--json", env=env)
    assert result.returncode == 1
    assert str(odd) in json.loads(result.stdout)["error"]["message"]


HEAVY = "torch transformers numpy tokenizers safetensors yaml rich huggingface_hub"
WATCHED = f"""
import sys
from vacc_deploy.cli import main
try:
    main()
finally:
    heavy = set({HEAVY!r}.split()) & set(sys.modules)
    assert not heavy, heavy
"""


def test_models_imports_nothing_heavy():
    assert run("models", code=WATCHED).returncode == 0


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_help_ends_with_an_example_and_imports_nothing_heavy(command):
    result = run(*filter(None, [command]), "--help" if command else "-h", code=WATCHED)
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"Examples?:\s+vacc-deploy ", result.stdout)


def test_help_answers_at_once():
    """Under 0.2 s where Python with click takes 0.085 s to start: as a ratio, on any machine."""

    def used(*arguments, **options):
        """Processor seconds: those of the wall grow with what else the machine does."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run(*arguments, **options).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # In turn, so that both see the same machine.
    pairs = [(used(code="import click"), used("--help")) for _ in range(5)]
    least, least_help = map(min, zip(*pairs, strict=True))
    assert least_help < 0.2 / 0.085 * least


def test_version_and_module_entry_point():
    assert invoke("--version").stdout == f"vacc-deploy, version {__version__}\n"
    command = [sys.executable, "-m", "vacc_deploy", "--version"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert __version__ in result.stdout


def test_a_reader_that_leaves_early_is_no_traceback():
    command = f"{sys.executable} -m vacc_deploy models | true; sleep 0.1"
    result = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr


# Does a little, says so, and waits to be stopped: in Python, or where no signal comes through.
SLOW = """
import hashlib, sys, threading, time
import MODULE as module
real = module.FUNCTION
def slow(*args, **options):
    if "FUNCTION" == "place_shard":
        real(*args)
    # Once the wait has begun: before it, a signal would come through in any case.
    threading.Timer(0.3, lambda: print("ready", file=sys.stderr, flush=True)).start()
    WAIT
module.FUNCTION = slow
from vacc_deploy.cli import main
main()
"""
IN_PYTHON, IN_A_LIBRARY = "time.sleep(60)", "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"


def stopped(path, wait, number, *arguments):
    """Send a signal to a command that waits in the function at ``path``; return how it ended."""
    module, _, function = path.rpartition(".")
    code = SLOW.replace("MODULE", module).replace("FUNCTION", function).replace("WAIT", wait)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, **pipes) as process:
        while (line := process.stderr.readline()) != "ready\n":
            assert line, "the command ended"
        began = time.monotonic()
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=20)
    assert time.monotonic() - began < 3
    assert "Traceback" not in stderr
    return process.returncode, stdout, stderr.strip()


SIGNALS = pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
PLACE_SHARD = "vacc_deploy.outputs.place.place_shard"


@SIGNALS
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_stopped_run_leaves_no_partial_directory(tmp_path, number, code, overwrite):
    source, out = write_checkpoint(tmp_path / "in"), tmp_path / "out"
    args = ["prepare", "--weights", source, "--output", out, "--link-mode", "copy"]
    if overwrite:
        assert invoke(*args).exit_code == 0
        args.append("--overwrite")
    expected = sorted(path.name for path in tmp_path.iterdir())
    message = "Interrupted. No half-written output was left."
    assert stopped(PLACE_SHARD, IN_PYTHON, number, *args) == (code, "", message)
    assert sorted(path.name for path in tmp_path.iterdir()) == expected


@SIGNALS
def test_a_run_that_is_stuck_in_a_library_is_stopped_too(tmp_path, number, code):
    source, out = write_checkpoint(tmp_path / "in"), tmp_path / "out"
    args = ["prepare", "--weights", source, "--output", out]
    message = (
        "Interrupted. Half-written files may be left beside the output. Their names end in "
        ".partial, and the next run for the same output removes them."
    )
    assert stopped(PLACE_SHARD, IN_A_LIBRARY, number, *args) == (code, "", message)
    assert (tmp_path / "out.partial").is_dir()
    assert invoke(*args).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("wait", [IN_PYTHON, IN_A_LIBRARY])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_stopped_command_that_writes_nothing_says_no_more_than_that(tmp_path, wait, as_json):
    source = write_checkpoint(tmp_path / "in")
    arguments = ["verify", source, *(["--json"] if as_json else [])]
    code, stdout, stderr = stopped(
        "vacc_deploy.reference.verify.verify", wait, signal.SIGINT, *arguments
    )
    assert (code, stderr) == (130, "Interrupted.")
    if as_json:
        error = {"type": "StoppedError", "message": "Interrupted."}
        assert json.loads(stdout) == {"error": error}
    else:
        assert stdout == ""


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])  # a shell's &, and nohup
def test_a_signal_that_was_ignored_from_the_start_stays_ignored(name):
    code = (
        f"import os, signal\nsignal.signal(signal.{name}, signal.SIG_IGN)\n"
        "from vacc_deploy.cli import cli, main\n"
        f"@cli.command('work')\ndef work():\n    os.kill(os.getpid(), signal.{name})\n"
        "    print('done')\nimport sys\nsys.argv = ['vacc-deploy', 'work']\nmain()\n"
    )
    result = run(code=code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")


def test_a_signal_behind_the_result_adds_nothing_to_it():
    code = (
        "import os, signal\nfrom vacc_deploy.cli import main, models\n"
        "real = models.emit\n"
        "def emit(result):\n    real(result)\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "models.emit = emit\nmain()\n"
    )
    result = run("models", "--json", code=code)
    assert (result.returncode, result.stderr) == (130, "Interrupted.\n")
    assert list(json.loads(result.stdout)) == ["models"]


@SIGNALS
def test_a_signal_before_the_command_begins_has_its_own_exit_code(number, code):
    text = (
        "import os, click\nfrom vacc_deploy.cli import cli, main\n"
        f"def stop(*_):\n    os.kill(os.getpid(), {number})\n"
        "cli.params.append(click.Option(['--early'], is_eager=True, callback=stop))\nmain()\n"
    )
    result = run("models", code=text)
    assert (result.returncode, result.stdout, result.stderr.strip()) == (code, "", "Interrupted.")


def test_a_module_that_is_interrupted_within_exec_ends_with_the_exit_code(tmp_path):
    # dataclasses, for example, run texts with exec() while a library is imported.
    (tmp_path / "probe.py").write_text(
        "import os, signal\nfrom vacc_deploy.cli import cli, main\n"
        "@cli.command('work')\ndef work():\n    exec('os.kill(os.getpid(), signal.SIGINT)')\n"
        "main()\n"
    )
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    result = subprocess.run(
        [sys.executable, "-m", "probe", "work"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (130, "Interrupted.\n")


def on_terminal(code):
    """Run code with stderr on a terminal; return what the terminal got."""
    leader, follower = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    with subprocess.Popen([sys.executable, "-c", code], stderr=follower, cwd=ROOT, env=env) as job:
        os.close(follower)
        got = b""
        while True:
            try:
                piece = os.read(leader, 4096)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            got += piece
        job.wait(timeout=20)
    os.close(leader)
    return got.decode()


@pytest.mark.parametrize("end", ["", "raise VaccDeployError('broken')", "raise KeyboardInterrupt"])
def test_the_bar_gives_the_cursor_back_however_the_command_ends(end):
    code = (
        "import sys, time\nfrom vacc_deploy.cli import cli, main\n"
        "from vacc_deploy.cli.terminal import terminal_progress\n"
        "from vacc_deploy.errors import VaccDeployError\n"
        "@cli.command('work')\n"
        "def work():\n"
        "    progress = terminal_progress()\n"
        "    progress.start('Placing [/] \\x1b[7m', 4096, 'bytes')\n"
        "    progress.skip(1024, 'finished before')\n"
        "    progress.advance(1024, '[/]\\x1b[8mone.safetensors')\n"
        "    progress.warn('[bold]careful[/bold]\\x1b[9m')\n"
        "    time.sleep(0.2)\n"
        "    progress.note('q of layer 3 \\x1b[7m')\n"
        "    time.sleep(0.2)\n"
        f"    {end or 'progress.finish()'}\n"
        "sys.argv = ['vacc-deploy', 'work']\nmain()\n"
    )
    got = on_terminal(code)
    texts = ("Placing", " 50%", "[/]\\x1b[8mone", "s left", "q of layer 3 \\x1b[7m", "\x1b[?25l")
    for text in (*texts, "Warning: [bold]careful[/bold]\\x1b[9m"):
        assert text in got
    assert not [code for code in ("\x1b[7m", "\x1b[8m", "\x1b[9m") if code in got]
    assert got.rindex("\x1b[?25h") > got.rindex("\x1b[?25l")
    assert "Traceback" not in got


def test_plain_progress_is_one_line_a_step(capsys):
    progress = LineProgress(now=iter([0.0, 10.0, 12.0, 16.0]).__next__)
    progress.start("Quantizing", 3, "layers")
    progress.note("q of layer 0")  # plain lines leave out what is under way
    progress.advance(note="layer 0")
    progress.advance(2)
    progress.warn("a row was skipped")
    progress.finish()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "Quantizing: 1 of 3 layers, 4.0 s left  layer 0\n"
        "Quantizing: 3 of 3 layers, 0.0 s left\n"
        "Warning: a row was skipped\n"
    )


def test_plain_progress_of_many_units_is_in_plain_digits(capsys):
    progress = LineProgress(now=iter([0.0, 0.0, 10.0]).__next__)
    progress.start("Scoring", 151_936, "vocabulary rows")
    progress.advance(18_720)
    assert capsys.readouterr().err.startswith("Scoring: 18,720 of 151,936 vocabulary rows, ")


@pytest.mark.parametrize(
    ("per_second", "unit", "expected"),
    [
        (18724.567, "tokens", "18,725 tokens/s"),
        (1.9e6, "tokens", "1,900,000 tokens/s"),
        (99.94, "tokens", "99.9 tokens/s"),
        (1.25, "layers", "1.2 layers/s"),
        (0.05, "layers", "3.0 layers/min"),
        (0.0031, "layers", "11.2 layers/h"),
        (1e-5, "layers", "0.0 layers/h"),
        (3e9, "bytes", "2.8 GiB/s"),
    ],
)
def test_a_rate_is_in_plain_digits(per_second, unit, expected):
    assert terminal._rate(per_second, unit) == expected


def test_plain_progress_takes_the_time_left_from_what_was_not_skipped(capsys):
    progress = LineProgress(now=iter([0.0, 0.0, 50.0, 52.0]).__next__)
    progress.start("Quantizing", 10, "layers")
    progress.skip(6, "6 layers were finished before")
    progress.advance(1, "layer 6")
    assert capsys.readouterr().err == (
        "Quantizing: 6 of 10 layers  6 layers were finished before\n"
        "Quantizing: 7 of 10 layers, 6.0 s left  layer 6\n"
    )


@pytest.mark.parametrize("name", ["compile", "serve"])
def test_a_step_of_the_vendor_s_says_whose_it_is(name):
    result = invoke(name, "x.yaml")
    assert result.exit_code == 2 and f"There is no command {name} yet." in result.output
