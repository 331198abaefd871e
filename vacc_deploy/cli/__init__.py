"""The command line: parse, call one function, print its result, set the exit code.

No torch and no transformers at import time, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import io
import sys
import threading
import warnings
from contextlib import suppress
from itertools import takewhile
from typing import Any

import click

from vacc_deploy import __version__
from vacc_deploy.cli.check import check_command
from vacc_deploy.cli.demo import demo_command
from vacc_deploy.cli.evaluate import evaluate_command
from vacc_deploy.cli.export_onnx import export_onnx_command
from vacc_deploy.cli.failures import Interruption, failure_of, report_thread
from vacc_deploy.cli.generate import generate_command
from vacc_deploy.cli.models import models_command
from vacc_deploy.cli.options import emit_error
from vacc_deploy.cli.prepare import prepare_command
from vacc_deploy.cli.quantize import quantize_command
from vacc_deploy.cli.signals import SignalGuard, signal_of
from vacc_deploy.cli.streams import open_closed
from vacc_deploy.cli.verify import verify_command
from vacc_deploy.cli.yaml import yaml_command
from vacc_deploy.errors import StoppedError, UsageError

# What a word more than a command takes was probably meant for.
_EXTRA_ARGUMENTS = {
    "demo": "Give the output directory with --output DIR.",
    "evaluate": "Give the float model with --reference REFERENCE, and the data with --data.",
    "export-onnx": "Give the output directory with --output DIR.",
    "generate": "Put the prompt in quotation marks and give it with --prompt TEXT.",
    "models": "The command takes no argument; it lists every model.",
    "prepare": "Give the output directory with --output DIR.",
    "quantize": "Give calibration text with --calibration NAME=PATH and the output directory with "
    "--output DIR.",
    "verify": "Give the float model with --reference REFERENCE.",
    "yaml": "Give the file to write with --output FILE.",
}


# Steps of the vendor's programs that a user may look for here.
_NOT_HERE = {
    "compile": "Compiling is the vendor's step: vamc compile FILE.yaml (docs/deploy.md).",
    "serve": "Serving is the vendor's step: vastgenx serve (docs/deploy.md).",
}


class ErrorGroup(click.Group):
    """Turns the errors a user can meet into one message and an exit code, in one place."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command; say of the vendor's steps whose they are."""
        if args and args[0] in _NOT_HERE and args[0] not in self.commands:
            raise click.UsageError(f"There is no command {args[0]} yet. {_NOT_HERE[args[0]]}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; see ``docs/cli.md`` for the exit codes."""
        if isinstance(ctx.obj, SignalGuard):
            ctx.obj.say = lambda signum: self._interrupted(ctx, signum, is_forced=True).show()
        try:
            return super().invoke(ctx)
        except click.UsageError as err:
            advice = _EXTRA_ARGUMENTS.get(err.ctx.command.name or "") if err.ctx else None
            if advice and err.message.startswith("Got unexpected extra argument"):
                raise click.UsageError(f"{err.message}. {advice}", err.ctx) from err
            raise
        except (click.ClickException, click.Abort, click.exceptions.Exit, SystemExit):
            raise
        except KeyboardInterrupt as err:
            raise self._interrupted(ctx, signal_of(err)) from err
        except BaseException as err:
            # click ends quietly where the pipe's reader has gone, as in `| head`.
            if isinstance(err, OSError) and err.errno == errno.EPIPE:
                raise
            # Libraries in Rust raise classes that are no Exception.
            raise failure_of(err, ctx.invoked_subcommand or "", ctx.meta) from err

    def _interrupted(
        self, ctx: click.Context, signum: int, *, is_forced: bool = False
    ) -> Interruption:
        """Return what is said of an interruption; a forced one has cleared nothing up."""
        what_stays = ctx.meta.get("what_stays")
        text = what_stays() if what_stays else ""
        # What can be replaced can be half-written.
        command = self.commands.get(ctx.invoked_subcommand or "")
        is_writer = command is not None and any(p.name == "overwrite" for p in command.params)
        if not text and is_writer:
            text = _HALF_WRITTEN if is_forced else "No half-written output was left."
        err = StoppedError("Interrupted.", signum)
        return Interruption(err, f"{err} {text}".rstrip(), err.exit_code, ctx.meta)


_HALF_WRITTEN = (
    "Half-written files may be left beside the output. Their names end in .partial, and the next "
    "run for the same output removes them."
)


@click.group(
    cls=ErrorGroup,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, prog_name="vacc-deploy")
def cli() -> None:
    """Quantize and deploy DeepSeek-R1 distills (Qwen, Llama) on Vastai VACC cards.

    \b
    The way of a model:
      prepare      put the compiler's files beside the weights
      quantize     write per-channel int8 weights
      verify       prove on this CPU that the result computes what the float model computed
      evaluate     measure accuracy beside the float model
      yaml         write the compile file for vamc
      check        find every fault that can be seen in the files, before hours of compiling
      export-onnx  write the graphs that are compiled, run them on this CPU

    Example: vacc-deploy demo
    """


for _command in (
    demo_command,
    models_command,
    prepare_command,
    quantize_command,
    yaml_command,
    check_command,
    verify_command,
    evaluate_command,
    export_onnx_command,
    generate_command,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line; the console script's entry point."""
    # Before anything opens a file.
    open_closed()
    guard = SignalGuard()
    try:
        # Inside: a signal may come as soon as it is watched for.
        guard.install()
        threading.excepthook = report_thread
        if not sys.warnoptions:
            # Those of libraries are for programmers; ours are notes.
            warnings.simplefilter("ignore")
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A path that is not valid UTF-8 is printed as its escape, which JSON reads too.
            sys.stdout.reconfigure(errors="backslashreplace")
        # False: click would print wrong usage itself, without the JSON object.
        code = cli.main(standalone_mode=False, obj=guard)
    except click.ClickException as err:
        code = err.exit_code
        # Not where the guard is about to end this process, and says so itself.
        if guard.claim():
            # A stdout or stderr that takes nothing does not change how the command ended.
            with suppress(OSError):
                _show(err)
    except (click.Abort, KeyboardInterrupt) as err:
        # Before the command began. click makes its Abort of every interruption.
        code = 128 + signal_of(err if isinstance(err, KeyboardInterrupt) else err.__cause__)
        if guard.claim():
            with suppress(OSError):
                click.echo("Interrupted.", err=True)
    except click.exceptions.Exit as err:
        code = err.exit_code
    guard.claim()
    sys.exit(code)


def _show(err: click.ClickException) -> None:
    # Wrong usage is found before the option has been read.
    arguments = takewhile(lambda argument: argument != "--", sys.argv[1:])
    if isinstance(err, click.UsageError) and "--json" in arguments:
        emit_error(UsageError.__name__, err.format_message())
    err.show()


__all__ = ["cli", "main"]
