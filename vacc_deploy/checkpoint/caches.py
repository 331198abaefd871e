"""The caches of Hugging Face and of ModelScope: what lies where, and whose a path is.

ModelScope has changed its layout several times. Below the cache folder a model lies in
``hub/models``, ``hub``, ``models`` or the folder itself, as ``OWNER/NAME``, where dots of the name
may be three underscores. The newest layout is ``models/OWNER--NAME/snapshots/REVISION``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from vacc_deploy.bounds import FOLDER_NAMES
from vacc_deploy.errors import CheckpointError, OutputError
from vacc_deploy.models.config import CONFIG_NAME
from vacc_deploy.permissions import explain_unreadable, real_path

HUGGING_FACE, MODELSCOPE = "the Hugging Face cache", "ModelScope's cache"
# Where ModelScope keeps unfinished files.
MODELSCOPE_TEMPORARY = "._____temp"
# What ModelScope writes beside a model's files. One of them is a pickle; none of them is read.
MODELSCOPE_SIGNS = (".msc", ".mv", ".mdl")
_DOT = "___"
_HUB_FOLDER = "models--"


def hub_folder(repository: str) -> str:
    """Return the name that the hub's cache gives the folder of a repository."""
    return f"{_HUB_FOLDER}{repository.replace('/', '--')}"


def hub_repository(name: str) -> str:
    """Return the repository whose folder in the hub's cache has this name; empty for another."""
    is_folder = name.startswith(_HUB_FOLDER)
    return name.removeprefix(_HUB_FOLDER).replace("--", "/") if is_folder else ""


def modelscope_cache() -> Path:
    """Return the folder of ModelScope's cache."""
    given = os.environ.get("MODELSCOPE_CACHE")
    return Path(os.path.expanduser(given or "~/.cache/modelscope"))


def _model_folders(cache: Path) -> tuple[Path, ...]:
    """Return the folders of a ModelScope cache that may hold models."""
    return (cache / "hub" / "models", cache / "hub", cache / "models", cache)


def modelscope_places(repository: str) -> Iterator[Path]:
    """Yield the directories in ModelScope's cache that may hold the finished files of a model."""
    owner, _, name = repository.partition("/")
    for folder in _model_folders(modelscope_cache()):
        for place in dict.fromkeys(
            (
                folder / owner / name,
                folder / owner / name.replace(".", _DOT),
                folder / owner.replace(".", _DOT) / name.replace(".", _DOT),
            )
        ):
            # Old versions keep unfinished files beside the owners, newer ones in the model.
            begun = (
                place / MODELSCOPE_TEMPORARY,
                folder / MODELSCOPE_TEMPORARY / owner / place.name,
            )
            if os.path.isdir(place) and not any(map(_holds_files, begun)):
                yield place
        snapshots = folder / f"{owner}--{name}" / "snapshots"
        names = _names(snapshots)
        for revision in sorted(names, key=lambda revision: (revision != "master", revision)):
            yield snapshots / revision


def modelscope_models(path: Path) -> list[Path]:
    """Return the models in a ModelScope cache, none where ``path`` is no such cache."""
    known = {real_path(folder) for folder in _model_folders(modelscope_cache())}
    is_cache, found = real_path(path) in known, set[Path]()
    for folder in _model_folders(path):
        is_cache = is_cache or os.path.isdir(folder / MODELSCOPE_TEMPORARY)
        inner = (folder / owner for owner in _names(folder) if not owner.startswith("."))
        pairs = ((place, name) for place in inner for name in _names(place))
        # A bound for all of them: a folder of a million files is no cache.
        for place, name in islice(pairs, FOLDER_NAMES):
            models = [place / name]
            if name == "snapshots" and "--" in place.name and folder.name == "models":
                models = [place / name / revision for revision in _names(place / name)]
                is_cache = is_cache or real_path(folder.parent) in known
            found |= {model for model in models if os.path.isfile(model / CONFIG_NAME)}
    signs = (os.path.exists(model / sign) for model in found for sign in MODELSCOPE_SIGNS)
    return sorted(found) if is_cache or any(signs) else []


def cache_of(path: Path) -> str:
    """Return the name of the cache in which ``path`` lies, an empty text where it lies in none."""
    path = Path(os.path.abspath(path))
    path = real_path(path.parent) / path.name
    places = (path, *path.parents)
    is_model = any(hub_repository(p.name) and (p / "snapshots").is_dir() for p in places)
    if is_model or real_path(_hugging_face_cache()) in places:
        return HUGGING_FACE
    is_inside = real_path(modelscope_cache()) in places
    return MODELSCOPE if is_inside or _modelscope_name(path) else ""


def _hugging_face_cache() -> Path:
    """Return the folder of the hub's cache. This must not need its library, which loads slowly."""
    environ = os.environ
    home = environ.get("HF_HOME") or os.path.join(
        environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    given = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expanduser(os.path.expandvars(given or os.path.join(home, "hub"))))


def snapshot_name(path: Path) -> str:
    """Return the name of the repository whose files lie at ``path``, empty where none does.

    In the hub's cache: ``models--<owner>--<name>/snapshots/<commit>``.
    """
    repository = hub_repository(path.parent.parent.name)
    if path.parent.name == "snapshots" and repository:
        return repository.rpartition("/")[2]
    return _modelscope_name(path)


def _modelscope_name(path: Path) -> str:
    folder = path.parent.parent
    if path.parent.name == "snapshots" and "--" in folder.name and folder.parent.name == "models":
        return folder.name.rpartition("--")[2]
    is_here = any(folder == real_path(place) for place in _model_folders(modelscope_cache()))
    is_elsewhere = folder.name in ("hub", "models") and "modelscope" in folder.parts
    return path.name.replace(_DOT, ".") if is_here or is_elsewhere else ""


def default_output(path: Path) -> Path:
    """Return a default output, but refuse one that would lie in a cache.

    Raises:
        OutputError: says to give ``--output``.
    """
    if cache := cache_of(path):
        raise OutputError(
            f"The default output {path} would lie in {cache}, to which nothing is written. Give "
            "--output, or change to another directory first."
        )
    return path


def _holds_files(directory: Path) -> bool:
    # A few levels are enough: large files lie at the top.
    return any(any(directory.glob(pattern)) for pattern in ("*.*", "*/*.*"))


def list_names(directory: Path) -> list[str]:
    """Return names in a directory that is searched, at most ``FOLDER_NAMES``.

    Raises:
        CheckpointError: it cannot be read.
    """
    return _list(directory, FOLDER_NAMES)


def list_all_names(directory: Path) -> list[str]:
    """Return the names in a directory that may be a checkpoint, of which none may be passed over.

    Raises:
        CheckpointError: it cannot be read, or holds more than ``FOLDER_NAMES``.
    """
    names = _list(directory, FOLDER_NAMES + 1)
    if len(names) > FOLDER_NAMES:
        raise CheckpointError(
            f"{directory} holds more than {FOLDER_NAMES:,} names, too many for a checkpoint. Move "
            "the model's files into a directory of their own, then give that."
        )
    return names


def _list(directory: Path, limit: int) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in islice(entries, limit)]
    except OSError as err:
        raise CheckpointError(explain_unreadable(directory, err)) from err


def _names(directory: Path) -> list[str]:
    """Return the names in a part of a cache; none where there is no such part."""
    with suppress(CheckpointError):
        return list_names(directory)
    return []
