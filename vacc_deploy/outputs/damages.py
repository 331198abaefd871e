"""Compare a directory that this tool wrote with its manifest, file by file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vacc_deploy.checkpoint.fingerprint import fingerprint_file
from vacc_deploy.checkpoint.gguf_header import ENDING
from vacc_deploy.checkpoint.header import read_header
from vacc_deploy.checkpoint.manifest import MANIFEST_NAME, read_manifest
from vacc_deploy.checkpoint.reader import INDEX_NAME
from vacc_deploy.checkpoint.small_files import DOCUMENTS
from vacc_deploy.checkpoint.weight_links import WeightLinks
from vacc_deploy.errors import CheckpointError
from vacc_deploy.links import explain_outside
from vacc_deploy.outputs.run_files import has_run_name
from vacc_deploy.problems.files import BROKEN_MANIFEST, CHANGED_FILE, FOREIGN_FILE
from vacc_deploy.problems.problem import Problem, Rule
from vacc_deploy.progress import SILENT, Progress

_WEIGHT_COMMANDS = ("prepare", "quantize", "demo")  # whose outputs hold weights
_SHOWN_DIGITS = 12  # of a SHA-256: enough to tell two files apart


@dataclass(frozen=True)
class _Compared:
    """A file that is compared with what its manifest says.

    Attributes:
        name: from the output on.
        command: what wrote the file.
        num_bytes, sha256: what the manifest says.
        is_linked: whether the hash is that of the header only.
    """

    path: Path
    name: str
    command: str
    num_bytes: int
    sha256: str
    is_linked: bool

    def differs_in_size(self) -> bool:
        """Return whether the file has another size than its manifest says."""
        return self.path.stat().st_size != self.num_bytes


def find_damages(
    directory: Path, progress: Progress = SILENT, *, hash_weights: bool = True
) -> list[Problem]:
    """Return a line for each difference between a directory and its manifest.

    Written files are compared by their hash, linked weight files by their size and the hash of
    their header. Documents such as ``README.md`` are left out: a user may edit them. A file that no
    manifest lists counts only where a loader would take it for weights.

    Args:
        directory: an output of this tool, or one that holds a directory for each format.
        progress: learns of every weight file that is read.
        hash_weights: compare written weight files by their hash; else by their size only.

    Raises:
        CheckpointError: the manifest cannot be read.
    """
    files, problems = _list_files(directory, read_manifest(directory) or {})
    if not hash_weights:
        files = [file for file in files if not _weight_bytes(file) or file.differs_in_size()]
    progress.start("Checking files", sum(map(_weight_bytes, files)), "bytes")
    for file in files:
        if difference := _find_difference(file):
            problems.append(_problem(CHANGED_FILE, file.name, difference))
        if size := _weight_bytes(file):
            progress.advance(size, file.name)
    progress.finish()
    return problems


def _problem(rule: Rule, name: str, what: str) -> Problem:
    return rule.broken(_in_one_line(f"{name}: {what}"), where=_in_one_line(name))


def _in_one_line(text: str) -> str:
    """Return a line whose names, which may be a stranger's, cannot begin another one."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _list_files(
    directory: Path, manifest: Mapping[str, Any], below: str = ""
) -> tuple[list[_Compared], list[Problem]]:
    """Return the files that can be compared, and a line for each of the others."""
    entries, command = manifest.get("files"), manifest.get("command")
    if not isinstance(entries, dict):
        return [], [_problem(BROKEN_MANIFEST, f"{below}{MANIFEST_NAME}", "it lists no files")]
    command = command if command in _WEIGHT_COMMANDS else "vacc-deploy"
    links = WeightLinks()
    files, problems = list[_Compared](), list[Problem]()
    for name, entry in entries.items():
        path = directory / name
        # Before the file is touched: the manifest may be a stranger's.
        if name.startswith("/") or ".." in path.relative_to(directory).parts:
            what = f"it lists {name!r}, outside of the directory"
            problems.append(_problem(BROKEN_MANIFEST, f"{below}{MANIFEST_NAME}", what))
        elif path.name in DOCUMENTS:
            continue
        # Not Path.is_file, which fails for a name that is too long for a file.
        elif not os.path.isfile(path):
            problems.append(_problem(CHANGED_FILE, f"{below}{name}", "it is missing"))
        elif _leads_outside(path, directory, links):
            what = "it is a link that leads out of the directory"
            problems.append(_problem(CHANGED_FILE, f"{below}{name}", what))
            continue
        elif (values := _parse_entry(entry)) is None:
            what = f"{MANIFEST_NAME} gives no hash of it"
            problems.append(_problem(CHANGED_FILE, f"{below}{name}", what))
        else:
            files.append(_Compared(path, f"{below}{name}", command, *values))
        # One format's directory has a manifest of its own. No output is nested deeper.
        if (
            path.name == MANIFEST_NAME
            and os.path.isfile(path)
            and path.parent != directory
            and not below
        ):
            more = _list_nested(path.parent)
            files, problems = files + more[0], problems + more[1]
    weights = {
        path.name for path in (*directory.glob("*.safetensors"), *directory.glob(f"*{ENDING}"))
    }
    weights = {name for name in weights if not has_run_name(directory / name)} | {INDEX_NAME}
    for name in sorted(weights - entries.keys()):
        if (directory / name).is_file():
            what = f"{command} did not write it, but a loader may read it. Move it away"
            problems.append(_problem(FOREIGN_FILE, f"{below}{name}", what))
    return files, problems


