"""Open a checkpoint directory: check everything from the headers, then read tensors one by one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vacc_deploy.checkpoint.header import ShardHeader, TensorInfo, read_header
from vacc_deploy.errors import CheckpointError, list_problems
from vacc_deploy.formats.dtypes import FLOAT_DTYPES, torch_dtype
from vacc_deploy.formats.layouts import LAYOUTS
from vacc_deploy.json_files import read_json
from vacc_deploy.models.config import LM_HEAD, ModelConfig
from vacc_deploy.models.parse import read_config
from vacc_deploy.permissions import explain_closed

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MAX_INDEX_BYTES = 64 << 20
# A file of the directory itself: no path, no drive, no NUL.
_PLAIN_NAME = re.compile(r"(?!\.)[^/\\:\0]*\.safetensors", re.DOTALL)
# Small enough to be hashed and written while it is still in the cache.
CHUNK_BYTES = 1 << 20
# Written by old exporters; every loader recomputes it from the config.
_IGNORED_SUFFIX = "rotary_emb.inv_freq"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory whose files, names, shapes and dtypes have been checked.

    Attributes:
        directory: its path; never written to.
        config: the parsed ``config.json``.
        shards: the headers of its files, by file name.
        tensors: every tensor by name.
        has_index: whether ``model.safetensors.index.json`` exists.
    """

    directory: Path
    config: ModelConfig
    shards: dict[str, ShardHeader]
    tensors: dict[str, TensorInfo]
    has_index: bool

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        """Read config, index and headers, and compare them with each other.

        Raises:
            CheckpointError: lists every problem found.
            UnsupportedModelError: another architecture.
        """
        checkpoint, problems = examine(directory)
        if problems:
            is_ours = (directory / "quantize_report.json").is_file()
            advice = (
                "Run the vacc-deploy quantize that wrote the directory again, with --overwrite."
                if is_ours
                else "Download the files named again from the model's repository, then rerun."
            )
            raise CheckpointError(
                f"{directory} is not a usable checkpoint:\n{list_problems(problems)}\n{advice}"
            )
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
        """Return one tensor on the CPU in its stored dtype, in memory of its own."""
        return read_tensor(self.info(name))

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
                f"{name} has {num_rows} rows, there is no row {outside[0]}. Does the tokenizer "
                "belong to this model?"
            )
        row_bytes = info.num_bytes // num_rows
        return _read_spans(
            info, (len(rows), columns), [(row * row_bytes, row_bytes) for row in rows]
        )

    def read_slice(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the rows ``start`` to ``stop`` of a matrix, in memory of their own."""
        info = self.info(name)
        num_rows, columns = info.shape
        row_bytes, count = info.num_bytes // num_rows, min(stop, num_rows) - start
        return _read_spans(info, (count, columns), [(start * row_bytes, count * row_bytes)])

    def input_paths(self) -> tuple[Path, ...]:
        """Return what no output may replace: the directory, and the real paths of its files.

        A file may be a link into another directory, as in the hub's cache.
        """
        files = sorted(path.resolve() for path in self.directory.iterdir() if path.is_file())
        return (self.directory, *files)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.num_bytes for info in self.tensors.values())


def examine(directory: Path) -> tuple[Checkpoint, list[str]]:
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
    config = read_config(directory)
    # Without an index every weight file of the directory counts.
    weight_map = _read_index(directory)
    names = sorted(set(weight_map.values())) if weight_map else _find_files(directory)
    shards, problems = _read_shards(directory, names, weight_map)
    tensors = {info.name: info for shard in shards.values() for info in shard.tensors}
    if not problems:
        # Without a shard all of its tensors would be reported too.
        problems += _compare_with_index(weight_map, shards)
        problems += _compare_with_config(config, tensors)
    return Checkpoint(directory, config, shards, tensors, weight_map is not None), problems


def read_tensor(info: TensorInfo) -> torch.Tensor:
    """Return one tensor on the CPU in its stored dtype, in memory of its own.

    Raises:
        CheckpointError: the file became shorter since its header was read.
    """
    return _read_spans(info, info.shape, [(0, info.num_bytes)])


def _read_spans(
    info: TensorInfo, shape: tuple[int, ...], spans: Iterable[tuple[int, int]]
) -> torch.Tensor:
    """Return a tensor of ``shape`` filled with pieces of a stored one.

    Args:
        info: the stored tensor.
        shape: sizes of the result.
        spans: where each piece begins within the tensor, and its length, both in bytes.
    """
    import torch

    tensor = torch.empty(shape, dtype=torch_dtype(info.dtype))
    # The tensor's own bytes, flat: what is read lands in them, with no copy between.
    view = memoryview(tensor.view(-1).view(torch.uint8).numpy().data)
    with info.path.open("rb", buffering=0) as file:
        for start, num_bytes in spans:
            file.seek(info.offset + start)
            piece, view = view[:num_bytes], view[num_bytes:]
            while piece:
                # One call reads at most 2 GiB on Linux.
                count = file.readinto(piece)
                if not count:
                    raise _shortened(info)
                piece = piece[count:]
    return tensor


def stored_bytes(info: TensorInfo) -> Iterator[memoryview]:
    """Yield the bytes of one tensor as ``read_pieces`` does.

    Raises:
        CheckpointError: the file became shorter since its header was read.
    """
    left = info.num_bytes
    for piece in read_pieces(info.path, [(info.offset, left)]):
        left -= len(piece)
        yield piece
    if left:
        raise _shortened(info)


def read_pieces(path: Path, spans: Iterable[tuple[int, int]]) -> Iterator[memoryview]:
    """Yield the bytes at each (offset, size) of a file, as far as it goes.

    Every piece is the same buffer of ``CHUNK_BYTES``, filled anew: use it before taking the next.
    """
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        for offset, left in spans:
            file.seek(offset)
            while left > 0 and (count := file.readinto(buffer[:left])):
                left -= count
                yield buffer[:count]


def _shortened(info: TensorInfo) -> CheckpointError:
    missing = info.offset + info.num_bytes - info.path.stat().st_size
    return CheckpointError(
        f"{info.path} ended {missing:,} bytes before the end of {info.name}: it was changed while "
        "being read."
    )


def _read_index(directory: Path) -> dict[str, str] | None:
    """Return the index's weight map, or None where a single file serves.

    ``model.safetensors`` wins over an index, as it does in transformers.
    """
    path = directory / INDEX_NAME
    if not path.is_file() or (directory / SINGLE_FILE).is_file():
        return None
    raw = read_json(path, limit_bytes=MAX_INDEX_BYTES)
    weight_map = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map. Download it again.")
    outside = [
        f"{tensor} -> {file!r}"
        for tensor, file in weight_map.items()
        if not (isinstance(file, str) and _PLAIN_NAME.fullmatch(file))
    ]
    if outside:
        raise CheckpointError(
            f"{path} names files that are not plain .safetensors names of its own directory:\n"
            f"{list_problems(outside)}\nNothing was read. Do not trust this checkpoint."
        )
    return weight_map


def _find_files(directory: Path) -> list[str]:
    if (directory / SINGLE_FILE).is_file():
        return [SINGLE_FILE]
    found = sorted(path.name for path in directory.glob("*.safetensors") if path.is_file())
    if found:
        return found
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt")):
        raise CheckpointError(
            f"{directory} holds pickled weights (.bin, .pt) and no safetensors. Pickle files can "
            "run code when read, so they are refused: convert them with transformers' "
            "save_pretrained on a machine you trust, or download the safetensors revision."
        )
    raise CheckpointError(
        f"{directory} holds neither {SINGLE_FILE} nor {INDEX_NAME}. Download the weights into it."
    )


def _read_shards(
    directory: Path, names: list[str], weight_map: dict[str, str] | None
) -> tuple[dict[str, ShardHeader], list[str]]:
    """Read every header; return those that are sound and the problems of the others.

    Raises:
        CheckpointError: the system does not let this user read a file, which may be sound.
    """
    shards, problems, refused = {}, list[str](), list[str]()
    counts = Counter((weight_map or {}).values())
    for name in names:
        path = directory / name
        if not path.is_file():
            problems.append(f"{name} is missing ({INDEX_NAME} puts {counts[name]} tensors in it)")
            continue
        try:
            shards[name] = read_header(path)
        except CheckpointError as err:
            where = refused if isinstance(err.__cause__, OSError) else problems
            where.append(str(err).removeprefix(f"{directory}/"))
    if refused:
        raise CheckpointError(f"Not all of {directory} can be read:\n{list_problems(refused)}")
    return shards, problems


def _compare_with_index(
    weight_map: dict[str, str] | None, shards: dict[str, ShardHeader]
) -> list[str]:
    """Return where the index and the shards disagree, and tensors stored twice."""
    problems, holder = [], dict[str, str]()
    for file, shard in shards.items():
        for info in shard.tensors:
            if info.name in holder:
                problems.append(f"{info.name} is in both {holder[info.name]} and {file}")
            holder[info.name] = file
    if weight_map is None:
        return problems
    for tensor, file in weight_map.items():
        got = holder.get(tensor, "no file")
        if got != file:
            problems.append(f"{tensor} should be in {file} by the index, it is in {got}")
    # By the index nobody would read these.
    extra = sorted(holder.keys() - weight_map.keys())
    problems += [f"{tensor} in {holder[tensor]} is not in the index" for tensor in extra]
    return problems


def _compare_with_config(config: ModelConfig, tensors: dict[str, TensorInfo]) -> list[str]:
    """Return the tensors that are missing, unexpected, of another shape or dtype."""
    expected: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
        name: (shape, FLOAT_DTYPES) for name, shape in config.expected_tensors().items()
    }
    if config.quantization_format:
        # Codes and scales stand where the float weight would.
        for name, (out_features, in_features) in config.linear_names().items():
            del expected[f"{name}.weight"]
            stored = LAYOUTS[config.quantization_format].tensors(out_features, in_features)
            for suffix, (shape, dtype) in stored.items():
                expected[f"{name}.{suffix}"] = (shape, (dtype,))
    problems = []
    for name, (shape, dtypes) in expected.items():
        info = tensors.get(name)
        if info is None:
            problems.append(f"{name} is missing (config.json needs it, shape {list(shape)})")
        elif info.shape != shape:
            got = f"{name} in {info.path.name} has shape {list(info.shape)}"
            problems.append(f"{got}, config.json needs {list(shape)}")
        elif info.dtype not in dtypes:
            got = f"{name} in {info.path.name} is {info.dtype}"
            problems.append(f"{got}, expected {' or '.join(dtypes)}")
    for name, info in tensors.items():
        # Exporters write the head of a tied model or leave it out; the embedding is used anyway.
        is_spare_head = name == LM_HEAD and config.tie_word_embeddings
        if name not in expected and not is_spare_head and not name.endswith(_IGNORED_SUFFIX):
            problems.append(f"{name} in {info.path.name} belongs to no part of this config.json")
    return problems
