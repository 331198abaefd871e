"""Assemble the directory that the compiler reads: weights, and the vendor's files beside them."""

from __future__ import annotations

import shlex
import stat
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vacc_deploy.assets import SOURCE_FILES, source_file
from vacc_deploy.checkpoint.adapters import ADAPTER_CONFIG
from vacc_deploy.checkpoint.attn_factor import read_attn_factor
from vacc_deploy.checkpoint.caches import default_output
from vacc_deploy.checkpoint.changes import unchanged
from vacc_deploy.checkpoint.manifest import MANIFEST_NAME, name_source, stored_layout
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.checkpoint.soundness import check_weights
from vacc_deploy.errors import CheckpointError, name_some
from vacc_deploy.json_files import dump_json
from vacc_deploy.lookup.hub import Source
from vacc_deploy.lookup.request import find_source, read_request
from vacc_deploy.models.catalog import (
    CatalogModel,
    known_model,
    match_config,
)
from vacc_deploy.models.vacc_config import (
    VACC_CONFIG_NAME,
    needs_vacc_config,
    vacc_config,
    ways_to_the_card,
)
from vacc_deploy.outputs.manifests import relative_source, write_manifest
from vacc_deploy.outputs.output import output_directory
from vacc_deploy.outputs.output_rules import check_output
from vacc_deploy.outputs.place import CHANGED, COPY, Placement
from vacc_deploy.outputs.side_files import GENERATED, SideFile, plan_side_files
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.results import command, format_bytes, format_pairs

# The last file that is written, for the plan of a dry run.
_MANIFEST = (MANIFEST_NAME, None, GENERATED)


