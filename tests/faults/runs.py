"""The commands that are disturbed, where they run, and how: each in a fork of this process.

What a command imports is imported once, here; a run then takes a tenth of a second.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import torch
from checkpoint_builders import write_checkpoint
from fault import Fault, Layer
from texts import write_numbers

from vacc_deploy.formats.layouts import FORMATS
from vacc_deploy.outputs.manifests import _LIBRARIES

OUTPUT = "out"
# Every run writes them down, and reading them takes a third of its time.
_version = lru_cache(metadata.version)
# Of a machine that does much else meanwhile. The slowest undisturbed run takes three seconds.
LIMIT_SECONDS = 60.0
_GPTQ = ("--calibration", "text=words.txt", "--num-samples", "8", "--seq-len", "32")
# How an older output, which is to be replaced, was made otherwise.
_ELSE = {"model": "other", "prep": "prep-other", "spare": "spare-other", "codes": "codes-other"}


@dataclass(frozen=True)
class Command:
    """A command that is disturbed.

    Attributes:
        arguments: of the command line, without ``--overwrite`` and ``--resume``.
        output: what it writes, beside its inputs; empty for a command that only reads.
        is_resumable: it takes ``--resume``.
        is_set: its output is a directory of files that come one by one.
        older: other arguments, by which the older output was made; default: of another model.
        cost: of a run, in that of a cheap one.
    """

    name: str
    arguments: tuple[str, ...]
    output: str = OUTPUT
    is_resumable: bool = False
    is_set: bool = False
    older: tuple[str, ...] = ()
    cost: int = 1

    def older_arguments(self) -> tuple[str, ...]:
        """Return the arguments of the run that made the older output."""
        return self.older or tuple(_ELSE.get(word, word) for word in self.arguments)


def _prepare(name: str, source: str, *more: str) -> Command:
    return Command(name, ("prepare", "--weights", source, "--output", OUTPUT, *more))


def _quantize(name: str, formats: Sequence[str], *more: str, cost: int = 1) -> Command:
    words = [word for layout in formats for word in ("--format", layout)]
    if "gptq" in formats:  # the sizes of these models are below a group of 128
        words += ("--group-size", "-1")
    arguments = ("quantize", "model", "--output", OUTPUT, *words, *more)
    return Command(name, arguments, is_resumable=True, cost=cost)


_GRAPH = ("--seq-len", "128", "--stage", "prefill")
_VERIFY = ("--max-tokens", "64", "--seq-len", "32", "--max-kl", "inf", "--min-top1", "0")
COMMANDS = {
    command.name: command
    for command in (
        _prepare("prepare", "model"),
        _prepare("prepare copy", "model", "--link-mode", "copy"),
        _prepare("prepare symlink", "model", "--link-mode", "symlink"),
        _prepare("prepare changed", "spare"),
        *(_quantize(f"quantize {layout}", (layout,)) for layout in FORMATS),
        _quantize("quantize all formats", FORMATS),
        _quantize("quantize calibrated", ("int8",), *_GPTQ, cost=3),
        _quantize("quantize calibrated, all formats", FORMATS, *_GPTQ, cost=3),
        Command("yaml", ("yaml", "prep", "--output", "out.yaml"), "out.yaml",
                older=("yaml", "prep", "--tp", "2", "--output", "out.yaml")),
        Command("yaml --all", ("yaml", "--all", "--output", OUTPUT), is_set=True,
                older=("yaml", "--all", "--output", OUTPUT)),
        Command("export-onnx", ("export-onnx", "codes", "--output", OUTPUT, *_GRAPH), cost=12),
        Command("demo", ("demo", "--output", OUTPUT), older=("demo", "--output", OUTPUT), cost=60),
        Command("verify", ("verify", "codes", *_VERIFY, "--text", "words.txt"), ""),
        Command("generate", ("generate", "prep", "--prompt", "Hi", "--max-new-tokens", "2"), "",
                cost=3),
    )
}  # fmt: skip


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        code: the exit code, 128 + signal where a signal ended it.
        trace: kind and path of every call that was counted.
    """

    code: int
    stdout: str
    stderr: str
    seconds: float
    is_hung: bool = False
    trace: list[tuple[str, str]] = field(default_factory=list)


def work_in(sandbox: Path) -> Path:
    """Return where the commands of a sandbox run."""
    return sandbox / "work"


def build_inputs(sandbox: Path) -> Path:
    """Make a sandbox with every input, and with what is nobody's business; return it."""
    work = work_in(sandbox)
    work.mkdir(parents=True)
    (sandbox / "outside" / "home").mkdir(parents=True)
    (sandbox / "outside" / "secret.txt").write_text("secret-4711", "utf-8")
    for name in _LIBRARIES:
        _version(name)
    sizes = {"num_layers": 2, "intermediate_size": 64}
    spare = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    for seed, name in enumerate(("model", "other")):
        write_checkpoint(work / name, seed=seed, **sizes)
    for seed, name in enumerate(("spare", "spare-other")):
        write_checkpoint(work / name, seed=seed, shards=2, extra_tensors=spare, **sizes)
    for name in ("model", "other"):
        (work / name / "README.md").write_text(f"About {name}.\n", "utf-8")
    write_numbers(work / "words.txt", 1000)
    # Neighbours of an output, with names like those of its own files.
    for name in ("notes.txt", "out.txt", "out2", ".out.replaced-by-me.txt", "out.partial.txt"):
        (work / name).write_text(f"mine: {name}", "utf-8")
    (work / "out-mine").mkdir()
    (work / "out-mine" / "thesis.txt").write_text("mine", "utf-8")
    copies = "--link-mode", "copy"
    for source, prepared, codes in (
        ("model", "prep", "codes"),
        ("other", "prep-other", "codes-other"),
    ):
        arguments = ("prepare", "--weights", source, "--output", prepared, *copies)
        _expect_success(run(arguments, sandbox))
        arguments = ("quantize", prepared, "--output", codes, "--format", "int8")
        _expect_success(run(arguments, sandbox))
    return sandbox


