"""What to say of a file or directory that was given as another kind than it is.

Only for plain text do these answers decide anything: ``explain_no_text`` refuses a file that is
surely something else. So a text is never told by its first letters alone.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from vacc_deploy.bounds import EXPLAINED_FILES, EXPLAINED_NAMES
from vacc_deploy.datasets.ceval_tables import SUBJECTS, find_table, name_with_folders
from vacc_deploy.datasets.recognize import RECORD_KEYS, TABLE, TITLES, Recognized, recognize


def explain_other_kind(kind: str, path: Path, *, weight: str = "") -> str | None:
    """Return the error of a file that is another kind than ``kind``; None where that is not so.

    Args:
        kind: kind that was named for it; empty where none was.
        path: calibration file, or a directory given in place of one.
        weight: what stood behind the path, for example ``:2``.
    """
    if os.path.isdir(path):
        return _explain_directory(kind, path, weight)
    found = recognize(path)
    if found is None or kind in (found.kind, *found.also):
        return None
    if found.is_text and kind in ("text", "traces"):
        return None
    expected = f", not {TITLES[kind]}" if kind else ""
    return f"{path} is {found.what}{expected}. {_advise(found, path, weight)}"


def explain_no_text(path: Path) -> str | None:
    """Return the error of a file that is no plain text, for ``--text``; None where it may be."""
    found = recognize(path)
    if found is None or found.is_text:
        return None
    # Records of a data set are of no use here, whatever they are converted to.
    is_data_set = bool(found.kind) or found.advice.endswith(RECORD_KEYS)
    is_data_set = is_data_set or bool(found.also and "text" not in found.also)
    advice = "Give a UTF-8 file that holds nothing but text." if is_data_set else found.advice
    return f"{path} is {found.what}, not plain text. {advice}"


def calibration_option(kind: str, path: Path, weight: str = "") -> str:
    """Return ``--calibration KIND=PATH`` as a shell reads it."""
    return shlex.join(["--calibration", f"{kind}={path}{weight}"])


def _advise(found: Recognized, path: Path, weight: str) -> str:
    return found.advice or f"Give {calibration_option(found.kind, path, weight)}."


def _explain_directory(kind: str, directory: Path, weight: str) -> str | None:
    """Return the error of a directory: which of its files to give, and as what."""
    paths = _candidates(directory)
    has_tables = any(map(_is_table, paths))
    files = [(path, found) for path in paths[:EXPLAINED_FILES] if (found := recognize(path))]
    # A README or a list is text too, so text is named only where it was asked for.
    fitting = [item for item in files if kind and kind in (item[1].kind, *item[1].also)]
    others = [item for item in files if item[1].kind and not item[1].is_text]
    if kind == "ceval" and (
        has_tables or not others or fitting[:1] and fitting[0][1].what == TABLE
    ):
        return None  # its reader has said what is wrong with the directory
    if has_tables and (not fitting or kind in ("text", "traces")):
        option = calibration_option("ceval", directory, weight)
        return f"{directory} is a directory with tables of C-Eval. Give {option}."
    for path, found in fitting or [item for item in files if not item[1].is_text]:
        inside = f"It holds {path}, which is {found.what}."
        return f"{directory} is a directory. {inside} {_advise(found, path, weight)}"
    return None


def _is_table(path: Path) -> bool:
    """Return whether a file is, by its name, a table of C-Eval."""
    table = find_table(name_with_folders(path))
    return table is not None and table.subject in SUBJECTS


def _candidates(directory: Path) -> list[Path]:
    """Return some files of a directory that may be data, in the order of their paths."""
    paths = sorted(islice(_walk(directory), EXPLAINED_NAMES))
    return [path for path in paths if path.is_file()]


def _walk(directory: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            Path(folder, name) for name in names if not name.startswith((".", "README", "LICENSE"))
        )
