"""Recognize what downloaders leave beside a file that they have not finished."""

from __future__ import annotations

import base64
import hashlib
import os
from itertools import islice
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


def find_unfinished(path: Path) -> Path | None:
    """Return the file in which a downloader was writing ``path``, which is missing."""
    for ending in _UNFINISHED:
        candidate = path.with_name(f"{path.name}{ending}")
        if os.path.isfile(candidate):
            return candidate
    starts = (path.name, _hub_name(path.name))
    for folder in _FOLDERS:
        # Hugging Face puts a hash behind the name, ModelScope nothing.
        for candidate in islice((path.parent / folder).glob("*"), FOLDER_NAMES):
            unfinished = candidate.name.endswith(".incomplete") or folder == "._____temp"
            if unfinished and candidate.name.startswith(starts):
                return candidate
    return None


def _hub_name(name: str) -> str:
    """Return how the hub's library begins the name of an unfinished file: with a hash."""
    digest = hashlib.sha1(f"{name}.metadata".encode(), usedforsecurity=False).digest()
    return base64.urlsafe_b64encode(digest).decode()
