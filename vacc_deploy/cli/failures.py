"""Say in one place how a command failed: whatever was raised becomes one message and a code.

An error of ours says all by itself. What the system, Python or a library raises is put in words
here, without a traceback unless ``--debug`` asks for it.
"""

from __future__ import annotations

import errno
import io
import os
import re
import resource
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import click

from vacc_deploy.cli.options import emit_error
from vacc_deploy.cli.telling import cut_message, tell
from vacc_deploy.errors import VaccDeployError, add_sentence
from vacc_deploy.permissions import advise, explain_denied, is_denied
from vacc_deploy.results import escape_controls, format_bytes
from vacc_deploy.system import available_memory_bytes, peak_address_bytes

# How libraries say that memory is short; most have no class of their own for it.
_NO_MEMORY = re.compile(
    r"allocate memory|out of memory|bad_alloc|failed to map segment|unable to allocate"
    r"|unable to mmap|static TLS",
    re.IGNORECASE,
)
_NO_THREAD = "can't start new thread"
_LESS_MEMORY = {
    "quantize": "ask for less with --preset light, --num-samples or --seq-len (--dry-run predicts "
    "the memory)",
    "verify": "ask for less with --max-tokens or --seq-len",
    "generate": "ask for less with --max-new-tokens, or for one prompt at a time",
    "export-onnx": "ask for less with --seq-len, --max-seq-len or one --stage",
}


class CommandFailure(click.ClickException):
    """A failure on its way to the terminal."""

    def __init__(self, err: BaseException, message: str, exit_code: int, settings: dict[str, Any]):
        super().__init__(message if settings.get("debug") else cut_message(message))
        self.err, self.settings = err, settings
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message on stderr, and as an object on stdout under ``--json``."""
        if self.settings.get("debug"):
            text = "".join(traceback.format_exception(self.err))
            click.echo(escape_controls(text), err=True)
        if self.settings.get("json"):
            with suppress(OSError):  # a full stdout may be what the message tells of
                emit_error(type(self.err).__name__, self.message)
        click.echo(escape_controls(f"Error: {self.message}"), file=file, err=True)


class Interruption(CommandFailure):
    """An interrupted command on its way to the terminal."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print what stays; the object on stdout only where the result is not there already."""
        if self.settings.get("is_silent"):
            return
        if self.settings.get("json") and not self.settings.get("is_printed"):
            emit_error(type(self.err).__name__, self.message)
        with suppress(OSError):  # the terminal may be gone
            if sys.stderr.isatty():
                # Behind ^C and an open bar, which has hidden the cursor.
                click.echo("\x1b[?25h", err=True)
            click.echo(escape_controls(self.message), file=file, err=True)


def failure_of(err: BaseException, command: str, settings: dict[str, Any]) -> CommandFailure:
    """Return the failure that an exception of any kind becomes.

    Args:
        err: what ended the command; neither an interruption nor one of click's.
        command: its name.
        settings: what the parts of the command know of each other.
    """
    if isinstance(err, VaccDeployError):
        return CommandFailure(err, add_sentence(str(err), err.hint), err.exit_code, settings)
    if is_memory_short(err):
        message = _explain_memory(err, command)
        if not settings.get("debug"):
            # The frames hold what has taken the memory.
            traceback.clear_frames(err.__traceback__)
    elif isinstance(err, OSError):
        message = _explain_system(err)
    elif isinstance(err, ModuleNotFoundError) and not (err.name or "").startswith("vacc_deploy"):
        message = (
            f"The package {err.name}, which vacc-deploy needs, is not installed for "
            f"{sys.executable}. Install vacc-deploy again there: its packages come with it."
        )
    elif isinstance(err, RecursionError):
        message = (
            f"A value is nested too deeply for {_locate(err)}. Look for a file with very many "
            "brackets within each other, and restore it from the model's original repository."
        )
    elif isinstance(err, RuntimeError) and _NO_THREAD in str(err):
        message = (
            "The system lets this process start no more threads. Raise the limit on processes and "
            "threads (ulimit -u, or that of the container), or end other programs, then run the "
            "command again."
        )
    else:
        message = _explain_unexpected(err)
    kept = str(settings.get("kept") or "")
    return CommandFailure(err, add_sentence(message, kept), 1, settings)


