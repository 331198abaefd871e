"""Find the checkpoint that the user means: a directory, a repository of the hub, a known model."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from vacc_deploy.checkpoint.gguf_header import ENDING
from vacc_deploy.errors import CheckpointError, UsageError
from vacc_deploy.lookup.hub import Source, fetch
from vacc_deploy.lookup.recognize import ARCHIVES, PICKLES, recognize, recognize_missing
from vacc_deploy.models.catalog import OFFICIAL, ORGANIZATION, known_model, near_names
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.outputs.file_system import Say, ignore
from vacc_deploy.permissions import is_there

# The hub's own rule for owner/name, of which each part begins and ends with a letter or digit.
_PART = r"\w(?:[\w.-]{0,94}\w)?"
_REPOSITORY = re.compile(f"{_PART}/{_PART}", re.ASCII)
_PAGE = re.compile(
    r"https?://[^/\s]+/(?:models/)?(?!datasets/|spaces/)([^/\s?#]+/[^/\s?#]+)(?:[/?#].*)?",
    re.DOTALL,
)
_FILES = (".safetensors", ENDING, ".onnx", ".json", ".yaml", ".yml", ".git", *PICKLES, *ARCHIVES)


def locate(
    given: Path | str,
    *,
    again: Callable[[Path | str], str] = str,
    needs_float: bool = False,
    may_download: bool = True,
    before_download: Callable[[str], object] = lambda name: None,
    check_config: Callable[[ModelConfig], object] = lambda config: None,
    downloading: Callable[[], AbstractContextManager[None]] = nullcontext,
    say: Say = ignore,
) -> Source:
    """Return the checkpoint directory that the user means, and where it is from.

    A local directory wins. Else the id of a repository (``owner/name``) or a name of the catalogue
    is looked up in the caches of Hugging Face and ModelScope, and then downloaded. Nothing else
    asks the network.

    Args:
        given: what the user wrote.
        again: writes the user's command line with another path or name, for messages.
        needs_float: quantized weights are of no use in its place.
        may_download: false for a dry run.
        before_download: called with the model's name before anything is downloaded; whatever else
            can be refused should be refused here.
        check_config: called with the configuration before the weights are downloaded, likewise.
        downloading: entered while files are downloaded.
        say: receives what the user should know of the source.

    Raises:
        CheckpointError: there is no such checkpoint, or it is something else; says what to give.
        UsageError: nothing was given.
    """
    if not str(given):
        raise UsageError("The directory is an empty text. Is the shell variable set?")
    # The shell leaves the ~ of --weights=~/model as it is.
    path = Path(os.path.expanduser(given))
    if is_there(path):
        if finding := recognize(path, needs_float=needs_float):
            raise CheckpointError(finding.to_text(again))
        return Source(path)
    if page := _PAGE.fullmatch(str(given)):
        raise CheckpointError(
            f"{given} is a web page. Give the id of its repository:\n  {again(page[1])}"
        )
    repository = find_repository(str(given))
    if repository is None or (not known_model(str(given)) and _is_misspelt_path(path)):
        raise CheckpointError(_missing(path, again))
    near = near_names(str(given), cutoff=0.8, group=OFFICIAL) if not known_model(str(given)) else ()
    source = fetch(
        repository,
        again=again,
        may_download=may_download,
        before_download=before_download,
        check_config=check_config,
        downloading=downloading,
        prefix=f"There is no directory {given}{f' (did you mean {near[0]}?)' if near else ''}. ",
    )
    if source.note:
        say(source.note)
    return source


def find_repository(text: str) -> str | None:
    """Return the repository of the hub that ``text`` stands for, or None where it is a path."""
    if model := known_model(text):
        return model.repository
    # First: what is no id may be no name of a file either, for example too long for one.
    if not _is_id(text):
        return None
    # No misspelt model of the catalogue, no file, no path below a directory that is here.
    families = (f"{ORGANIZATION}/deepseek-r1-{end}-" for end in ("distill", "0528-qwen3"))
    is_misspelt = text.lower().startswith(tuple(families))
    is_path = text.lower().endswith(_FILES) or is_there(text.partition("/")[0])
    return None if is_misspelt or is_path else text


def _is_misspelt_path(path: Path) -> bool:
    """Return whether a path that is almost ``path`` exists, as where a directory is misspelt."""
    return any(isinstance(place, Path) for place in recognize_missing(path).instead)


def _is_id(text: str) -> bool:
    return bool(_REPOSITORY.fullmatch(text)) and "--" not in text and ".." not in text


def _missing(path: Path, again: Callable[[Path | str], str]) -> str:
    text = recognize_missing(path).to_text(again)
    if _is_id(str(path)) and path.parent.is_dir() and not str(path).lower().endswith(_FILES):
        text += (
            f"\nIf the repository of this name is meant, run first:\n  hf download {path} "
            f"--local-dir {path}"
        )
    return text
