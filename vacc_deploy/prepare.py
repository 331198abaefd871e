"""Assemble the directory that the compiler reads: weights, and the vendor's files beside them."""

from __future__ import annotations

import shlex
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vacc_deploy.assets import SOURCE_FILES, source_file
from vacc_deploy.checkpoint.adapters import ADAPTER_CONFIG
from vacc_deploy.checkpoint.files import copy_file, place_shard, side_files
from vacc_deploy.checkpoint.generation_config import settle_side_files
from vacc_deploy.checkpoint.hub import Source
from vacc_deploy.checkpoint.manifest import (
    LinkedFile,
    name_source,
    relative_source,
    stored_layout,
    write_manifest,
)
from vacc_deploy.checkpoint.normalize import ABSENT_ENTRIES
from vacc_deploy.checkpoint.output import MANIFEST_NAME, check_output, check_space, output_directory
from vacc_deploy.checkpoint.reader import INDEX_NAME, SINGLE_FILE, Checkpoint
from vacc_deploy.checkpoint.request import find_source, read_request
from vacc_deploy.checkpoint.soundness import check_weights
from vacc_deploy.checkpoint.writer import WrittenFile, write_index_map, write_shard, write_text
from vacc_deploy.errors import CheckpointError
from vacc_deploy.json_files import dump_json
from vacc_deploy.models.catalog import (
    ARCHITECTURE_FIELDS,
    CatalogModel,
    known_model,
    match_config,
)
from vacc_deploy.models.config import CONFIG_NAME
from vacc_deploy.models.settle import Applied
from vacc_deploy.models.vacc_config import (
    VACC_CONFIG_NAME,
    needs_vacc_config,
    vacc_config,
    ways_to_the_card,
)
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.results import command, format_bytes, format_pairs