def is_memory_short(err: BaseException) -> bool:
    """Return whether an exception says that there is not enough memory."""
    if isinstance(err, MemoryError):
        return True
    if isinstance(err, OSError) and err.errno is not None:
        return err.errno == errno.ENOMEM
    if isinstance(err, VaccDeployError):
        return False
    # Short of addresses, libraries say all kinds of things, and no thread gets its stack.
    return bool(_NO_MEMORY.search(str(err)[:4000])) or _is_at_address_limit()


def _is_at_address_limit() -> bool:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return limit != resource.RLIM_INFINITY and peak_address_bytes() > 0.8 * limit


def report_thread(args: threading.ExceptHookArgs) -> None:
    """Say in one line that a thread has failed whose result nobody waits for."""
    if args.exc_value is not None:
        name = args.thread.name if args.thread else "unknown"
        tell(f"Warning: the thread {name} has ended: {_first_line(args.exc_value)}")


def _explain_memory(err: BaseException, command: str) -> str:
    said = "" if isinstance(err, MemoryError) and not str(err) else f" ({_first_line(err)})"
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    state = f"{format_bytes(available_memory_bytes())} are free on this machine"
    if limit != resource.RLIM_INFINITY:
        state += f", and this process may use {format_bytes(limit)} of addresses (ulimit -v)"
    less = f", or {_LESS_MEMORY[command]}" if command in _LESS_MEMORY else ""
    return (
        f"Not enough memory{said}: {state}. Give the process more (end other programs, raise the "
        f"limit of the shell or of the container){less}."
    )


def _explain_system(err: OSError) -> str:
    if is_denied(err) and err.filename:
        return explain_denied(Path(os.fsdecode(err.filename)))
    if err.errno == errno.ENOENT and err.filename is None and _lacks_working_directory():
        return (
            "The working directory was removed. Change to another one, then run the command again."
        )
    name = os.fsdecode(err.filename) if isinstance(err.filename, (str, bytes)) else _find_open(err)
    where = f"{name}: " if name else ""
    return f"{where}{err.strerror or err}. {advise(err)}"


def _lacks_working_directory() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _find_open(err: BaseException) -> str:
    """Return the file that the innermost function had open, or nothing.

    What fails on an open file gives no name.
    """
    name = ""
    for frame, _ in traceback.walk_tb(err.__traceback__):
        files = [value for value in frame.f_locals.values() if isinstance(value, io.IOBase)]
        names = [getattr(file, "name", None) for file in files]
        name = next((str(n) for n in names if isinstance(n, (str, os.PathLike))), name)
    return name


def _explain_unexpected(err: BaseException) -> str:
    return (
        f"Something unexpected happened in {_locate(err)}: {_first_line(err)}. This is a fault of "
        "the program, or a file that it does not know how to refuse. Run the same command with "
        "--debug and report what it prints."
    )


def _first_line(err: BaseException) -> str:
    """Return the class and the first line of what an exception says, cut."""
    text = ""
    with suppress(Exception):  # a __str__ of a stranger's class may fail too
        text = (str(err).strip().splitlines() or [""])[0]
    cut = f"{text[:300]}..." if len(text) > 300 else text
    return f"{type(err).__name__}: {cut}".removesuffix(": ").removesuffix(".")


def _locate(err: BaseException) -> str:
    """Return our innermost function that was running, and the library that it had called."""
    ours, library = "vacc_deploy", ""
    for frame, _ in traceback.walk_tb(err.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if module.split(".")[0] == "vacc_deploy":
            ours, library = f"{module}.{frame.f_code.co_name}", ""
        else:
            library = module.split(".")[0]
    # A library in another language has no frames, but classes of its own.
    library = library or type(err).__module__.split(".")[0]
    if library in ("", "builtins", "vacc_deploy"):
        return ours
    # Imported here: it takes a tenth of the time of --help.
    from importlib.metadata import PackageNotFoundError, version

    with suppress(PackageNotFoundError):
        library += f" {version(library)}"
    return f"{ours}, within {library}"
