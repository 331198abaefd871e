"""The manifest ``vacc_deploy.json``: what made a directory, from what, and the hash of every file.

No absolute paths and no times, so that the same inputs, options and versions give the same bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from vacc_deploy import __version__
from vacc_deploy.checkpoint.caches import snapshot_name
from vacc_deploy.checkpoint.output_rules import MANIFEST_NAME, MAX_MANIFEST_BYTES
from vacc_deploy.checkpoint.writer import WrittenFile, write_text
from vacc_deploy.errors import CheckpointError
from vacc_deploy.formats.layouts import LAYOUTS, VAMC
from vacc_deploy.json_files import dump_json, read_json
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.models.settle import Applied
from vacc_deploy.permissions import real_path

FORMAT_VERSION = 1
# What quantize says of every linear; it has the options too.
REPORT_NAME = "quantize_report.json"
# No slash, no space, no dot or dash in front: the name becomes a part of file names.
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
# Of the default outputs of ``quantize`` that a compile file may name.
_ENDINGS = tuple(f"-{layout.ending}" for layout in LAYOUTS.values() if layout.for_compiler)
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
    return write_text(directory / MANIFEST_NAME, dump_json(manifest))


def _describe(file: WrittenFile | LinkedFile) -> dict[str, Any]:
    if isinstance(file, LinkedFile):
        return {"bytes": file.num_bytes, "header_sha256": file.header_sha256}
    return {"bytes": file.num_bytes, "sha256": file.sha256}


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """Return the manifest of ``directory``, or None where it has none.

    Raises:
        CheckpointError: the file is damaged or of a newer tool.
    """
    path = directory / MANIFEST_NAME
    if not path.is_file():
        return None
    manifest = read_json(path, limit_bytes=MAX_MANIFEST_BYTES)
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} is not a manifest of format {FORMAT_VERSION}. Was it written by another "
            "version of vacc-deploy? Make the directory again."
        )
    return manifest


def relative_source(source_dir: Path, output_dir: Path) -> str:
    """Return the way from the output to its source, so that both can be moved together."""
    return Path(os.path.relpath(real_path(source_dir), real_path(output_dir))).as_posix()


def stored_layout(directory: Path, config: ModelConfig) -> str:
    """Return the layout of the weights in ``directory``; empty for a float model.

    All layouts but ``vamc`` are known by ``config.json``. To a loader a ``vamc`` directory is a
    float checkpoint, so only the manifest and the report tell that its weights are int8 values.

    Raises:
        CheckpointError: see ``read_manifest``.
    """
    if config.quantization_format:
        return config.quantization_format
    manifest = read_manifest(directory)
    if manifest is None and (directory / REPORT_NAME).is_file():
        # The report says the same of a directory that has lost its manifest.
        report = read_json(directory / REPORT_NAME, limit_bytes=MAX_MANIFEST_BYTES)
        manifest = report if isinstance(report, dict) else {}
    options = (manifest or {}).get("options")
    formats = options.get("formats") if isinstance(options, dict) else None
    return VAMC if formats in ([VAMC], ["fp16"]) else ""  # 0.1.0 called it fp16


def name_source(directory: Path) -> str:
    """Return ``: PATH`` of what a directory was made from; empty where it does not say so."""
    source = (read_manifest(directory) or {}).get("source")
    path = source.get("path") if isinstance(source, dict) else None
    return f": {os.path.normpath(directory / path)}" if isinstance(path, str) else ""


def model_name(directory: Path) -> str:
    """Return the model's name: that of the manifest where it is one, else the directory's own.

    The name becomes a part of file names and of the compile file. The endings that ``prepare`` and
    ``quantize`` give their default outputs do not belong to it.
    """
    name = (read_manifest(directory) or {}).get("model")
    last = name.rstrip("/").rpartition("/")[2] if isinstance(name, str) else ""
    if _MODEL_NAME.fullmatch(last):
        return last
    path = real_path(directory)
    ending = next((e for e in _ENDINGS if path.name.endswith(e)), "")
    return snapshot_name(path) or path.name.removesuffix(ending).removesuffix("-vacc")