def _leads_outside(path: Path, directory: Path, links: WeightLinks) -> bool:
    """Return whether a file, or a folder on the way to it, is a link that is not followed."""
    is_nested = path.parent != directory
    return bool(explain_outside(path, directory) if is_nested else links.explain_outside(path))


def _list_nested(directory: Path) -> tuple[list[_Compared], list[Problem]]:
    try:
        manifest = read_manifest(directory) or {}
    except CheckpointError as err:
        where = f"{directory.name}/{MANIFEST_NAME}"
        return [], [BROKEN_MANIFEST.broken(_in_one_line(str(err)), where=where)]
    return _list_files(directory, manifest, f"{directory.name}/")


def _parse_entry(entry: Any) -> tuple[int, str, bool] | None:
    """Return size, hash and whether it is the header's; None for what no output holds."""
    if not isinstance(entry, dict):
        return None
    num_bytes, is_linked = entry.get("bytes"), "sha256" not in entry
    sha256 = entry.get("header_sha256" if is_linked else "sha256")
    if type(num_bytes) is not int or type(sha256) is not str or not 0 <= num_bytes < 1 << 63:
        return None
    return num_bytes, sha256, is_linked


def _weight_bytes(file: _Compared) -> int:
    """Return what progress counts: the weights, which are nearly everything."""
    is_read = file.path.suffix in (".safetensors", ENDING) and not file.is_linked
    return file.num_bytes if is_read else 0


def _find_difference(file: _Compared) -> str:
    """Return how a file differs from its entry, or nothing."""
    size = file.path.stat().st_size
    # The size first: it costs no reading.
    if size != file.num_bytes:
        return f"it has {size:,} bytes, {file.command} wrote {file.num_bytes:,}"
    try:
        got = (
            read_header(file.path).header_sha256 if file.is_linked else fingerprint_file(file.path)
        )
    except CheckpointError as err:
        return str(err).removeprefix(f"{file.path}: ")
    if got == file.sha256:
        return ""
    what = "its header" if file.is_linked else "its content"
    return (
        f"{what} is not what {file.command} wrote (sha256 {got[:_SHOWN_DIGITS]}..., "
        f"expected {file.sha256[:_SHOWN_DIGITS]}...)"
    )
