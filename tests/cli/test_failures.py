"""Whatever is raised becomes one message and an exit code, in one place."""

import errno
import json
import os
import re
import resource
import subprocess
import sys
import threading

import click
import pytest
from click.testing import CliRunner

from vacc_deploy import bounds
from vacc_deploy.assets import demo_model_dir
from vacc_deploy.cli import ErrorGroup, cli
from vacc_deploy.cli.failures import is_memory_short, report_thread
from vacc_deploy.cli.options import common_options, settings
from vacc_deploy.cli.telling import cut_message, tell
from vacc_deploy.errors import CheckpointError


class PanicException(BaseException):
    """What libraries in Rust raise is no ``Exception``."""


def fail_with(err, *args, name="generate"):
    """Return the result of a command that ends in ``err``."""

    @click.command(name)
    @common_options
    def command():
        raise err

    return CliRunner().invoke(ErrorGroup(commands={name: command}), [name, *args])


@pytest.mark.parametrize(
    "err",
    [
        MemoryError(),
        MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,)"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("unable to mmap 8 bytes from file <a>: Cannot allocate memory (12)"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        ImportError("libgomp.so.1: cannot allocate memory in static TLS block"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_too_little_memory_says_what_to_do(err):
    result = fail_with(err)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: Not enough memory")
    assert " are free on this machine" in result.stderr
    assert result.stderr.endswith(
        "Give the process more (end other programs, raise the limit of the shell or of the "
        "container), or ask for less with --max-new-tokens, or for one prompt at a time.\n"
    )


def test_a_package_that_is_missing_is_named_with_what_to_do():
    result = fail_with(ModuleNotFoundError("No module named 'tokenizers'", name="tokenizers"))
    assert result.exit_code == 1
    assert "Error: The package tokenizers, which vacc-deploy needs, is not" in result.stderr
    own = fail_with(ModuleNotFoundError("No module named 'vacc_deploy.x'", name="vacc_deploy.x"))
    assert "Something unexpected" in own.stderr


def test_a_full_disk_is_no_lack_of_memory():
    err = OSError(28, "No space left on device", "out of memory.bin")
    assert not is_memory_short(err)
    assert not is_memory_short(CheckpointError("m.safetensors: out of memory"))
    assert fail_with(err).stderr == (
        "Error: out of memory.bin: No space left on device. Free space, or choose another "
        "--output, then run the command again.\n"
    )


def test_nesting_and_threads_have_words_of_their_own():
    assert "nested too deeply for " in fail_with(RecursionError("maximum depth")).stderr
    assert "(ulimit -u" in fail_with(RuntimeError("can't start new thread")).stderr


@pytest.mark.parametrize("err", [TypeError("ours"), PanicException("ours"), KeyError("ours")])
def test_what_nobody_expects_is_one_line_and_the_traceback_under_debug(err):
    result = fail_with(err)
    kind, said = type(err).__name__, str(err)
    assert result.exit_code == 1 and result.stdout == ""
    # The command of this test lies in no package of ours; its module is the library.
    assert re.fullmatch(
        rf"Error: Something unexpected happened in vacc_deploy\.cli[\w., ]*: {kind}: {said}\. "
        r"This is a fault of the program, or a file that it does not know how to refuse\. Run the "
        r"same command with --debug and report what it prints\.\n",
        result.stderr,
    )
    assert "Traceback" in fail_with(err, "--debug").stderr
    result = fail_with(err, "--json")
    assert json.loads(result.stdout)["error"]["type"] == kind


def test_the_library_that_failed_is_named(tmp_path):
    def parse():
        json.loads("{")

    command = click.Command("parse", callback=parse)
    result = CliRunner().invoke(ErrorGroup(commands={"parse": command}), ["parse"])
    assert re.search(
        r"happened in vacc_deploy\.cli\S*, within json: JSONDecodeError", result.stderr
    )


def test_what_a_run_keeps_follows_an_unexpected_error():
    @click.command("quantize")
    def command():
        settings()["kept"] = "2 of 4 layers are finished and kept. Resume with: x --resume"
        raise TypeError("ours")

    result = CliRunner().invoke(ErrorGroup(commands={"quantize": command}), ["quantize"])
    assert result.stderr.endswith("what it prints. 2 of 4 layers are finished and kept. Resume "
                                  "with: x --resume\n")  # fmt: skip


def test_messages_are_cut_in_the_middle_and_whole_under_debug(capsys):
    limit = bounds.MESSAGE_CHARACTERS
    assert cut_message("x" * limit) == "x" * limit
    text = f"a{'x' * 100_000}\nRun: vacc-deploy"
    result = fail_with(CheckpointError(text))
    assert len(result.stderr) < limit + 100
    assert result.stderr.startswith("Error: axxx") and result.stderr.endswith(
        "x\nRun: vacc-deploy\n"
    )
    assert "[... 96,018 characters left out ...]" in result.stderr
    assert text in fail_with(CheckpointError(text), "--debug").stderr
    tell(text)
    assert len(capsys.readouterr().err) < limit + 100


def test_a_thread_that_fails_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", report_thread)
    thread = threading.Thread(target=lambda: [][0], name="reader")
    thread.start()
    thread.join()
    assert capsys.readouterr().err == (
        "Warning: the thread reader has ended: IndexError: list index out of range\n"
    )


def run(script, **options):
    command = ["bash", "-c", script, "bash", sys.executable, "-m", "vacc_deploy"]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("option", ["", "--json"])
def test_a_stdout_that_is_full_is_named(option):
    result = run(f'"$@" models {option} > /dev/full')
    assert result.returncode == 1
    assert result.stderr.startswith("Error: stdout: No space left on device. Free space")


def test_a_stderr_that_is_full_or_closed_changes_nothing():
    for end in ("2> /dev/full", "2>&-", ">&-"):
        assert run(f'"$@" models {end}').returncode == 0
    assert run('"$@" generate /none --prompt x 2> /dev/full').returncode == 1


def test_no_more_threads_is_no_traceback():
    script = """
import resource, threading
def refuse(*_): raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
from vacc_deploy.cli import main
import sys
sys.argv = ["vacc-deploy", "models"]
main()
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""


def test_a_limit_on_memory_is_told():
    err = MemoryError()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 45, limits[1]))
    try:
        assert "may use 32768.0 GiB of addresses (ulimit -v)" in fail_with(err).stderr
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("megabytes", [200, 600])
def test_less_memory_than_torch_takes_is_told_before_it_is_loaded(megabytes):
    script = f'ulimit -v {megabytes << 10}; "$@" generate /none --prompt x --json'
    result = run(script)
    assert result.returncode == 1
    assert json.loads(result.stdout)["error"]["type"] == "MemoryError"
    assert result.stderr.startswith(
        "Error: Not enough memory (MemoryError: torch alone needs 768.0 MiB of addresses): "
    )
    assert run(f'ulimit -v {megabytes << 10}; "$@" generate --help').returncode == 0


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Free space"),
        (errno.EIO, "The disk, or the connection to it, fails"),
        (errno.EMFILE, "Raise the limit on open files (ulimit -n)"),
        (errno.EFBIG, "Raise the limit on the size of files (ulimit -f)"),
        (errno.EROFS, "Choose an --output on a file system that can be written"),
        (errno.EXDEV, "Put this right"),
    ],
)
def test_what_the_system_refuses_is_told_with_what_to_do(number, advice):
    result = fail_with(OSError(number, os.strerror(number), "/m/out.partial/config.json"))
    assert result.exit_code == 1
    assert result.stderr.startswith(
        f"Error: /m/out.partial/config.json: {os.strerror(number)}. {advice}"
    )
    assert result.stderr.endswith("run the command again.\n") or number == errno.EIO


@pytest.mark.parametrize("opening", ["path.open()", "open(path)"])
def test_an_error_on_an_open_file_names_the_file(tmp_path, opening):
    path = tmp_path / "config.json"
    path.touch()
    ours = {"__name__": "vacc_deploy.made_up"}
    exec(f"def read(path, err):\n  with {opening} as file:\n    raise err", ours)
    with pytest.raises(OSError, match="Input/output") as caught:
        ours["read"](path, OSError(errno.EIO, os.strerror(errno.EIO)))
    assert fail_with(caught.value).stderr.startswith(f"Error: {path}: Input/output error. The disk")


@pytest.mark.parametrize("is_absolute", [True, False])
def test_a_working_directory_that_was_removed_is_told_as_that(tmp_path, monkeypatch, is_absolute):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    output = tmp_path / "out" if is_absolute else "out"
    arguments = ["prepare", str(demo_model_dir()), "--output", str(output)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: The working directory was removed. Change to another one, then run the command "
        "again.\n"
    )
