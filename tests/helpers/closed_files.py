"""Files and directories that the user of a test may not read or write, also where that is root."""

from __future__ import annotations

import codecs
import importlib
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

OWNER = pwd.getpwuid(os.getuid()).pw_name
_NOBODY = 65534


@contextmanager
def open_directory() -> Iterator[Path]:
    """Yield a new directory that every user may enter: pytest's own is closed to others."""
    path = Path(tempfile.mkdtemp(prefix="vacc-deploy-closed-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextmanager
def as_user() -> Iterator[None]:
    """Be a user to whom mode 0000 is closed: root becomes nobody for this block."""
    if os.getuid() != 0:
        yield
        return
    # Python itself may lie where nobody cannot read: what is loaded late is loaded now.
    for name in ("utf-8-sig", "utf-16", "gb18030", "ascii"):
        codecs.lookup(name)
    try:
        # The saved user id stays root, for the way back.
        os.setresuid(_NOBODY, _NOBODY, 0)
    except OSError:
        pytest.skip("this container has no second user")
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        importlib.invalidate_caches()