def _expect_success(outcome: Outcome) -> None:
    assert outcome.code == 0, outcome.stderr


def copy_tree(source: Path, target: Path) -> Path:
    """Copy a directory with its links, hard ones too, and its times."""
    copied: dict[int, Path] = {}

    def copy(file: str, into: str) -> None:
        state = os.lstat(file)
        if state.st_nlink > 1 and state.st_ino in copied:
            os.link(copied[state.st_ino], into)
            return
        shutil.copy2(file, into, follow_symlinks=False)
        copied[state.st_ino] = Path(into)

    shutil.copytree(source, target, symlinks=True, copy_function=copy)
    return target


class Running:
    """A command at work in a fork of this process."""

    def __init__(
        self, arguments: Sequence[str], sandbox: Path, faults: Sequence[Fault], tag: str
    ) -> None:
        # Beside the sandbox, so that nothing in it is ours.
        self._logs = sandbox.with_name(f"{sandbox.name}.logs")
        self._logs.mkdir(exist_ok=True)
        self._names = [self._logs / f"{tag}.{what}" for what in ("out", "err", "trace")]
        self._reached, reached = os.pipe()
        go, self._go = os.pipe()
        self._began = time.monotonic()
        with warnings.catch_warnings():
            # Newer interpreters warn of forking beside the threads of a test runner.
            warnings.simplefilter("ignore", DeprecationWarning)
            sys.stdout.flush()
            sys.stderr.flush()
            self._pid = os.fork()
        if self._pid == 0:
            _be_command(arguments, sandbox, faults, self._names, (reached, go))
        os.close(reached)
        os.close(go)

    def wait_for_pause(self) -> bool:
        """Wait until the run pauses; return False where it ended before."""
        ready, _, _ = select.select([self._reached], [], [], LIMIT_SECONDS)
        return bool(ready) and os.read(self._reached, 1) == b"."

    def go_on(self) -> None:
        """Let a paused run go on."""
        with suppress(BrokenPipeError):
            os.write(self._go, b".")

    def wait(self) -> Outcome:
        """Wait for the end."""
        watch = os.pidfd_open(self._pid)
        left = self._began + LIMIT_SECONDS - time.monotonic()
        ready, _, _ = select.select([watch], [], [], max(left, 0.0))
        if not ready:
            os.kill(self._pid, signal.SIGKILL)
        _, status = os.waitpid(self._pid, 0)
        for descriptor in (watch, self._reached, self._go):
            os.close(descriptor)
        code = os.waitstatus_to_exitcode(status)
        out, err, trace = (
            path.read_text("utf-8", "replace") if path.exists() else "" for path in self._names
        )
        seconds = time.monotonic() - self._began
        calls = [tuple(line.split("\t", 1)) for line in trace.split("\n") if "\t" in line]
        return Outcome(128 - code if code < 0 else code, out, err, seconds, not ready, calls)


def run(
    arguments: Sequence[str], sandbox: Path, faults: Sequence[Fault] = (), tag: str = "a"
) -> Outcome:
    """Run a command in a sandbox to its end."""
    return Running(arguments, sandbox, faults, tag).wait()


def _be_command(
    arguments: Sequence[str],
    sandbox: Path,
    faults: Sequence[Fault],
    names: Sequence[Path],
    pipes: tuple[int, int],
) -> None:
    """Be the command from here to the end of this process."""
    code = 70
    try:
        os.environ["HOME"] = str(sandbox / "outside" / "home")
        os.chdir(work_in(sandbox))
        for name, descriptor in zip(names[:2], (1, 2), strict=True):
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, descriptor)
            os.close(file)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["vacc-deploy", *arguments]
        # What the fork shares stays shared, and is looked through by no collection.
        gc.freeze()
        metadata.version = _version
        # Two threads of a library would both want to mend what the fork did to torch's pool.
        torch.set_num_threads(1)
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(
                number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler
            )

        def pause() -> None:
            os.write(pipes[0], b".")
            os.read(pipes[1], 1)

        trace = os.open(names[2], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        write = os.write

        def tell(what: str, path: str) -> None:
            write(trace, f"{what}\t{path}\n".encode())

        layer = Layer(str(sandbox), faults, pause=pause, tell=tell)
        code = _call_main(layer)
        if not faults:  # of a disturbed run nobody asks for it
            calls = [*layer.trace, *(("import", module) for module in sys.modules)]
            with os.fdopen(trace, "w") as file:
                file.write("".join(f"{call}\t{what}\n" for call, what in calls))
    except BaseException as err:
        traceback.print_exc()
        code = 130 if isinstance(err, KeyboardInterrupt) else 1
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _call_main(layer: Layer) -> int:
    from vacc_deploy import cli

    try:
        layer.begin()
        cli.main()
    except SystemExit as err:
        return err.code if isinstance(err.code, int) else int(err.code is not None)
    return 0


def load(outcome: Outcome) -> None:
    """Import what a run imported, so that the next one finds it."""
    for call, module in outcome.trace:
        if call == "import" and module not in sys.modules:
            with suppress(Exception):
                importlib.import_module(module)
    outcome.trace = [entry for entry in outcome.trace if entry[0] != "import"]
