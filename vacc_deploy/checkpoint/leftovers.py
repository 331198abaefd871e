"""Recognize what downloaders leave beside a file that they have not finished."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path

from vacc_deploy.bounds import FOLDER_NAMES

# The downloader gives the whole file its space at once and fills it from several places: while its
# control file is there, the file has its full size, but not its content.
_CONTROL_FILES = {".aria2": "aria2c", ".st": "axel"}
# The downloader writes here, and gives the file its own name when it is finished.
_UNFINISHED = (
    *(".part", ".partial", ".incomplete", ".crdownload", ".download", ".tmp", ".aria2", ".st"),
    # Of Thunder, Baidu, Opera, WinSCP and of clients of BitTorrent.
    *(".xltd", ".td", ".downloading", ".baiduyun.p.downloading", ".opdownload", ".filepart"),
    *(".!ut", ".!qB", ".bc!"),
)
# Where Hugging Face and ModelScope keep unfinished files of a download into a directory.
_FOLDERS = (".cache/huggingface/download", "._____temp")


def find_control_file(path: Path) -> str:
    """Return why a file that is there cannot be whole, and what to do; or nothing."""
    for ending, program in _CONTROL_FILES.items():
        control = path.with_name(f"{path.name}{ending}")
        if os.path.isfile(control):
            return (
                f"{control.name} lies beside it: {program} has not finished the download. Run the "
                f"same {program} command again; if it has nothing left to do, remove {control}"
            )
    return ""


def find_unfinished(directory: Path, names: Iterable[str]) -> dict[str, Path]:
    """Return the files in which a downloader was writing those of ``names``, which are missing.

    Args:
        directory: the checkpoint.
        names: no more than a message shows; each is looked for under many names.
    """
    begun, found = _list_begun(directory), dict[str, Path]()
    for name in names:
        beside = (directory / f"{name}{ending}" for ending in _UNFINISHED)
        starts = (name, _hub_name(name))
        inside = (path for path in begun if path.name.startswith(starts))
        if path := next(chain(filter(os.path.isfile, beside), inside), None):
            found[name] = path
    return found


def _list_begun(directory: Path) -> list[Path]:
    """Return the unfinished files in the folders that downloaders keep for them."""
    begun = list[Path]()
    for folder in _FOLDERS:
        with suppress(OSError), os.scandir(directory / folder) as entries:
            names = [entry.name for entry in islice(entries, FOLDER_NAMES)]
            # Hugging Face puts a hash behind the name, ModelScope nothing.
            is_temporary = folder == "._____temp"
            names = [name for name in names if is_temporary or name.endswith(".incomplete")]
            begun += [directory / folder / name for name in names]
    return begun


def _hub_name(name: str) -> str:
    """Return how the hub's library begins the name of an unfinished file: with a hash."""
    digest = hashlib.sha1(f"{name}.metadata".encode(), usedforsecurity=False).digest()
    return base64.urlsafe_b64encode(digest).decode()
