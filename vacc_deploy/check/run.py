"""Check directories and compile files, each by itself and against each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vacc_deploy.check.compile_file import CheckedCompileFile, check_compile_file
from vacc_deploy.check.directory import check_directory
from vacc_deploy.check.result import CheckedTarget, CheckResult
from vacc_deploy.errors import CheckpointError, CompileFileError, UsageError
from vacc_deploy.lookup.locate import find_repository, locate
from vacc_deploy.permissions import is_there
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.results import command
from vacc_deploy.vamc.cards import Card

DIRECTORY, COMPILE_FILE = "directory", "compile file"
_ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class CheckOptions:
    """What ``check`` is asked for.

    Attributes:
        card: the card that a compile file is for; None where no memory is computed.
        read_all: read all weights and compare all hashes.
        is_strict: let a warning fail the check.
    """

    card: Card | None = None
    read_all: bool = False
    is_strict: bool = False


def check(
    targets: Sequence[str],
    options: CheckOptions | None = None,
    *,
    progress: Progress = SILENT,
    again: Callable[[Path | str], str] = str,
) -> CheckResult:
    """Return everything that is wrong with the targets; nothing is written.

    Args:
        targets: directories, and compile files. A directory that a compile file names, and that is
            there, is checked too.
        options: None takes the defaults.
        progress: learns of the weight files.
        again: writes the user's command line with another target, for messages.

    Raises:
        UsageError: no target.
        CheckpointError: a target is neither a directory nor a file.
        CompileFileError: a compile file does not exist.
    """
    if not targets:
        raise UsageError("Give a directory or a compile file to check.")
    options = options or CheckOptions()
    checked, seen = list[CheckedTarget](), set[Path]()

    def add_directory(name: str, directory: Path) -> None:
        if directory.resolve() in seen:
            return
        seen.add(directory.resolve())
        found = check_directory(directory, read_all=options.read_all, progress=progress)
        checked.append(CheckedTarget(name, DIRECTORY, tuple(found.problems)))

    for name in targets:
        if not is_compile_file(name):
            add_directory(name, find_directory(name, again))
            continue
        if not os.path.lexists(name):
            raise CompileFileError(f"{name} does not exist. Give a compile file or a directory.")
        file = check_compile_file(Path(name), options.card)
        checked.append(_describe_file(name, file))
        if file.directory is not None:
            add_directory(str(file.directory), file.directory)
    return CheckResult(tuple(checked), options.is_strict)


def find_directory(name: str, again: Callable[[Path | str], str] = str) -> Path:
    """Return the directory that a target is.

    Args:
        name: as it was given.
        again: writes the user's command line with another target, for messages.

    Raises:
        CheckpointError: it is none, or a repository of the hub, of which nothing is downloaded.
    """
    if not is_there(Path(name)) and find_repository(name):
        raise CheckpointError(
            f"{name} is a repository of the hub; check looks at directories of this machine. Run "
            f"first: {command('prepare', name)}"
        )
    return locate(name, again=again, may_download=False).directory


def is_compile_file(name: str) -> bool:
    """Return whether a target is meant as a compile file: it ends so, and is no directory."""
    return name.lower().endswith(_ENDINGS) and not Path(name).is_dir()


def _describe_file(name: str, file: CheckedCompileFile) -> CheckedTarget:
    details = {"memory": file.memory.to_dict()} if file.memory else {}
    figures = tuple(file.memory.to_pairs()) if file.memory else ()
    return CheckedTarget(name, COMPILE_FILE, tuple(file.problems), figures, details)
