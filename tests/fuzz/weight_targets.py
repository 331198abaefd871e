"""Targets that read weights, configurations and what lies beside them. None imports torch early."""

import json
import os
import re
from contextlib import suppress
from pathlib import Path

from files import clear, place, write
from sandbox import FindingError

import vacc_deploy.text.tokenizer  # noqa: F401 - what the readers would import later
from vacc_deploy.checkpoint.adapters import explain_adapter
from vacc_deploy.checkpoint.generation_config import read_generation_config
from vacc_deploy.checkpoint.gguf_header import read_gguf_header
from vacc_deploy.checkpoint.header import read_header
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.checkpoint.soundness import find_unsound
from vacc_deploy.errors import CheckpointError, VaccDeployError
from vacc_deploy.formats.layouts import LAYOUTS
from vacc_deploy.json_files import dump_json
from vacc_deploy.lookup.recognize import recognize
from vacc_deploy.models.directory_config import format_files
from vacc_deploy.models.parse import parse_config, read_config_values
from vacc_deploy.models.settle import preview_config, settle_config
from vacc_deploy.models.vacc_config import check_vacc_config

# What the library takes and we do not: two meanings, no model's weights, or beyond a bound.
_STRICTER = re.compile(
    r"appears twice|nested|control characters|whole number -0|impossible shape|dimensions"
    r"|unknown dtype|of memory|digits"
)


def header(data: bytes, directory: Path) -> None:
    """A weight file: what our reader accepts, the library reads with the same tensors.

    And what we refuse, it refuses, but for what is named here.
    """
    path = directory / "model.safetensors"
    write(path, data)
    try:
        ours = {info.name: (info.dtype, info.shape) for info in read_header(path).tensors}
    except CheckpointError as err:
        ours, theirs = str(err), _read_with_library(path)
        if isinstance(theirs, dict) and not _STRICTER.search(ours):
            raise FindingError("differs", f"safetensors reads it, we do not: {ours:.300}") from err
        return
    theirs = _read_with_library(path)
    if theirs != ours:
        raise FindingError("differs", f"safetensors gives {theirs!r:.300}, we give {ours!r:.300}")


def gguf_header(data: bytes, directory: Path) -> None:
    """A GGUF file: every tensor that its header gives lies within the file."""
    path = directory / "a.gguf"
    write(path, data)
    position = 0
    for tensor in read_gguf_header(path).tensors:
        if not position < tensor.offset + tensor.num_bytes <= len(data):
            raise FindingError("differs", f"{tensor!r:.300} in a file of {len(data)} bytes")
        position = tensor.offset


def gguf_directory(data: bytes, directory: Path) -> None:
    """A directory of the format gguf: every tensor is read, and what is wrong with it is told."""
    place(data, directory, "config.json", "a.gguf")
    opened = Checkpoint.open(directory)
    for name in opened.tensors:
        opened.read(name)
    find_unsound(opened)


def _read_with_library(path: Path) -> dict | str:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
    except (SafetensorError, UnicodeError) as err:
        return str(err)


def checkpoint(data: bytes, directory: Path) -> None:
    """A whole directory: configuration, index and two weight files."""
    place(data, directory, "config.json", "model.safetensors.index.json", *_SHARDS, "notes")
    opened = Checkpoint.open(directory)
    opened.changed_shards()
    for name in opened.tensors:
        opened.read(name)


_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def config(data: bytes, directory: Path) -> None:
    """``config.json``: settled, parsed, and as every layout writes it."""
    place(data, directory, "config.json", "config_vacc.json")
    values = read_config_values(directory)
    preview_config(values, where="config.json")
    settled = settle_config(values, "bfloat16", {"<s>": 1}.get).values
    if settle_config(settled, "bfloat16", {"<s>": 1}.get).values != settled and settled == settled:
        raise FindingError("differs", "a settled configuration is settled to another one")
    parsed = parse_config(settled, where="config.json")
    again = parse_config(json.loads(dump_json(settled)), where="config.json")
    if again.differences(parsed):
        raise FindingError("differs", "a configuration that is written down means another one")
    check_vacc_config(directory, parsed)
    for layout in LAYOUTS:
        with suppress(VaccDeployError):
            format_files(layout, parsed, directory)


def generation_config(data: bytes, directory: Path) -> None:
    """``generation_config.json``: what is settled stays as it is."""
    place(data, directory, "generation_config.json")
    values, applied = read_generation_config(directory, 304)
    if applied:
        text = dump_json(values).encode("utf-8", "surrogatepass")
        place(text, directory, "generation_config.json")
        again, _ = read_generation_config(directory, 304)
        if again != values and values == values:
            raise FindingError("differs", f"settled {values!r:.200} is settled to {again!r:.200}")


def adapter(data: bytes, directory: Path) -> None:
    """An adapter's configuration."""
    place(data, directory, "adapter_config.json")
    explain_adapter(directory)


def directory_names(data: bytes, directory: Path) -> None:
    """A directory whose names a stranger chose: each line is an empty file, or NAME=content."""
    clear(directory)
    for line in data.split(b"\n")[:60]:
        name, _, content = line.partition(b"=")
        path = bytes(directory) + b"/" + name.replace(b"/", b"\\")[:250]
        with suppress(OSError, ValueError), open(path, "xb") as file:
            file.write(content)
    for needs_float in (False, True):
        if finding := recognize(directory, needs_float=needs_float):
            finding.to_text(str)
    Checkpoint.open(directory)


def hub_cache(data: bytes, directory: Path) -> None:
    """A model's folder in the hub's cache: what its branch names, and the names of snapshots."""
    clear(directory)
    folder = directory / "models--a--b"
    for name in ("refs", "snapshots"):
        (folder / name).mkdir(parents=True)
    commit, *names = data.split(b"\n")[:20]
    (folder / "refs" / "main").write_bytes(commit)
    for name in names:
        path = bytes(folder / "snapshots") + b"/" + name.replace(b"/", b"\\")[:250]
        with suppress(OSError, ValueError):
            os.mkdir(path)
    for inner in (directory, folder, folder / "refs", folder / "snapshots"):
        if finding := recognize(inner):
            finding.to_text(str)
