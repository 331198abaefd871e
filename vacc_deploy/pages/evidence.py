"""What a directory says of itself: its report and its manifest, read within bounds.

Both may be a stranger's. A damaged one is told on the page; it is no error of the command, which
has done its work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import MANIFEST_BYTES, NUM_LAYERS, TENSOR_NAME
from vacc_deploy.checkpoint.manifest import MANIFEST_NAME, REPORT_NAME
from vacc_deploy.errors import CheckpointError
from vacc_deploy.json_files import read_json
from vacc_deploy.pages.figures import Source

# The linears of a decoder layer, in the order of use.
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_MOST_LINEARS = len(KINDS) * NUM_LAYERS


@dataclass(frozen=True)
class Linear:
    """Where a linear stands in the model and in the report.

    Attributes:
        index: in the report's list.
        layer: of the model.
        kind: one of ``KINDS``, or another last part of a name.
        name: its full name.
    """

    index: int
    layer: int
    kind: str
    name: str


@dataclass(frozen=True)
class Evidence:
    """What lies in a directory beside its weights.

    Attributes:
        directory: the directory.
        report: ``quantize_report.json``; empty where there is none.
        manifest: ``vacc_deploy.json``; empty where there is none.
        unreadable: file name to the reason why it cannot be shown.
    """

    directory: Path
    report: Source
    manifest: Source
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def is_calibrated(self) -> bool:
        """Whether the report says that text was used."""
        return isinstance(self.report.get("calibration"), dict)

    def linears(self) -> list[Linear]:
        """Return the linears of the report that have a name with a layer."""
        return find_linears(self.report, "linears", "name")


def read_evidence(directory: Path) -> Evidence:
    """Return what a directory says of itself."""
    unreadable: dict[str, str] = {}
    report = _read(directory / REPORT_NAME, unreadable)
    manifest = _read(directory / MANIFEST_NAME, unreadable)
    return Evidence(directory, Source("report", report), Source("manifest", manifest), unreadable)


def find_linears(source: Source, path: str, key: str) -> list[Linear]:
    """Return the linears of a list of objects that name one each, ``model.layers.3...q_proj``."""
    found = []
    for index, entry in enumerate(source.records(path, _MOST_LINEARS)):
        name = entry.get(key)
        if not isinstance(name, str) or len(name) > TENSOR_NAME:
            continue
        parts = name.split(".")
        layer = next((part for part in parts if part.isascii() and part.isdecimal()), "")
        if layer and len(layer) < 5 and int(layer) < NUM_LAYERS:
            found.append(Linear(index, int(layer), parts[-1], name))
    return found


def _read(path: Path, unreadable: dict[str, str]) -> dict[str, Any]:
    # lexists would follow nothing either: read_json refuses what leads out of the directory.
    if not path.is_file():
        return {}
    try:
        values = read_json(path, limit_bytes=MANIFEST_BYTES)
    except CheckpointError as err:
        unreadable[path.name] = str(err)
        return {}
    if not isinstance(values, dict):
        unreadable[path.name] = f"{path} holds no JSON object"
        return {}
    return values
