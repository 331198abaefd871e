"""Open a checkpoint directory: check everything from the headers, then read tensors one by one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vacc_deploy.bounds import INDEX_BYTES, SHARDS
from vacc_deploy.checkpoint.agreement import compare_with_config, compare_with_index
from vacc_deploy.checkpoint.causes import (
    INDEX_NAME,
    SINGLE_FILE,
    describe_missing,
    explain,
    explain_no_weights,
    find_weight_files,
)
from vacc_deploy.checkpoint.gguf_agreement import compare_gguf
from vacc_deploy.checkpoint.gguf_header import read_gguf_header
from vacc_deploy.checkpoint.gguf_tensors import (
    GgufTensorInfo,
    find_gguf_file,
    read_gguf,
    read_gguf_shard,
)
from vacc_deploy.checkpoint.header import (
    UNPRINTABLE,
    ShardHeader,
    TensorInfo,
    is_tensor_name,
    read_header,
)
from vacc_deploy.checkpoint.leftovers import find_control_file
from vacc_deploy.checkpoint.normalize import normalize
from vacc_deploy.checkpoint.shard_names import explain_odd_names, is_plain
from vacc_deploy.checkpoint.small_files import stamp_small_files
from vacc_deploy.checkpoint.stored import read_spans, read_tensor
from vacc_deploy.checkpoint.weight_links import WeightLinks, join_outside
from vacc_deploy.errors import CheckpointError, list_problems
from vacc_deploy.formats.dtypes import used_dtype
from vacc_deploy.formats.layouts import GGUF
from vacc_deploy.json_files import read_json
from vacc_deploy.models.config import CONFIG_NAME, ModelConfig
from vacc_deploy.models.parse import parse_config, read_config_values
from vacc_deploy.models.settle import Applied, preview_config
from vacc_deploy.permissions import explain_closed, real_path
from vacc_deploy.problems.files import DAMAGED_FILE, MISSING_FILE
from vacc_deploy.problems.problem import Problem
from vacc_deploy.stamps import FileStamp, describe_odd

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory whose files, names, shapes and dtypes have been checked.

    What it says is the published form, whatever the files say: see ``normalize``.

    Attributes:
        directory: its path; never written to.
        config: the parsed ``config.json``, with what the rules have changed.
        shards: the headers of its files, by file name, as they are stored.
        tensors: every tensor that is used, by the name under which it is used.
        has_index: whether ``model.safetensors.index.json`` exists.
        applied: the rules that have changed something.
        is_config_changed: whether ``config.json`` says something else than ``config``.
        stamps: of the files beside the weights, by name, as they were before any was read.
    """

    directory: Path
    config: ModelConfig
    shards: dict[str, ShardHeader]
    tensors: dict[str, TensorInfo]
    has_index: bool
    applied: tuple[Applied, ...] = ()
    is_config_changed: bool = False
    stamps: Mapping[str, FileStamp | None] = field(default_factory=dict)

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        """Read config, index and headers, and compare them with each other.

        Raises:
            CheckpointError: lists every problem found.
            UnsupportedModelError: another architecture.
        """
        checkpoint, problems = examine(directory)
        if problems:
            raise CheckpointError(explain(checkpoint, problems), problems)
        return checkpoint

    def info(self, name: str) -> TensorInfo:
        """Return where a tensor is stored, its dtype and shape.

        Raises:
            CheckpointError: no tensor has that name.
        """
        try:
            return self.tensors[name]
        except KeyError as err:
            raise CheckpointError(f"{self.directory} has no tensor {name}.") from err

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor on the CPU in its stored dtype (float64 as float32), in own memory."""
        info = self.info(name)
        if isinstance(info, GgufTensorInfo):
            return read_gguf(info)
        return _as_used(read_tensor(info))

    def read_rows(self, name: str, rows: Sequence[int]) -> torch.Tensor:
        """Return some rows of a matrix, [len(rows), columns], without reading the others.

        Raises:
            CheckpointError: no such tensor, or a row outside it.
        """
        info = self.info(name)
        num_rows, columns = info.shape
        outside = [row for row in rows if not 0 <= row < num_rows]
        if outside:
            # A token id above the embedding would read the tensor stored behind it.
            raise CheckpointError(
                f"{name} has {num_rows} rows, but an id asks for row {outside[0]}: the tokenizer "
                "does not belong to this model. Restore the tokenizer files from the model's "
                "original repository."
            )
        if isinstance(info, GgufTensorInfo):
            return read_gguf(info, rows)
        row_bytes = info.num_bytes // num_rows
        spans = [(row * row_bytes, row_bytes) for row in rows]
        return _as_used(read_spans(info, (len(rows), columns), spans))

    def read_slice(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the rows ``start`` to ``stop`` of a matrix, in memory of their own."""
        info = self.info(name)
        num_rows, columns = info.shape
        if isinstance(info, GgufTensorInfo):
            return read_gguf(info, range(start, min(stop, num_rows)))
        row_bytes, count = info.num_bytes // num_rows, min(stop, num_rows) - start
        spans = [(start * row_bytes, count * row_bytes)]
        return _as_used(read_spans(info, (count, columns), spans))

    def input_paths(self) -> tuple[Path, ...]:
        """Return what no output may replace: the directory, and the real paths of its files.

        A file may be a link into another directory, as in the hub's cache.
        """
        files = sorted(real_path(path) for path in self.directory.iterdir() if os.path.isfile(path))
        return (self.directory, *files)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors that are used."""
        return sum(info.num_bytes for info in self.tensors.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for every rule that has changed something."""
        return tuple(rule.to_text() for rule in self.applied)

    def changed_shards(self) -> dict[str, list[TensorInfo]]:
        """Return the files that are stored in another form than they are used in.

        Each with its tensors as they are used; spare tensors alone change no file.
        """
        by_file = dict[str, list[TensorInfo]]()
        for info in self.tensors.values():
            by_file.setdefault(info.path.name, []).append(info)
        return {
            file: infos
            for file, infos in by_file.items()
            if any(i.name != i.stored_name or i.dtype != used_dtype(i.dtype) for i in infos)
        }


