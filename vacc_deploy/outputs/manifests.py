"""Write the manifest ``vacc_deploy.json``: what made a directory, from what, and every file's hash.

No absolute paths and no times, so that the same inputs, options and versions give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from vacc_deploy import __version__
from vacc_deploy.checkpoint.manifest import FORMAT_VERSION, MANIFEST_NAME
from vacc_deploy.models.settle import Applied
from vacc_deploy.outputs.seal import seal_json
from vacc_deploy.outputs.writer import WrittenFile, write_text
from vacc_deploy.permissions import real_path

_LIBRARIES = ("numpy", "safetensors", "tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class LinkedFile:
    """A weight file that was linked, not written: bound by its size and its header's hash."""

    name: str
    num_bytes: int
    header_sha256: str


def library_versions() -> dict[str, str]:
    """Return the installed versions of the libraries that can change a result."""
    versions = {}
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def write_manifest(
    directory: Path,
    *,
    command: str,
    model: str,
    source: Mapping[str, Any],
    options: Mapping[str, Any],
    files: Iterable[WrittenFile | LinkedFile],
    normalized: Iterable[Applied] = (),
) -> WrittenFile:
    """Write the manifest of a (partial) output directory whose other files are finished.

    ``files`` are all of them; of a directory in it, that one's manifest. ``normalized`` are the
    rules by which the source was read.
    """
    manifest = {
        "format_version": FORMAT_VERSION,
        "tool": {"name": "vacc-deploy", "version": __version__},
        "libraries": library_versions(),
        "command": command,
        "model": model,
        "source": dict(source),
        "options": dict(options),
        "normalized": [asdict(applied) for applied in normalized],
        "files": {file.name: _describe(file) for file in sorted(files, key=lambda f: f.name)},
    }
    return write_text(directory / MANIFEST_NAME, seal_json(manifest))


def _describe(file: WrittenFile | LinkedFile) -> dict[str, Any]:
    if isinstance(file, LinkedFile):
        return {"bytes": file.num_bytes, "header_sha256": file.header_sha256}
    return {"bytes": file.num_bytes, "sha256": file.sha256}


def relative_source(source_dir: Path, output_dir: Path) -> str:
    """Return the way from the output to its source, so that both can be moved together."""
    return Path(os.path.relpath(real_path(source_dir), real_path(output_dir))).as_posix()
