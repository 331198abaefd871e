"""What of an output is proven to be ours and unchanged; nothing else is ever deleted.

A written file is proven by its size and by the hash of all its bytes: a fine-tune has the same
size and the same header. A linked weight file has no hash, so it goes only where that loses
nothing: a symbolic link, or a file that has another name left.
"""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import MANIFEST_BYTES
from vacc_deploy.checkpoint.fingerprint import fingerprint_file
from vacc_deploy.checkpoint.manifest import FORMAT_VERSION, MANIFEST_NAME
from vacc_deploy.checkpoint.small_files import DOCUMENTS
from vacc_deploy.errors import CheckpointError, name_some
from vacc_deploy.json_files import parse_json, read_bounded
from vacc_deploy.outputs.file_system import State, state_of
from vacc_deploy.outputs.run_files import is_run_file
from vacc_deploy.outputs.seal import has_seal, is_canonical, is_sealed_json
from vacc_deploy.progress import SILENT, Progress

REPLACED_COMMANDS = (
    "prepare",
    "quantize",
    "export-onnx",
    "demo",
)  # whose outputs --overwrite may replace
_CHANGED = "changed since it was written"
_UNLISTED = f"not listed in {MANIFEST_NAME}"
# A file system may give two writes of one moment the same time.
_SETTLED_NS = 2_000_000_000

# Hashes of this process. The system sets the last of a state's times at every write and every link.
_HASHES: dict[State, str] = {}


@dataclass(frozen=True)
class _Candidate:
    """A file that may go, if its entry in the manifest proves it.

    Attributes:
        name: from the output on.
        entry: what the manifest says of it.
    """

    path: Path
    name: str
    entry: Any


@dataclass
class Proof:
    """What is known of an output.

    Attributes:
        problems: a line for each thing that is not proven: its name, and why.
        states: every proven file, in the state in which it was proven; what shows whose the
            directory is comes last.
        directories: those within the output, the inner ones first.
    """

    problems: list[str] = field(default_factory=list)
    states: dict[Path, State] = field(default_factory=dict)
    directories: list[Path] = field(default_factory=list)


def prove(directory: Path, progress: Progress = SILENT) -> Proof:
    """Look at every file of an output; all that were written are read.

    Args:
        directory: with a manifest, or empty.
        progress: learns of every file that is read.
    """
    proof, listed = Proof(), list[_Candidate]()
    _list_directory(directory, "", proof, listed)
    names = Counter(state_of(file.path)[:2] for file in listed)
    total = sum(map(_hashed_bytes, listed))
    if total:
        progress.start("Checking the older output", total, "bytes")
    for file in listed:
        # Before it is judged: what changes from now on is seen right before it would go.
        state = state_of(file.path)
        if reason := _doubt(file, names):
            proof.problems.append(f"{file.name}: {reason}")
        else:
            proof.states.setdefault(file.path, state)
        if size := _hashed_bytes(file):
            progress.advance(size, file.name)
    if total:
        progress.finish()
    for path in _manifests(directory, proof):
        proof.states[path] = proof.states.pop(path)  # now the last
    return proof


def remove_proven(directory: Path) -> list[str]:
    """Remove an output, but nothing where something in it is not proven; return what stays.

    Each file is looked at again right before it goes. What has changed since it was proven stays,
    and the manifest with it.
    """
    proof = prove(directory)
    if proof.problems:
        return proof.problems
    names = Counter(state[:2] for state in proof.states.values())
    for path, state in proof.states.items():
        try:
            found = state_of(path)
            # The last time is that of the last name of the file that went.
            count = -1 if names[state[:2]] > 1 else None
            if found[:count] != state[:count]:
                proof.problems.append(f"{path.relative_to(directory)}: {_CHANGED}")
            elif path.name != MANIFEST_NAME or not proof.problems:
                path.unlink()
        except FileNotFoundError:
            continue
        except OSError as err:
            proof.problems.append(f"{path.relative_to(directory)}: {err.strerror or err}")
    for inner in (*proof.directories, directory):
        try:
            inner.rmdir()
        except FileNotFoundError:
            continue
        except OSError as err:  # what has come since stays
            proof.problems += [] if proof.problems else [f"{inner.name}: {err.strerror or err}"]
    return proof.problems


def _list_directory(directory: Path, below: str, proof: Proof, listed: list[_Candidate]) -> None:
    """Sort what lies in a directory: listed with an entry, our own, or a problem.

    Names come from the directory only, so a manifest leads to no other place.
    """
    if os.path.lexists(directory / MANIFEST_NAME):
        proof.states[directory / MANIFEST_NAME] = state_of(directory / MANIFEST_NAME)
    manifest, reason = _read_manifest(directory)
    if reason:
        others = sorted(path.name for path in directory.iterdir() if path.name != MANIFEST_NAME)
        what = f"proves nothing of: {name_some(others)}" if others else "does not prove itself"
        proof.problems.append(f"{below}{MANIFEST_NAME}: {reason}, so it {what}")
        return
    entries, timing = manifest.get("files", {}), f"{manifest.get('command')}_timing.json"
    for path in sorted(directory.iterdir()):
        name, mode = f"{below}{path.name}", path.lstat().st_mode
        # No output is nested deeper than this.
        if stat.S_ISDIR(mode) and not below and f"{path.name}/{MANIFEST_NAME}" in entries:
            inner, entry = path / MANIFEST_NAME, entries[f"{path.name}/{MANIFEST_NAME}"]
            if os.path.lexists(inner):
                listed.append(_Candidate(inner, f"{name}/{MANIFEST_NAME}", entry))
            _list_directory(path, f"{name}/", proof, listed)
            proof.directories.append(path)
        elif stat.S_ISDIR(mode):
            proof.problems.append(f"{name}: a directory that is {_UNLISTED}")
        elif is_run_file(path):
            proof.states[path] = state_of(path)
        elif path.name == MANIFEST_NAME:
            continue
        elif path.name == timing:
            proof.states[path] = state_of(path)
            proof.problems += [] if _is_sealed(path) else [f"{name}: {_CHANGED}"]
        elif path.name in entries:
            listed.append(_Candidate(path, name, entries[path.name]))
        else:
            proof.problems.append(f"{name}: {_UNLISTED}")


