"""Options that several commands share, and the printing of results."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from vacc_deploy.cli.telling import tell
from vacc_deploy.results import Result, command, escape_controls, format_bytes

Function = TypeVar("Function", bound=Callable[..., Any])

# Loading torch for a CPU takes nearly as much, and ends the process where it does not get it.
_MIN_ADDRESS_BYTES = 768 << 20
_WITH_TORCH = ("quantize", "verify", "evaluate", "generate", "export-onnx", "demo")

DIRECTORY = click.Path(file_okay=False, path_type=Path)
# A directory that is read, a repository or a model name: locate() says best what is wrong with one.
CHECKPOINT = click.Path(readable=False)
FILE = click.Path(dir_okay=False, path_type=Path)


def _setting(name: str, text: str) -> Callable[[Function], Function]:
    """Return a flag that every command has; its value is read from the root context."""

    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        ctx.find_root().meta[name] = value

    # Eager: an error in another option is then shown as this one asks.
    return click.option(
        f"--{name}", is_flag=True, is_eager=True, expose_value=False, callback=remember, help=text
    )


def common_options(function: Function) -> Function:
    """Add ``--json`` and ``--debug``, which every command has."""

    @wraps(function)
    def checked(*args: Any, **given: Any) -> Any:
        _check_address_space(str(click.get_current_context().info_name))
        return function(*args, **given)

    as_json = _setting("json", "Print one JSON object instead of text.")
    return as_json(_setting("debug", "Show the traceback of an error.")(cast(Function, checked)))


def _check_address_space(command_name: str) -> None:
    """Refuse a limit on this process that is too small for torch.

    Raises:
        MemoryError: says what is needed.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if command_name in _WITH_TORCH and 0 <= limit < _MIN_ADDRESS_BYTES:
        raise MemoryError(f"torch alone needs {format_bytes(_MIN_ADDRESS_BYTES)} of addresses")


def given_options(context: click.Context, names: Collection[str]) -> list[str]:
    """Return those of the options ``names`` that the user gave, as they were written.

    ``--no-`` forms have names of their own.
    """
    given = []
    for param in context.command.params:
        name = str(param.name)
        if name in names and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            is_negated = context.params[name] is False and param.secondary_opts
            given.append((param.secondary_opts if is_negated else param.opts)[0])
    return given


def again_with(name: str, value: object, *, without: Collection[str] = ()) -> str:
    """Return the command line that the user gave, with another value of one parameter.

    Args:
        name: the parameter.
        value: its new value.
        without: names of parameters to leave out.
    """
    context, words = click.get_current_context(), list[object]()
    for param in context.command.params:
        is_given = context.get_parameter_source(str(param.name)) is ParameterSource.COMMANDLINE
        if param.name == name:
            words += _words(param, value)
        elif is_given and param.name in context.params and param.name not in without:
            words += _words(param, context.params[param.name])
    return command(str(context.info_name), *words)


def _words(param: click.Parameter, value: Any) -> list[object]:
    """Return a parameter as it is written on the command line."""
    if isinstance(param, click.Argument):
        return list(value) if isinstance(value, tuple) else [value]
    if isinstance(value, bool):
        return [(param.opts if value else param.secondary_opts)[0]]
    values = value if isinstance(value, tuple) else (value,)
    return [word for item in values for word in (param.opts[0], item)]


def output_option(text: str = "Set the output directory.", **more: Any) -> Callable[..., Any]:
    """Return ``--output``; ``more`` are settings of click."""
    return click.option("--output", type=DIRECTORY, metavar="DIR", help=text, **more)


def output_options(function: Function) -> Function:
    """Add ``--overwrite`` and ``--dry-run``, for commands that write a directory."""
    overwrite = click.option(
        "--overwrite", is_flag=True, help="Replace the output if it exists already."
    )
    dry_run = click.option(
        "--dry-run", is_flag=True, help="Check everything, print the plan, write nothing."
    )
    return overwrite(dry_run(function))


# Kept here, and compared in a test: models.rope, which owns them, would slow --help down.
ATTN_FACTORS = ("multiply", "ignore")


def attn_factor_option(default: str) -> Callable[[Function], Function]:
    """Return ``--attn-factor``; ``default`` says in the help what holds without it."""
    return click.option(
        "--attn-factor",
        type=click.Choice(ATTN_FACTORS),
        help="Read yarn's attn_factor of the float model as its makers mean it (multiply) or as "
        f"transformers does (ignore).  [default: {default}]",
    )


def settings() -> dict[str, Any]:
    """Return what all parts of the running command know of each other, by name.

    ``json`` and ``debug`` are the options. ``kept`` is what follows the message of an unexpected
    error. ``what_stays`` returns the sentence on what an
    interrupted command keeps; ``is_silent`` says that another process speaks for this one;
    ``is_printed`` that the result is on its way to stdout.
    """
    return click.get_current_context().meta


@contextmanager
def downloading() -> Iterator[None]:
    """Let an interruption within this block tell where the rest of a download lies."""
    from huggingface_hub.constants import HF_HUB_CACHE

    before = settings().get("what_stays")
    settings()["what_stays"] = lambda: (
        f"What was downloaded stays in the Hugging Face cache ({HF_HUB_CACHE}). The same command "
        "continues the download."
    )
    yield
    # Not after an interruption, which it is to tell of.
    settings()["what_stays"] = before


def say(note: str) -> None:
    """Print a note on stderr."""
    tell(f"Note: {note}")


def is_json() -> bool:
    """Return whether ``--json`` was given."""
    return bool(settings().get("json"))


def emit(result: Result) -> None:
    """Print a result on stdout: text, or one JSON object under ``--json``."""
    settings()["is_printed"] = True
    if is_json():
        emit_json(result.to_dict())
    else:
        print_out(escape_controls(result.to_text()))


def emit_error(kind: str, message: str) -> None:
    """Print an error as one JSON object on stdout."""
    emit_json({"error": {"type": kind, "message": message}})


def emit_json(values: dict[str, Any]) -> None:
    """Print one JSON object on stdout; it reads back as ``values`` to the letter."""
    text = json.dumps(values, ensure_ascii=False, indent=2)
    print_out(escape_controls(text, escape=lambda char: json.dumps(char)[1:-1]))


def print_out(text: str, *, nl: bool = True) -> None:
    """Print on stdout; an error of the system names it."""
    try:
        click.echo(text, nl=nl)
    except OSError as err:
        err.filename = err.filename or "stdout"  # the system does not say what is full
        raise