# How a weight file came that is written in another form than the source stores it in.
CHANGED = "changed"


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
            names = ", ".join(name for name, _ in members[:6])
            more = f" and {len(members) - 6} more" if len(members) > 6 else ""
            plural = "" if len(members) == 1 else "s"
            lines.append((how, f"{len(members)} file{plural}{total}: {names}{more}"))
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
        overwrite: replace an output of an earlier run.
        dry_run: validate and plan only.
        progress: learns of the weights that are read, then of each weight file.
        again: writes the user's command line with another ``source`` alone, for messages.
        downloading: entered while files are downloaded.

    Raises:
        UsageError: no source, two that contradict each other, or an unknown ``model``.
        UnsupportedModelError: another architecture.
        CheckpointError: the source is incomplete, prepared already, or another model than named,
            or holds weights that no model can work with.
        OutputError: the output cannot be written.
    """
    given, known = read_request(source, model, weights, again)
    found = find_source(
        given,
        known,
        output,
        overwrite=overwrite,
        dry_run=dry_run,
        again=again,
        downloading=downloading,
    )
    known = known or known_model(found.repository or "")
    checkpoint = _open_source(found.directory, known)
    name = known.name if known else found.name
    output_dir, inputs = output or Path(f"{name}-vacc"), checkpoint.input_paths()
    obstacles = check_output(output_dir, overwrite=overwrite, inputs=inputs, dry_run=dry_run)
    planned = _plan_weights(checkpoint, output_dir, link_mode)
    small_files, applied = _plan_small_files(checkpoint)
    notes = (*(rule.note for rule in applied), *_notes(checkpoint, planned))
    if dry_run:
        listed = (*planned, *(file[:3] for file in small_files), (MANIFEST_NAME, None, "generated"))
        return PrepareResult(name, found.directory, output_dir, listed, notes + obstacles, True)
    notes += check_weights(checkpoint, progress)
    with output_directory(output_dir, overwrite=overwrite, inputs=inputs) as folder:
        files = _place_weights(checkpoint, folder, link_mode, progress)
        files += [(write(folder), how) for _, _, how, write in small_files]
        manifest = write_manifest(
            folder,
            command="prepare",
            model=name,
            source=_describe_source(found, output_dir),
            options={"link_mode": link_mode},
            normalized=applied,
            files=[file for file, _ in files],
        )
        files.append((manifest, "generated"))
    written = tuple((file.name, file.num_bytes, how) for file, how in files)
    return PrepareResult(name, found.directory, output_dir, written, notes)


def _describe_source(source: Source, output_dir: Path) -> dict[str, str | None]:
    """Return the manifest's entry.

    A user's own directory names no repository: whatever its shape, it may be a fine-tune.
    """
    return {
        "path": relative_source(source.directory, output_dir),
        "repository": source.repository,
        "revision": source.revision,
    }


def _open_source(directory: Path, known: CatalogModel | None) -> Checkpoint:
    """Refuse quantized weights, and a directory that is another model than the one named."""
    checkpoint = Checkpoint.open(directory)
    if layout := stored_layout(directory, checkpoint.config):
        raise CheckpointError(
            f"{directory} holds int8 values already (format {layout}). Prepare the float "
            f"checkpoint it was made from{name_source(directory)}."
        )
    if known is None or match_config(checkpoint.config) is known:
        return checkpoint
    expected, got = known.config, checkpoint.config
    differences = [
        f"{field} is {getattr(got, field)}, expected {getattr(expected, field)}"
        for field in ARCHITECTURE_FIELDS
        if getattr(got, field) != getattr(expected, field)
    ]
    other = match_config(got)
    hint = f" It has the shape of {other.aliases[0]}." if other else ""
    raise CheckpointError(
        f"{directory} is not {known.name}: {'; '.join(differences)}.{hint} Leave "
        "--model out to prepare it as it is, or give the right --weights."
    )


def _plan_weights(
    checkpoint: Checkpoint, output_dir: Path, link_mode: str
) -> list[tuple[str, int, str]]:
    """Return name, bytes and most likely way of each weight file, and see that copies fit."""
    device, planned = output_dir.resolve().parent.stat().st_dev, []
    changed = checkpoint.changed_shards()
    for name, shard in checkpoint.shards.items():
        is_near = shard.path.stat().st_dev == device
        how = ("hardlink" if is_near else "copy") if link_mode == "auto" else link_mode
        planned.append((name, shard.file_bytes, CHANGED if name in changed else how))
    written = sum(size for _, size, how in planned if how in ("copy", CHANGED))
    check_space(output_dir, written)
    return planned


def _place_weights(
    checkpoint: Checkpoint, folder: Path, link_mode: str, progress: Progress
) -> list[tuple[WrittenFile | LinkedFile, str]]:
    """Link or copy every weight file, or write it in its changed form; return how each came."""
    files = list[tuple[WrittenFile | LinkedFile, str]]()
    shards, changed = checkpoint.shards, checkpoint.changed_shards()
    progress.start("Placing weights", sum(s.file_bytes for s in shards.values()), "bytes")
    for name, shard in shards.items():
        if name in changed:
            tensors = {info.name: info for info in changed[name]}
            files.append((write_shard(folder / name, tensors), CHANGED))
        else:
            files.append(place_shard(shard, folder, link_mode))
        progress.advance(shard.file_bytes, name)
    progress.finish()
    return files


# Name, bytes and way of a file beside the weights, for a dry run, and what a run calls to write it.
_SmallFile = tuple[str, int | None, str, Callable[[Path], WrittenFile]]


def _plan_small_files(checkpoint: Checkpoint) -> tuple[list[_SmallFile], tuple[Applied, ...]]:
    """Return everything that is written beside the weights but the manifest, and all rules."""
    files = _plan_index(checkpoint)
    texts, applied = settle_side_files(checkpoint.directory, checkpoint.config)
    if checkpoint.is_config_changed:
        texts[CONFIG_NAME] = dump_json(checkpoint.config.raw)
    for path in side_files(checkpoint.directory, with_config=True):
        if path.name not in texts:
            files.append(_copied(path))
    if needs_vacc_config(checkpoint.config):
        files += [_copied(source_file(name), "from vacc-deploy") for name in SOURCE_FILES]
        texts[VACC_CONFIG_NAME] = dump_json(vacc_config(checkpoint.config))
    for name, text in texts.items():
        size = len(text.encode(errors="backslashreplace"))
        files.append((name, size, "generated", partial(_write_text, name=name, text=text)))
    return files, (*checkpoint.applied, *applied)


def _copied(path: Path, how: str = "copy") -> _SmallFile:
    return path.name, path.stat().st_size, how, partial(copy_file, path)


def _write_text(folder: Path, *, name: str, text: str) -> WrittenFile:
    return write_text(folder / name, text)


def _plan_index(checkpoint: Checkpoint) -> list[_SmallFile]:
    """Return the index, if there is to be one: the source's where it holds for the output too."""
    changed = checkpoint.changed_shards()
    is_true = not changed and not any(rule.rule == ABSENT_ENTRIES for rule in checkpoint.applied)
    if checkpoint.has_index and is_true:
        return [_copied(checkpoint.directory / INDEX_NAME)]
    if set(checkpoint.shards) == {SINGLE_FILE}:
        return []
    # Odd names without an index: loaders find such shards only through one.
    stored = [
        (info.name, file, info.num_bytes)
        for file, shard in checkpoint.shards.items()
        for info in changed.get(file, shard.tensors)
    ]
    weight_map, total = {n: f for n, f, _ in stored}, sum(size for *_, size in stored)
    write = partial(write_index_map, weight_map=weight_map, total=total)
    return [(INDEX_NAME, None, "generated", write)]


def _notes(checkpoint: Checkpoint, planned: list[tuple[str, int, str]]) -> tuple[str, ...]:
    """Return what a user should know about this checkpoint and its ``planned`` weight files."""
    config, notes = checkpoint.config, []
    is_stated = config.raw.get("sliding_window") is not None
    if is_stated and config.sliding_window is not None:
        notes.append(f"this model really uses a sliding window of {config.sliding_window} tokens.")
    elif is_stated and config.model_type == "qwen2":
        notes.append(
            "sliding_window is null in config_vacc.json: the model does not use it "
            "(use_sliding_window is false), but the vendor's graph would apply it."
        )
    if not (checkpoint.directory / "tokenizer.json").is_file():
        notes.append("the source has no tokenizer.json; quantize and verify will need it.")
    if (checkpoint.directory / ADAPTER_CONFIG).is_file():
        notes.append(
            f"{ADAPTER_CONFIG} lies beside the weights; the adapter is not prepared. If it is to "
            "be part of the model, merge it first."
        )
    if ways := ways_to_the_card(config):
        notes.append(ways)
    linked = {name for name, _, how in planned if how != "copy"}
    modes = [
        stat.S_IMODE(shard.path.stat().st_mode)
        for name, shard in checkpoint.shards.items()
        if name in linked
    ]
    closed = [mode for mode in modes if not mode & stat.S_IROTH]
    if closed:
        files = f"{shlex.quote(str(checkpoint.directory))}/*.safetensors"
        notes.append(
            f"weight files have mode {closed[0]:04o}, and a link keeps it: other users, such as "
            "that of a service, cannot read them. Prepare with --link-mode copy, or run: "
            f"chmod a+r {files}"
        )
    return tuple(notes)
