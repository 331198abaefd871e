"""The files that a run writes for itself in its partial directory, known by their exact names.

They are removed right after the last rename; a kill in between leaves them in the output.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path

RUN_FILE_PREFIX = ".vacc-deploy-"
MARKER = f"{RUN_FILE_PREFIX}partial"
# Of a shard that a run can be resumed with.
SHARD_RECORD_PREFIX = f"{RUN_FILE_PREFIX}shard-"
# Shards of which one file is made at the end, and what is written for that.
GGUF_PREFIX = f"{RUN_FILE_PREFIX}gguf-"
GGUF_SCRATCH = f"{GGUF_PREFIX}header"
_NUMBER = r"[1-9][0-9]{0,5}"
LOCK_NAME = re.compile(rf"\.vacc-deploy-lock-({_NUMBER})")
_SHARD_FILES = r"shard-[0-9]{5}\.json|gguf-[0-9]{5}\.safetensors|gguf-header"
_OWN = rf"\.vacc-deploy-(?:partial|run\.json|journal|{_SHARD_FILES})"
# A record has a longer name while it is written: see ``text_file.replace_text``.
_NAMES = re.compile(rf"{_OWN}|{LOCK_NAME.pattern}|\.{_OWN}\.[0-9a-f]{{16}}\.[0-9]+\.partial")


def is_run_file(path: Path) -> bool:
    """Return whether a file has a name of the run's own; a link or a directory is none."""
    return has_run_name(path) and is_regular(path)


def has_run_name(path: Path) -> bool:
    """Return whether ``path`` has the name of a file of the run's own."""
    return _NAMES.fullmatch(path.name) is not None


def is_regular(path: Path) -> bool:
    """Return whether a file stands at ``path``; a link to one is none."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def is_lock_file(path: Path) -> bool:
    """Return whether ``path`` has the name of a lock file."""
    return LOCK_NAME.fullmatch(path.name) is not None