def examine(directory: Path) -> tuple[Checkpoint, list[Problem]]:
    """Return what the config, the index and the headers say, and every problem found.

    With a problem the checkpoint is not to be read from.

    Raises:
        CheckpointError: there is nothing to examine: no directory, no readable config or index, no
            weight files.
        UnsupportedModelError: another architecture.
    """
    if problem := explain_closed(directory):
        raise CheckpointError(problem)
    if not directory.is_dir():
        state = "is a file" if directory.exists() else "does not exist"
        raise CheckpointError(f"{directory} {state}. Give a checkpoint directory.")
    # Before anything is read: what changes from here on is noticed.
    stamps = stamp_small_files(directory)
    raw, where = read_config_values(directory), str(directory / CONFIG_NAME)
    # What is wrong with the configuration itself comes before what is wrong with the weights.
    preview = preview_config(raw, where=where)
    weight_map = None
    if preview.quantization_format == GGUF:
        shards, problems = _read_gguf(directory, preview)
    else:
        # Whether it is there decides what else is read.
        _refuse_links(directory, [SINGLE_FILE])
        # Without an index every weight file of the directory counts.
        weight_map = _read_index(directory)
        names = sorted(set(weight_map.values())) if weight_map else _find_files(directory)
        shards, problems = _read_shards(directory, names, weight_map)
    if problems:
        # Without a shard all of its tensors would be reported too.
        return Checkpoint(directory, preview, shards, {}, weight_map is not None), problems
    found, applied = normalize(raw, shards, weight_map, directory)
    config = parse_config(found.raw, where=where)
    problems += found.problems
    problems += compare_with_index(found.weight_map, shards)
    problems += compare_with_config(config, found.tensors)
    checkpoint = Checkpoint(
        directory,
        config,
        shards,
        found.tensors,
        has_index=weight_map is not None,
        applied=applied,
        is_config_changed=found.raw != raw,
        stamps=stamps,
    )
    return checkpoint, problems


