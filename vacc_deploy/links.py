"""Which symbolic links are followed: those inside a directory, or inside a hub's cache.

Archives and git carry links. One that leads elsewhere would let a stranger choose which file of
this machine is read, and copied into an output that people publish.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from vacc_deploy.permissions import is_there

_SHOWN_CHARACTERS = 200


def explain_outside(path: Path, directory: Path | None = None) -> str:
    """Return the sentences of an error: ``path`` leads out of its directory; empty if it does not.

    In the caches of Hugging Face and ModelScope, files of ``OWNER--NAME/snapshots/REVISION`` are
    links to ``OWNER--NAME/blobs``. What a link that leads nowhere is, others say.

    Args:
        path: a file that is to be read.
        directory: what it belongs to; default the folder in which it lies. The directory itself
            may be given through a link.
    """
    directory = path.parent if directory is None else directory
    if directory == path.parent and not path.is_symlink():
        return ""
    target = Path(os.path.realpath(path))
    if any(target.is_relative_to(root) for root in _roots(directory)) or _leads_nowhere(target):
        return ""
    place = shlex.quote(str(path))
    return (
        f"{path} is a link to {str(target)!r:.{_SHOWN_CHARACTERS}}, outside of {directory}, and is "
        "not followed, since such a link can name any file of this machine. If the file belongs "
        "here, put a copy in the place of the link:\n"
        f'  cp --remove-destination -- "$(readlink -f {place})" {place}\n'
        "If not, remove the link."
    )


def _leads_nowhere(target: Path) -> bool:
    """Return whether nothing is there; what this user may not see counts as something."""
    try:
        return not is_there(target)
    except OSError:
        return False


def _roots(directory: Path) -> Iterator[Path]:
    """Yield the folders that links of ``directory`` may lead to."""
    root = Path(os.path.realpath(directory))
    yield root
    for revision in (root, *root.parents):
        folder = revision.parent.parent
        if revision.parent.name == "snapshots" and "--" in folder.name:
            # Not resolved: it would be a stranger's link again.
            yield folder / "blobs"
