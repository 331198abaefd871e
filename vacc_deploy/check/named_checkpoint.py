"""Whether vamc finds what a compile file names, and may write where the file says."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vacc_deploy.errors import shorten
from vacc_deploy.lookup.locate import find_repository
from vacc_deploy.problems.compile_directory import (
    COMPILED_BEFORE,
    ELSEWHERE,
    NO_CHECKPOINT,
    NO_MODEL,
    NOT_MADE_YET,
    ONE_PLACE,
    WORKSPACE,
)
from vacc_deploy.problems.problem import Problem
from vacc_deploy.vamc.keys import CHECKPOINT
from vacc_deploy.vamc.named import Named, model_of_path
from vacc_deploy.vamc.options import DTYPES
from vacc_deploy.vamc.target import catalog_target

_NOT_CHECKED = "the file was not checked against its directory"
_WORKSPACE = "workspace.path"


def find_place_problems(named: Named) -> Iterator[Problem]:
    """Say where the checkpoint of a compile file was looked for, and whether it is there."""
    shown = shorten(named.text, 300)
    if named.directory is not None:
        if len(named.found_from) < len(named.looked_from):
            yield _found_once(named, shown)
        return
    if any(os.path.isfile(base / named.text) for base in named.looked_from or (Path(),)):
        text = f"{CHECKPOINT}: {shown} is a file, expected the directory of a model"
        yield NO_MODEL.broken(text, where=CHECKPOINT, got=shown)
    elif os.path.isabs(named.text):
        text = f"{CHECKPOINT}: {shown} is not on this machine; {_NOT_CHECKED}"
        yield ELSEWHERE.broken(text, where=CHECKPOINT, got=shown)
    elif maker := _maker(named.text):
        text = f"{CHECKPOINT}: {maker} It is not here; {_NOT_CHECKED}"
        yield NOT_MADE_YET.broken(text, where=CHECKPOINT, got=shown)
    elif find_repository(named.text):
        text = (
            f"{CHECKPOINT}: there is no directory {shown} here, so it is read as a repository of "
            f"the hub; {_NOT_CHECKED}"
        )
        yield ELSEWHERE.broken(text, where=CHECKPOINT, got=shown)
    else:
        places = " or in ".join(map(str, named.looked_from))
        text = f"{CHECKPOINT}: there is no directory {shown} in {places}"
        yield NO_CHECKPOINT.broken(text, where=CHECKPOINT, got=shown)


def _found_once(named: Named, shown: str) -> Problem:
    (base,) = named.found_from
    other = next(place for place in named.looked_from if place != base)
    text = (
        f"{CHECKPOINT}: {shown} is in {base} and not in {other}. Start vamc in {base}, or write "
        "an absolute path"
    )
    return ONE_PLACE.broken(text, where=CHECKPOINT, got=shown, expected=str(base / named.text))


def _maker(text: str) -> str:
    """Return which command makes the directory, where it is a default output; else nothing."""
    model = model_of_path(text)
    targets = [catalog_target(model, dtype) for dtype in DTYPES] if model else []
    for target in targets:
        if os.path.normpath(text) == os.path.normpath(target.checkpoint):
            return target.notes[0]
    return ""


def find_workspace_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Look at ``workspace.path`` as vamc would from the working directory; write nothing."""
    given, name = values.get(_WORKSPACE, "").strip(), values.get("name", "")
    if not given:
        return
    path = Path.cwd() / given
    if reason := _why_no_path(path):
        text = f"{_WORKSPACE}: got {shorten(given, 300)}, which cannot be a directory: {reason}"
        yield WORKSPACE.broken(text, where=_WORKSPACE, got=given)
        return
    place = next(each for each in (path, *path.parents) if os.path.lexists(each))
    shown = shorten(place, 300)
    if not place.is_dir():
        text = f"{_WORKSPACE}: {shown} is not a directory"
        yield WORKSPACE.broken(text, where=_WORKSPACE, got=given)
    elif not os.access(place, os.W_OK | os.X_OK):
        text = f"{_WORKSPACE}: {shown} cannot be written by this user"
        yield WORKSPACE.broken(text, where=_WORKSPACE, got=given)
    elif name and not {"/", "\0"} & set(name) and os.path.lexists(path / name):
        text = f"{_WORKSPACE}: {shorten(path / name, 300)} exists already"
        yield COMPILED_BEFORE.broken(text, where=_WORKSPACE, got=name)


def _why_no_path(path: Path) -> str:
    """Return why the system takes a text for no path; empty where something may be there."""
    try:
        os.lstat(path)
    except ValueError:
        return "it has characters that no path has"
    except OSError as err:
        return "it is too long" if err.errno == errno.ENAMETOOLONG else ""
    return ""
