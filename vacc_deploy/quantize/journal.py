"""The journal of a run: which shards are on the disk, with their hashes and records.

One line a shard, each with a hash of its own, so that a line torn by a kill is known for one. The
first line tells what the run is about. Lies in the partial directory, never in an output.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vacc_deploy.checkpoint import JOURNAL_NAME, partial_path, sync_directory
from vacc_deploy.errors import OutputError
from vacc_deploy.solver.records import LinearRecord

JOURNAL_VERSION = 2
MAX_JOURNAL_BYTES = 1 << 28
_DIGEST_CHARS = 16
_MAX_REASON_CHARS = 300


@dataclass(frozen=True)
class Entry:
    """One shard that is on the disk in every format.

    Attributes:
        shard: its number: 0 is the embedding, layer i is i + 1, the last is the head.
        seconds: what the layer took.
        files: path within the partial directory to its size and SHA-256.
        records: of the layer's linears.
        scales: linear to its float16 scales in base64, where no format stores them.
        linear_seconds: linear to what it took, where that was measured.
    """

    shard: int
    seconds: float = 0.0
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    records: tuple[LinearRecord, ...] = ()
    scales: Mapping[str, str] = field(default_factory=dict)
    linear_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Recorded:
    """What a journal tells.

    Attributes:
        identity: of the run, see ``quantize.identity``.
        num_layers: of the model.
        resumes: how often the run was resumed.
        entries: by shard.
    """

    identity: dict[str, Any]
    num_layers: int
    resumes: int = 0
    entries: dict[int, Entry] = field(default_factory=dict)

    @property
    def finished(self) -> int:
        """The layers from the first on that are finished without a gap."""
        count = 0
        while count < self.num_layers and count + 1 in self.entries:
            count += 1
        return count


class Journal:
    """Appends to the journal of a running run; safe from several threads."""

    def __init__(self, partial: Path, recorded: Recorded) -> None:
        """Write a new journal with what is ``recorded``; it replaces an older one at once."""
        self.recorded = recorded
        self._lock = threading.Lock()
        head = {
            "version": JOURNAL_VERSION,
            "identity": recorded.identity,
            "num_layers": recorded.num_layers,
            "resumes": recorded.resumes,
        }
        lines = [_line(head), *(_line(asdict(entry)) for entry in recorded.entries.values())]
        path = partial / JOURNAL_NAME
        fresh = path.with_name(f"{JOURNAL_NAME}.new")
        # Unbuffered: what write() has taken is in the system's hands.
        self._file = fresh.open("wb", buffering=0)
        self._file.write(b"".join(lines))
        os.fsync(self._file.fileno())
        fresh.replace(path)
        sync_directory(partial)

    def append(self, entry: Entry) -> None:
        """Record a shard whose files are on the disk."""
        with self._lock:
            end = self._file.tell()
            try:
                self._write(_line(asdict(entry)))
            except BaseException:
                # A torn line would hide those that another thread may still append.
                self._file.truncate(end)
                self._file.seek(end)
                raise
            self.recorded.entries[entry.shard] = entry

    def _write(self, line: bytes) -> None:
        view = memoryview(line)
        while view:
            view = view[self._file.write(view) :]
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _line(values: dict[str, Any]) -> bytes:
    text = json.dumps(values, separators=(",", ":")).encode()
    return hashlib.sha256(text).hexdigest()[:_DIGEST_CHARS].encode() + b" " + text + b"\n"


def read_journal(partial: Path) -> Recorded | None:
    """Return what the journal in ``partial`` tells up to its first damaged line.

    None without a journal, or where its first line is damaged.

    Raises:
        OutputError: a line is whole but not one of this version: another version wrote it, which
            may have finished layers there.
    """
    path = partial / JOURNAL_NAME
    if path.is_symlink() or not path.is_file():
        return None
    with path.open("rb") as file:
        lines = file.read(MAX_JOURNAL_BYTES).split(b"\n")
    recorded: Recorded | None = None
    try:
        # Without its end of line the last one is torn, whatever it holds.
        for line in lines[:-1]:
            text = _sound_text(line)
            if text is None:
                break
            if recorded is None:
                recorded = _parse_head(json.loads(text))
            else:
                entry = _parse_entry(json.loads(text))
                recorded.entries[entry.shard] = entry
    except (TypeError, ValueError, OverflowError, AttributeError, RecursionError) as err:
        raise OutputError(
            f"{path} was written by another version of vacc-deploy, and this one cannot read it, "
            "nor the layers that are finished there "
            f"({str(err)[:_MAX_REASON_CHARS]}). Resume with the version that began, "
            "or give --overwrite, without --resume, to begin again."
        ) from err
    return recorded


def _sound_text(line: bytes) -> bytes | None:
    """Return what one line holds, None where that has not the line's hash."""
    digest, _, text = line.partition(b" ")
    is_sound = hashlib.sha256(text).hexdigest()[:_DIGEST_CHARS].encode() == digest
    return text if is_sound else None


def _parse_head(value: Any) -> Recorded:
    """Return what the first line tells.

    Raises:
        ValueError: it is of another version.
        AttributeError: it is no dictionary.
    """
    if value.get("version") != JOURNAL_VERSION:
        raise ValueError(f"journal version {value.get('version')!r}, expected {JOURNAL_VERSION}")
    identity, num_layers, resumes = (value.get(k) for k in ("identity", "num_layers", "resumes"))
    if not isinstance(identity, dict) or not isinstance(num_layers, int):
        raise ValueError("its first line lacks the run's identity or number of layers")
    return Recorded(identity, num_layers, resumes if isinstance(resumes, int) else 0)


def _parse_entry(value: Any) -> Entry:
    """Return what another line tells.

    Raises:
        ValueError: a field is missing or unknown, as also TypeError and AttributeError may tell.
    """
    names = {item.name for item in fields(Entry)}
    if value.keys() != names:
        raise ValueError(f"a line has the fields {sorted(value)}, expected {sorted(names)}")
    return Entry(
        shard=int(value["shard"]),
        seconds=float(value["seconds"]),
        files={str(k): (int(size), str(sha)) for k, (size, sha) in value["files"].items()},
        records=tuple(LinearRecord(**record) for record in value["records"]),
        scales={str(k): str(text) for k, text in value["scales"].items()},
        linear_seconds={str(k): float(s) for k, s in value["linear_seconds"].items()},
    )


def has_finished_layers(partial: Path) -> bool:
    """Return whether a partial directory holds finished layers, which a later run can use.

    Those of a journal that only another version can read count too.
    """
    try:
        recorded = read_journal(partial)
    except OutputError:
        return True
    return recorded is not None and recorded.finished > 0


def unfinished_run(output_dir: Path) -> Recorded | None:
    """Return the journal of an interrupted run of ``output_dir`` that has finished layers.

    None also where only another version can read it; see ``resume.check_unfinished``.
    """
    try:
        recorded = read_journal(partial_path(output_dir))
    except OutputError:
        return None
    return recorded if recorded is not None and recorded.finished else None
