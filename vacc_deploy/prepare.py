"""Assemble the directory that the compiler reads: weights, and the vendor's files beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vacc_deploy.assets import SOURCE_FILES, source_file
from vacc_deploy.checkpoint import (
    INDEX_NAME,
    MANIFEST_NAME,
    SINGLE_FILE,
    Checkpoint,
    LinkedFile,
    ShardHeader,
    WrittenFile,
    check_output,
    check_space,
    copy_file,
    model_name,
    output_directory,
    place_shard,
    relative_source,
    side_files,
    write_index_map,
    write_manifest,
    write_text,
)
from vacc_deploy.checkpoint.hub import Source, fetch
from vacc_deploy.errors import CheckpointError, UsageError
from vacc_deploy.json_files import dump_json
from vacc_deploy.models.catalog import ARCHITECTURE_FIELDS, CatalogModel, find_model, match_config
from vacc_deploy.models.vacc_config import VACC_CONFIG_NAME, needs_vacc_config, vacc_config
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.results import format_bytes, format_pairs


@dataclass(frozen=True)
class PrepareResult:
    """What ``prepare`` wrote, or would write (``dry_run``)."""

    model: str
    source_dir: Path
    output_dir: Path
    files: tuple[tuple[str, int, str], ...]
    notes: tuple[str, ...]
    dry_run: bool

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
        groups: dict[str, list[tuple[str, int]]] = {}
        for name, size, how in self.files:
            groups.setdefault(how, []).append((name, size))
        lines = []
        for how, members in groups.items():
            total = format_bytes(sum(size for _, size in members))
            names = ", ".join(name for name, _ in members[:6])
            more = f" and {len(members) - 6} more" if len(members) > 6 else ""
            count = "1 file" if len(members) == 1 else f"{len(members)} files"
            lines.append((how, f"{count}, {total}: {names}{more}"))
        head = "Would prepare" if self.dry_run else "Prepared"
        text = f"{head} {self.model} in {self.output_dir}\n{format_pairs(lines)}"
        text += "".join(f"\nNote: {note}" for note in self.notes)
        if not self.dry_run:
            text += f"\nNext: vacc-deploy quantize {self.output_dir}"
        return text


def prepare(
    *,
    model: str | None = None,
    weights: Path | None = None,
    output: Path | None = None,
    link_mode: str = "auto",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> PrepareResult:
    """Write a prepared directory.

    Args:
        model: a catalogue name or alias; may be left out when ``weights`` is given.
        weights: a checkpoint directory; without it the hub's cache, then a download.
        output: the directory to write; default ``./<model>-vacc``.
        link_mode: ``auto`` (hard link, else copy), ``hardlink``, ``symlink`` or ``copy``.
        overwrite: replace an output of an earlier run.
        dry_run: validate and plan only.
        progress: told of each weight file.

    Raises:
        UsageError: neither ``model`` nor ``weights``.
        UnsupportedModelError: unknown name, or another architecture.
        CheckpointError: the source is incomplete, damaged or another model than named.
        OutputError: the output cannot be written.
    """
    known = find_model(model) if model else None
    if weights is None and known is not None:
        # Before a download of gigabytes, see that the result can be written.
        check_output(output or Path(f"{known.name}-vacc"), overwrite=overwrite)
    source = _find_source(known, weights, may_download=not dry_run)
    checkpoint = Checkpoint.open(source.directory)
    _check_source(checkpoint, known)
    shards = checkpoint.shards.values()
    name = known.name if known else model_name(source.directory)
    output_dir = output or Path(f"{name}-vacc")
    inputs = checkpoint.input_paths()
    check_output(output_dir, overwrite=overwrite, inputs=inputs)
    hows = {shard.path.name: _placing(shard, output_dir, link_mode) for shard in shards}
    copied = sum(shard.file_bytes for shard in shards if hows[shard.path.name] == "copy")
    check_space(output_dir, copied)
    if dry_run:
        return _plan(name, checkpoint, output_dir, hows)
    with output_directory(output_dir, overwrite=overwrite, inputs=inputs) as partial:
        files = _write_files(checkpoint, partial, link_mode, progress)
        manifest = write_manifest(
            partial,
            command="prepare",
            model=name,
            source=_describe_source(source, known, output_dir),
            options={"link_mode": link_mode},
            files=[file for file, _ in files],
        )
    files.append((manifest, "generated"))
    listed = tuple((file.name, file.num_bytes, how) for file, how in files)
    notes = _notes(checkpoint)
    return PrepareResult(name, source.directory, output_dir, listed, notes, dry_run=False)


def _find_source(known: CatalogModel | None, weights: Path | None, *, may_download: bool) -> Source:
    if weights is not None:
        return Source(weights)
    if known is None:
        raise UsageError("Give --model NAME (see vacc-deploy models), --weights DIR, or both.")
    return fetch(known, may_download=may_download)


def _describe_source(
    source: Source, known: CatalogModel | None, output_dir: Path
) -> dict[str, str | None]:
    """Return the manifest's entry; a user's own directory is no repository, whatever its shape."""
    return {
        "path": relative_source(source.directory, output_dir),
        "repository": known.repository if known and source.revision else None,
        "revision": source.revision,
    }


def _check_source(checkpoint: Checkpoint, known: CatalogModel | None) -> None:
    """Refuse quantized weights, and a directory that is another model than the one named."""
    if layout := checkpoint.config.quantization_format:
        raise CheckpointError(
            f"{checkpoint.directory} holds {layout} weights already. Prepare the float checkpoint "
            "it was made from."
        )
    if known is None or match_config(checkpoint.config) is known:
        return
    expected, got = known.config, checkpoint.config
    differences = [
        f"{field} is {getattr(got, field)}, expected {getattr(expected, field)}"
        for field in ARCHITECTURE_FIELDS
        if getattr(got, field) != getattr(expected, field)
    ]
    other = match_config(got)
    hint = f" It has the shape of {other.aliases[0]}." if other else ""
    raise CheckpointError(
        f"{checkpoint.directory} is not {known.name}: {'; '.join(differences)}.{hint} Leave "
        "--model out to prepare it as it is, or give the right --weights."
    )


def _write_files(
    checkpoint: Checkpoint, partial: Path, link_mode: str, progress: Progress
) -> list[tuple[WrittenFile | LinkedFile, str]]:
    """Fill the partial directory; return every file and how it came there."""
    files: list[tuple[WrittenFile | LinkedFile, str]] = []
    shards = checkpoint.shards.values()
    progress.start("Placing weights", sum(shard.file_bytes for shard in shards), "bytes")
    for shard in shards:
        files.append(place_shard(shard, partial, link_mode))
        progress.advance(shard.file_bytes, shard.path.name)
    progress.finish()
    if checkpoint.has_index:
        files.append((copy_file(checkpoint.directory / INDEX_NAME, partial), "copy"))
    elif set(checkpoint.shards) != {SINGLE_FILE}:
        weight_map = {name: info.path.name for name, info in checkpoint.tensors.items()}
        index = write_index_map(partial, weight_map, checkpoint.weight_bytes)
        files.append((index, "generated"))
    for path in side_files(checkpoint.directory, with_config=True):
        files.append((copy_file(path, partial), "copy"))
    if needs_vacc_config(checkpoint.config):
        for name in SOURCE_FILES:
            files.append((copy_file(source_file(name), partial), "from vacc-deploy"))
        text = dump_json(vacc_config(checkpoint.config))
        files.append((write_text(partial / VACC_CONFIG_NAME, text), "generated"))
    return files


def _placing(shard: ShardHeader, output_dir: Path, link_mode: str) -> str:
    """Return how a weight file will most likely come: ``hardlink``, ``symlink`` or ``copy``."""
    if link_mode != "auto":
        return link_mode
    same_device = shard.path.stat().st_dev == output_dir.resolve().parent.stat().st_dev
    return "hardlink" if same_device else "copy"


def _plan(
    name: str, checkpoint: Checkpoint, output_dir: Path, hows: Mapping[str, str]
) -> PrepareResult:
    """Return what a run would write; the bytes of generated files are not known before."""
    files = [(n, shard.file_bytes, hows[n]) for n, shard in checkpoint.shards.items()]
    if checkpoint.has_index:
        path = checkpoint.directory / INDEX_NAME
        files.append((INDEX_NAME, path.stat().st_size, "copy"))
    elif set(checkpoint.shards) != {SINGLE_FILE}:
        files.append((INDEX_NAME, 0, "generated"))
    sides = side_files(checkpoint.directory, with_config=True)
    files += [(path.name, path.stat().st_size, "copy") for path in sides]
    if needs_vacc_config(checkpoint.config):
        files += [(n, source_file(n).stat().st_size, "from vacc-deploy") for n in SOURCE_FILES]
        text = dump_json(vacc_config(checkpoint.config))
        files.append((VACC_CONFIG_NAME, len(text.encode()), "generated"))
    files.append((MANIFEST_NAME, 0, "generated"))
    notes = _notes(checkpoint)
    return PrepareResult(name, checkpoint.directory, output_dir, tuple(files), notes, dry_run=True)


def _notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return what a user should know about this checkpoint."""
    config, notes = checkpoint.config, []
    if config.model_type == "qwen2" and config.raw.get("sliding_window") is not None:
        if config.sliding_window is None:
            notes.append(
                "sliding_window is null in config_vacc.json: the model does not use it "
                "(use_sliding_window is false), but the vendor's graph would apply it."
            )
        else:
            notes.append(
                f"this model really uses a sliding window of {config.sliding_window} tokens."
            )
    if not (checkpoint.directory / "tokenizer.json").is_file():
        notes.append("the source has no tokenizer.json; quantize and verify will need it.")
    return tuple(notes)