def _manifests(directory: Path, proof: Proof) -> Iterator[Path]:
    """Yield the manifests of an output, the inner ones first."""
    for place in (*proof.directories, directory):
        if os.path.lexists(place / MANIFEST_NAME):
            yield place / MANIFEST_NAME


def _read_manifest(directory: Path) -> tuple[dict[str, Any], str]:
    """Return a manifest, or none and why it proves nothing; of an empty directory just none."""
    path = directory / MANIFEST_NAME
    if not os.path.lexists(path):
        return {}, ""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return {}, "not a file"
        data = read_bounded(path, MANIFEST_BYTES)
        manifest = parse_json(data)
    except (CheckpointError, ValueError) as err:
        return {}, str(err).removeprefix(f"{path} ").split(". ")[0][:200]
    if not isinstance(manifest, dict) or not _is_ours(manifest):
        return {}, f"no manifest of vacc-deploy in format {FORMAT_VERSION}"
    return (manifest, "") if _is_as_written(data, manifest) else ({}, _CHANGED)


def _is_as_written(data: bytes, values: dict[str, Any]) -> bool:
    # Earlier versions wrote no seal.
    return (is_sealed_json if has_seal(values) else is_canonical)(data, values)


def is_whole(directory: Path) -> bool:
    """Return whether a directory is empty, or an output that lacks nothing but documents."""
    if not any(directory.iterdir()):
        return True
    manifest, reason = _read_manifest(directory)
    names = [name for name in manifest.get("files", {}) if name not in DOCUMENTS]
    return not reason and bool(names) and all(os.path.lexists(directory / name) for name in names)


def _is_ours(manifest: dict[str, Any]) -> bool:
    tool, version = manifest.get("tool"), manifest.get("format_version")
    return (
        isinstance(tool, dict)
        and tool.get("name") == "vacc-deploy"
        and (type(version), version) == (int, FORMAT_VERSION)
        and manifest.get("command") in REPLACED_COMMANDS
        and isinstance(manifest.get("files"), dict)
    )


def _is_sealed(path: Path) -> bool:
    """Return whether a file of times, which no manifest lists, is as it was written."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        data = read_bounded(path, MANIFEST_BYTES)
        values = parse_json(data)
    except (CheckpointError, ValueError):
        return False
    return isinstance(values, dict) and _is_as_written(data, values)


def _is_linked(entry: Any) -> bool:
    return isinstance(entry, dict) and "sha256" not in entry and "header_sha256" in entry


def _hashed_bytes(file: _Candidate) -> int:
    state = file.path.lstat()
    is_read = stat.S_ISREG(state.st_mode) and not _is_linked(file.entry)
    return state.st_size if is_read else 0


def _doubt(file: _Candidate, names: Counter[tuple[int, int]]) -> str:
    """Return why a listed file may not be deleted, or an empty text.

    ``names``: how many names within the output each file has.
    """
    state, entry = file.path.lstat(), file.entry
    is_link, is_file = stat.S_ISLNK(state.st_mode), stat.S_ISREG(state.st_mode)
    if _is_linked(entry) and (is_link or is_file):
        # Of a symbolic link only the link goes.
        if is_link or state.st_nlink > names[state.st_dev, state.st_ino]:
            return ""
        return "the only copy of these weights: the file that was linked here has no other name"
    if not is_file:
        return f"{'a link' if is_link else 'no file'}, and was written as a file"
    size, sha256 = (entry.get(k) if isinstance(entry, dict) else None for k in ("bytes", "sha256"))
    if type(size) is not int or type(sha256) is not str:
        return f"{MANIFEST_NAME} gives no hash of it"
    # The size first: it costs no reading.
    if state.st_size != size:
        return _CHANGED
    try:
        return "" if _hash(file.path) == sha256 else _CHANGED
    except (CheckpointError, OSError) as err:
        why = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
        return f"it cannot be read: {why:.200}"


def _hash(path: Path) -> str:
    """Return the hash of a file's bytes, read once in this process as long as it stays as it is."""
    state = state_of(path)
    if state in _HASHES:
        return _HASHES[state]
    sha256 = fingerprint_file(path)
    if state_of(path) != state:  # somebody is writing it
        return ""
    if time.time_ns() - max(state[3:]) > _SETTLED_NS:
        _HASHES[state] = sha256
    return sha256
