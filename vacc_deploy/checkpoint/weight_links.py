"""Which links of weight files are followed: those of any file, and those that prepare makes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from vacc_deploy.bounds import LINK_STEPS
from vacc_deploy.checkpoint.manifest import read_manifest
from vacc_deploy.errors import CheckpointError, name_some
from vacc_deploy.links import explain_outside
from vacc_deploy.permissions import real_path


class WeightLinks:
    """Says of weight files whether they lead out of their directory.

    ``prepare --link-mode symlink`` makes links to its source. They are followed where the manifest
    says so, and to the file of this name in the source that it names.
    """

    def __init__(self) -> None:
        """Begin; a manifest is read when a link asks for it, and once."""
        self._sources: dict[Path, Path | None] = {}

    def explain_outside(self, path: Path) -> str:
        """Return the sentences of an error, or nothing; see ``links.explain_outside``."""
        outside, place = explain_outside(path), path
        target = real_path(path)
        for _ in range(LINK_STEPS + 1):
            # The source may be in a cache, or prepared itself.
            if not explain_outside(place):
                return ""
            source = self._linked_source(place.parent)
            if source is None or real_path(source / path.name) != target:
                return outside
            place = source / path.name
        return outside

    def _linked_source(self, directory: Path) -> Path | None:
        """Return what the weights of ``directory`` are links to by its manifest, if they are."""
        if directory not in self._sources:
            self._sources[directory] = _read_source(directory)
        return self._sources[directory]


def join_outside(messages: Mapping[str, str]) -> str:
    """Return the message of all links that lead out of a directory; empty where none does.

    Args:
        messages: file name to what ``explain_outside`` says of it, or nothing.
    """
    names = [name for name, message in messages.items() if message]
    others = f"\nThe same holds for {name_some(names[1:])}." if names[1:] else ""
    return f"{messages[names[0]]}{others}" if names else ""


def _read_source(directory: Path) -> Path | None:
    try:
        manifest = read_manifest(directory) or {}
    except CheckpointError:
        return None
    options, source = manifest.get("options"), manifest.get("source")
    mode = options.get("link_mode") if isinstance(options, dict) else None
    path = source.get("path") if isinstance(source, dict) else None
    if mode != "symlink" or not isinstance(path, str) or "\0" in path:
        return None
    # The manifest holds the way from the output, links resolved, to its source.
    return Path(os.path.normpath(real_path(directory) / path))