@dataclass(frozen=True)
class PrepareResult:
    """What ``prepare`` wrote, or would write (``dry_run``).

    Attributes:
        files: name, bytes and how it came (``hardlink``, ``copy``, ``generated``, ...) of each
            file; in a dry run the bytes are None where only the work would tell them.
        notes: what a user should know about this checkpoint.
    """

    model: str
    source_dir: Path
    output_dir: Path
    files: tuple[tuple[str, int | None, str], ...]
    notes: tuple[str, ...]
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        return {
            "model": self.model,
            "source_dir": str(self.source_dir),
            "output_dir": str(self.output_dir),
            "dry_run": self.dry_run,
            "files": [{"name": n, "bytes": size, "how": how} for n, size, how in self.files],
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return the files by how they came, and the next command."""
        groups: dict[str, list[tuple[str, int | None]]] = {}
        for name, size, how in self.files:
            groups.setdefault(how, []).append((name, size))
        lines = []
        for how, members in groups.items():
            sizes = [size for _, size in members if size is not None]
            # A sum that lacks a file would be a wrong one.
            total = f", {format_bytes(sum(sizes))}" if len(sizes) == len(members) else ""
            names = name_some([name for name, _ in members], 6)
            plural = "" if len(members) == 1 else "s"
            lines.append((how, f"{len(members)} file{plural}{total}: {names}"))
        head = "Would prepare" if self.dry_run else "Prepared"
        text = f"{head} {self.model} in {self.output_dir}\n{format_pairs(lines)}"
        text += "".join(f"\nNote: {note}" for note in self.notes)
        if not self.dry_run:
            text += f"\nNext: {command('quantize', self.output_dir)}"
        return text


def prepare(
    source: Path | str | None = None,
    *,
    model: str | None = None,
    weights: Path | str | None = None,
    output: Path | None = None,
    link_mode: str = "auto",
    attn_factor: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = SILENT,
    again: Callable[[Path | str], str] = str,
    downloading: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> PrepareResult:
    """Write a prepared directory.

    Args:
        source: a checkpoint directory, a repository of the hub, or a catalogue name.
        model: a catalogue name. The weights must have its shape; without ``source`` they are the
            hub's own.
        weights: another name of ``source``.
        output: the directory to write; default ``./<model>-vacc``.
        link_mode: ``auto`` (hard link, else copy), ``hardlink``, ``symlink`` or ``copy``.
        attn_factor: how yarn's ``attn_factor`` is read: ``multiply``, which is the default, or
            ``ignore``; see ``models.rope``.
        overwrite: replace an output of an earlier run.
        dry_run: validate and plan only.
        progress: learns of the weights that are read, then of each weight file.
        again: writes the user's command line with another ``source`` alone, for messages.
        downloading: entered while files are downloaded.

    Raises:
        UsageError: no source, two that contradict each other, an unknown ``model``, or no
            ``attn_factor`` to ignore.
        UnsupportedModelError: another architecture.
        CheckpointError: the source is incomplete, prepared already, or another model than named,
            or holds weights that no model can work with.
        OutputError: the output cannot be written.
    """
    given, known = read_request(source, model, weights, again)
    rules: dict[str, Any] = {"overwrite": overwrite, "dry_run": dry_run, "progress": progress}
    found = find_source(given, known, output, again=again, downloading=downloading, **rules)
    known = known or known_model(found.repository or "")
    checkpoint = _open_source(found.directory, known)
    options = {"link_mode": link_mode}
    if attn_factor is not None:
        checkpoint = read_attn_factor(checkpoint, attn_factor)
        options["attn_factor"] = attn_factor
    name = known.name if known else found.name
    output_dir = output or default_output(Path(f"{name}-vacc"))
    obstacles = check_output(output_dir, source=checkpoint, **rules)
    assembly = _Assembly(found, checkpoint, name, output_dir, options)
    return assembly.plan(obstacles) if dry_run else assembly.write(progress, overwrite=overwrite)


class _Assembly:
    """A prepared directory of which everything is decided and nothing is written."""

    def __init__(
        self,
        found: Source,
        checkpoint: Checkpoint,
        name: str,
        output_dir: Path,
        options: dict[str, str],
    ) -> None:
        self._found, self._checkpoint, self._name = found, checkpoint, name
        self._output_dir, self._options = output_dir, options
        self._placement = Placement(checkpoint, output_dir, options["link_mode"])
        self._beside = plan_side_files(checkpoint, with_config=True)
        self._small_files = [
            *self._placement.plan_index(),
            *self._beside.files,
            *vendor_files(checkpoint),
        ]

    def plan(self, obstacles: Sequence[str]) -> PrepareResult:
        """Return what would be written, and why it would be refused."""
        planned = self._placement.planned
        listed = (*planned, *(file[:3] for file in self._small_files), _MANIFEST)
        return self._result(listed, planned, obstacles, dry_run=True)

    def write(self, progress: Progress, *, overwrite: bool) -> PrepareResult:
        """Claim the output, read all weights once, then write the directory."""
        said, source = list[str](), self._checkpoint
        output = output_directory(
            self._output_dir, overwrite=overwrite, source=source, say=said.append
        )
        with output as folder, unchanged(source):
            remarks = check_weights(source, progress)
            files = self._placement.place(folder, progress, said.append)
            files += [(file.write(folder), file.how) for file in self._small_files]
            manifest = write_manifest(
                folder,
                command="prepare",
                model=self._name,
                source=_describe_source(self._found, self._output_dir),
                options=self._options,
                normalized=self._beside.applied,
                files=[file for file, _ in files],
            )
        written = tuple((f.name, f.num_bytes, how) for f, how in (*files, (manifest, GENERATED)))
        # How the weights came there is known only now.
        return self._result(written, written, [*remarks, *said])

    def _result(
        self,
        files: tuple[tuple[str, int | None, str], ...],
        placed: Sequence[tuple[str, int | None, str]],
        more: Sequence[str],
        *,
        dry_run: bool = False,
    ) -> PrepareResult:
        found, notes = self._found, [*self._beside.to_notes(), *_model_notes(self._checkpoint)]
        notes += _mode_notes(self._checkpoint, placed)
        notes += [found.note] if found.note else []
        notes += more
        return PrepareResult(
            self._name, found.directory, self._output_dir, files, tuple(notes), dry_run
        )


def _describe_source(source: Source, output_dir: Path) -> dict[str, str | None]:
    """Return the manifest's entry.

    A user's own directory names no repository: whatever its shape, it may be a fine-tune.
    """
    return {
        "path": relative_source(source.directory, output_dir),
        "repository": source.repository,
        "revision": source.revision,
        **({"hub": "modelscope"} if source.is_modelscope else {}),
    }


def _open_source(directory: Path, known: CatalogModel | None) -> Checkpoint:
    """Refuse quantized weights, and a directory that is another model than the one named."""
    checkpoint = Checkpoint.open(directory)
    if layout := stored_layout(directory, checkpoint.config):
        raise CheckpointError(
            f"{directory} holds int8 values already (format {layout}). Prepare the float "
            f"checkpoint it was made from{name_source(directory)}."
        )
    if known is None or not (fields := known.differences(checkpoint.config)):
        return checkpoint
    got = checkpoint.config
    differences = [known.difference(got, field) for field in fields]
    other = match_config(got)
    hint = f" It has the shape of {other.aliases[0]}." if other else ""
    raise CheckpointError(
        f"{directory} is not {known.name}: {'; '.join(differences)}.{hint} Leave "
        "--model out to prepare it as it is, or give the right --weights."
    )


def vendor_files(checkpoint: Checkpoint) -> list[SideFile]:
    """Return what vamc wants beside the weights: its configuration, and the three source files."""
    if not needs_vacc_config(checkpoint.config):
        return []
    files = [SideFile.copied(source_file(name), "from vacc-deploy") for name in SOURCE_FILES]
    values = dump_json(vacc_config(checkpoint.config))
    return [*files, SideFile.generated(VACC_CONFIG_NAME, values)]


def _model_notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return what a user should know about this model."""
    config, notes = checkpoint.config, list[str]()
    is_stated = config.raw.get("sliding_window") is not None
    if is_stated and config.sliding_window is not None:
        notes.append(f"this model really uses a sliding window of {config.sliding_window} tokens.")
    elif is_stated and needs_vacc_config(config):
        notes.append(
            "sliding_window is null in config_vacc.json: the model does not use it "
            "(use_sliding_window is false), but the vendor's graph would apply it."
        )
    if (checkpoint.directory / ADAPTER_CONFIG).is_file():
        notes.append(
            f"{ADAPTER_CONFIG} lies beside the weights; the adapter is not prepared. If it is to "
            "be part of the model, merge it first."
        )
    if ways := ways_to_the_card(config):
        notes.append(ways)
    return tuple(notes)


def _mode_notes(
    checkpoint: Checkpoint, placed: Sequence[tuple[str, int | None, str]]
) -> tuple[str, ...]:
    """Return a note on ``placed`` weight files that other users cannot read."""
    linked = {name for name, _, how in placed if how not in (COPY, CHANGED)}
    modes = [
        stat.S_IMODE(shard.path.stat().st_mode)
        for name, shard in checkpoint.shards.items()
        if name in linked
    ]
    closed = [mode for mode in modes if not mode & stat.S_IROTH]
    if not closed:
        return ()
    files = f"{shlex.quote(str(checkpoint.directory))}/*.safetensors"
    return (
        f"weight files have mode {closed[0]:04o}, and a link keeps it: other users, such as "
        "that of a service, cannot read them. Prepare with --link-mode copy, or run: "
        f"chmod a+r {files}",
    )