def _as_used(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.element_size() == 8 and tensor.is_floating_point() else tensor


def _read_index(directory: Path) -> dict[str, str] | None:
    """Return the index's weight map, or None where a single file serves.

    ``model.safetensors`` wins over an index, as it does in transformers.
    """
    path = directory / INDEX_NAME
    if not path.is_file() or (directory / SINGLE_FILE).is_file():
        return None
    raw = read_json(path, limit_bytes=INDEX_BYTES)
    weight_map = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map. Download it again.")
    if any(not is_tensor_name(tensor) for tensor in weight_map):
        raise CheckpointError(f"{path} gives a tensor {UNPRINTABLE}. Download it again.")
    outside = [
        f"{tensor:.80} -> {file!r:.80}" for tensor, file in weight_map.items() if not is_plain(file)
    ]
    if outside:
        raise CheckpointError(
            f"{path} names files that are not plain .safetensors names of its own directory:\n"
            f"{list_problems(outside)}\nNothing was read. Do not trust this checkpoint."
        )
    if (count := len(set(weight_map.values()))) > SHARDS:
        raise CheckpointError(
            f"{path} names {count:,} files, expected at most {SHARDS:,}. Download it again."
        )
    return weight_map


def _find_files(directory: Path) -> list[str]:
    if (directory / SINGLE_FILE).is_file():
        return [SINGLE_FILE]
    if found := find_weight_files(directory):
        if odd := [name for name in found if not is_plain(name)]:
            raise CheckpointError(explain_odd_names(directory, odd))
        return found
    raise CheckpointError(explain_no_weights(directory))


def _refuse_links(directory: Path, names: Iterable[str]) -> None:
    """Refuse weight files that are links out of the directory.

    Raises:
        CheckpointError: names all of them.
    """
    links = WeightLinks()
    if outside := join_outside({name: links.explain_outside(directory / name) for name in names}):
        raise CheckpointError(outside)


def _read_gguf(
    directory: Path, config: ModelConfig
) -> tuple[dict[str, ShardHeader], list[Problem]]:
    """Read the header of a directory's one GGUF file; see ``_read_shards``."""
    name = find_gguf_file(directory)
    _refuse_links(directory, [name])
    header = read_gguf_header(directory / name)
    compare_gguf(header, config)
    return {name: read_gguf_shard(header, config)}, []


def _read_shards(
    directory: Path, names: list[str], weight_map: dict[str, str] | None
) -> tuple[dict[str, ShardHeader], list[Problem]]:
    """Read every header; return those that are sound and the problems of the others.

    Raises:
        CheckpointError: the system does not let this user read a file, which may be sound; or a
            file is a link that leads out of the directory.
    """
    shards, problems, refused = {}, list[Problem](), list[str]()
    counts = Counter((weight_map or {}).values())
    _refuse_links(directory, names)
    missing = [name for name in names if not (directory / name).is_file()]
    reasons = dict.fromkeys(missing, "") | describe_missing(directory, missing)
    for name in names:
        path = directory / name
        if name in reasons:
            stated = f"({INDEX_NAME} puts {counts[name]} tensors in it)"
            odd = describe_odd(path)
            what = f"is {odd}, not a file" if odd else "is missing"
            text = f"{name} {what} {stated}{reasons[name]}"
            problems.append(MISSING_FILE.broken(text, where=name))
            continue
        if unfinished := find_control_file(path):
            problems.append(DAMAGED_FILE.broken(f"{name}: {unfinished}", where=name))
            continue
        try:
            shards[name] = read_header(path)
        except CheckpointError as err:
            text = str(err).removeprefix(f"{directory}/")
            if isinstance(err.__cause__, OSError):
                refused.append(text)
            else:
                problems.append(DAMAGED_FILE.broken(text, where=name))
    if refused:
        raise CheckpointError(f"Not all of {directory} can be read:\n{list_problems(refused)}")
    return shards, problems
