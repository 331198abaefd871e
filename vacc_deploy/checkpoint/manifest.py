"""Read the manifest ``vacc_deploy.json``: what made a directory, and from what.

``outputs.manifests`` writes it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import MANIFEST_BYTES
from vacc_deploy.checkpoint.caches import snapshot_name
from vacc_deploy.errors import CheckpointError
from vacc_deploy.formats.layouts import LAYOUTS, VAMC
from vacc_deploy.json_files import read_json
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.permissions import real_path

MANIFEST_NAME = "vacc_deploy.json"
FORMAT_VERSION = 1
# What quantize says of every linear; it has the options too.
REPORT_NAME = "quantize_report.json"
# No slash, no space, no dot or dash in front: the name becomes a part of file names.
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
# Of the default outputs of ``quantize`` that a compile file may name.
_ENDINGS = tuple(f"-{layout.ending}" for layout in LAYOUTS.values() if layout.for_compiler)


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """Return the manifest of ``directory``, or None where it has none.

    Raises:
        CheckpointError: the file is damaged or of a newer tool.
    """
    path = directory / MANIFEST_NAME
    if not path.is_file():
        return None
    manifest = read_json(path, limit_bytes=MANIFEST_BYTES)
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} is not a manifest of format {FORMAT_VERSION}. Was it written by another "
            "version of vacc-deploy? Make the directory again."
        )
    return manifest


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
        report = read_json(directory / REPORT_NAME, limit_bytes=MANIFEST_BYTES)
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
    return snapshot_name(path) or without_endings(path.name)


def without_endings(name: str) -> str:
    """Return ``name`` without what ``prepare`` and ``quantize`` put behind a model's name."""
    ending = next((e for e in _ENDINGS if name.endswith(e)), "")
    return name.removesuffix(ending).removesuffix("-vacc")
