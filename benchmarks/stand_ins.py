"""Stand-ins for what a checkpoint of random weights lacks: a tokenizer, and text that it can read.

It also cuts a checkpoint to its first layers, and makes one of random weights with the shapes of a
model. Light to import: see ``measured``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vacc_deploy.assets import demo_model_dir
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.demo.task import sample_problems
from vacc_deploy.models.parse import parse_config
from vacc_deploy.outputs.writer import shard_name, write_index, write_shard

# The tokenizers at hand make about 80 tokens of a problem and its answer, on average.
_TOKENS_PER_PROBLEM = 40
_SHAPED_VOCABULARY = 4096
# Files that are written anew, or that no longer hold for the first layers alone.
NOT_COPIED = ("config.json", "config_vacc.json", "model.safetensors.index.json", "vacc_deploy.json")


def link_checkpoint(source: Path, target: Path) -> None:
    """Give ``target`` the files of a checkpoint, and a tokenizer if it has none.

    They are hard links where the file system takes them, else copies: a symbolic link that leads
    out of a checkpoint's directory is not followed.
    """
    target.mkdir()
    for path in source.resolve().iterdir():
        try:
            os.link(os.path.realpath(path), target / path.name)
        except OSError:
            shutil.copyfile(path, target / path.name)
    if not (target / "tokenizer.json").exists():
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (target / name).write_bytes((demo_model_dir() / name).read_bytes())


def keep_layers(source: Path, target: Path, count: int) -> None:
    """Write the first ``count`` layers of a checkpoint, and everything around them.

    Raises:
        ValueError: the checkpoint has fewer layers.
    """
    checkpoint = Checkpoint.open(source)
    if not 0 < count <= checkpoint.config.num_hidden_layers:
        raise ValueError(f"{source} has {checkpoint.config.num_hidden_layers} layers, not {count}")
    raw = {**checkpoint.config.raw, "num_hidden_layers": count}
    if raw.get("layer_types"):
        raw["layer_types"] = raw["layer_types"][:count]
    target.mkdir()
    for path in source.resolve().iterdir():
        if path.suffix != ".safetensors" and path.name not in NOT_COPIED:
            (target / path.name).write_bytes(path.read_bytes())
    (target / "config.json").write_text(json.dumps(raw, indent=2), "utf-8")
    inner = [checkpoint.config.layer_tensors(layer) for layer in range(count)]
    dropped = {
        name
        for layer in range(checkpoint.config.num_hidden_layers)
        for name in checkpoint.config.layer_tensors(layer)
    }
    outer = [name for name in checkpoint.tensors if name not in dropped]
    shards = [{name: checkpoint.info(name) for name in names} for names in (outer, *inner)]
    files = [
        write_shard(target / shard_name(index, len(shards)), shard)
        for index, shard in enumerate(shards)
    ]
    write_index(target, files)


def write_sums(path: Path, num_tokens: int) -> None:
    """Write a text of at least ``num_tokens`` tokens: sums and their answers."""
    problems = sample_problems(num_tokens // _TOKENS_PER_PROBLEM + 1, seed=0, held_out=False)
    path.write_text("\n".join(p.question + p.response for p in problems), "utf-8")


def write_shaped(
    target: Path,
    config_values: Mapping[str, Any],
    layers: int,
    vocab_size: int = _SHAPED_VOCABULARY,
) -> None:
    """Write random bfloat16 weights with the shapes of a model: few layers, a small vocabulary.

    One shard a layer, so that memory holds one layer.
    """
    import torch

    values = {**config_values, "num_hidden_layers": layers, "vocab_size": vocab_size}
    # The ids of the tokenizer below.
    demo = json.loads((demo_model_dir() / "config.json").read_text("utf-8"))
    values |= {key: demo.get(key) for key in ("bos_token_id", "eos_token_id")}
    values["max_window_layers"] = layers
    config = parse_config(values, where="the shaped model")
    target.mkdir()
    (target / "config.json").write_text(json.dumps(values, indent=2), "utf-8")
    shapes, generator = config.expected_tensors(), torch.Generator().manual_seed(0)
    inner = [config.layer_tensors(layer) for layer in range(layers)]
    outer = [name for name in shapes if not any(name in names for names in inner)]
    files = []
    for index, names in enumerate((outer, *inner)):
        tensors = {}
        for name in names:
            shape = shapes[name]
            made = torch.randn(shape, generator=generator).mul_(shape[-1] ** -0.5)
            tensors[name] = (made if len(shape) == 2 else made.abs() + 1).bfloat16()
        files.append(write_shard(target / shard_name(index, layers + 1), tensors))
    write_index(target, files)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).write_bytes((demo_model_dir() / name).read_bytes())
