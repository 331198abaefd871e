"""Say what a resumable run keeps when it ends early, and which command goes on."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vacc_deploy.cli.options import settings
from vacc_deploy.errors import QuantizationError, VaccDeployError
from vacc_deploy.progress import KeptLayers


@contextmanager
def hinting_at_resume(kept: KeptLayers, launcher: Sequence[str]) -> Iterator[None]:
    """Give the error of a run that keeps finished layers a hint how to go on."""
    try:
        yield
    except VaccDeployError as err:
        if kept.has_begun:
            # The same files would end the same way, and with others it is another run.
            is_inputs_fault = isinstance(err, QuantizationError)
            err.hint = describe_kept(kept, launcher, is_inputs_fault=is_inputs_fault)
        raise
    except Exception:
        # An error without a hint of its own: one of the system, of Python or of a library.
        if kept.has_begun:
            settings()["kept"] = describe_kept(kept, launcher)
        raise


def describe_kept(
    kept: KeptLayers, launcher: Sequence[str], *, is_inputs_fault: bool = False
) -> str:
    """Return what stays and how to go on; empty where no layer stays."""
    if not kept.finished:
        return ""
    sentence = f"{kept.finished} of {kept.total} layers are finished and kept."
    if is_inputs_fault:
        return (
            f"{sentence} --resume needs the same input files and options. With others, start over "
            "with --overwrite."
        )
    return f"{sentence} Resume with: {resume_command(sys.argv, launcher)}"


def resume_command(argv: Sequence[str], launcher: Sequence[str] = ()) -> str:
    """Return the command line that goes on with the run of ``argv``, as a shell reads it.

    Without ``--overwrite``: the run remembers that it may replace an older output.

    Args:
        argv: of this process.
        launcher: the program that started this and other processes, with its options.
    """
    return _command_with("--resume", "--overwrite", argv, launcher)


def overwrite_command(argv: Sequence[str], launcher: Sequence[str] = ()) -> str:
    """Return the command line that begins again; see ``resume_command``."""
    return _command_with("--overwrite", "--resume", argv, launcher)


def _command_with(flag: str, other: str, argv: Sequence[str], launcher: Sequence[str]) -> str:
    """Return the command line with ``flag`` and without ``other``."""
    program, arguments = argv[0], list(argv[1:])
    # Behind a "--" nothing is an option.
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [argument for argument in arguments[:end] if argument != other]
    arguments = [*options, *([] if flag in options else [flag]), *arguments[end:]]
    if launcher:
        return shlex.join([*launcher, "-m", "vacc_deploy", *arguments])
    if Path(program).name == "__main__.py":
        return shlex.join([sys.executable, "-m", "vacc_deploy", *arguments])
    found = shutil.which(Path(program).name)
    is_on_path = found is not None and Path(found).resolve() == Path(program).resolve()
    return shlex.join([Path(program).name if is_on_path else program, *arguments])
