"""Measure the commands on checkpoints of great numbers and sizes.

    python benchmarks/scale.py many WORK_DIR [--shards 1000] [--tensors 200000]
    python benchmarks/scale.py sparse WORK_DIR [--gigabytes 100]
    python benchmarks/scale.py shapes WORK_DIR [--layers 2] [--model NAME] [--graph]
    python benchmarks/scale.py check WORK_DIR [--model NAME] [--shards 1000]

``many`` prepares checkpoints of very small tensors, the whole one and its half: a cost that grows
faster than the number of tensors shows in the ratio. ``sparse`` prepares a checkpoint whose files
are nearly all holes, with one page of values in each row, so that it takes a tenth of its size on
the disk. ``shapes`` takes a model with the shapes of Llama-70B, or of another known model, through
the commands; with ``--graph`` through ``export-onnx`` too. ``check`` times ``check`` of a prepared
directory with all layers of a model, random weights, and of one with the tensors of Llama-70B in so
many files, holes but for a few rows; it has more layers than the 70B, so
that each file has a tensor. Everything made is removed again.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
from measured import Measured, machine, run_measured
from stand_ins import write_shaped, write_sums

from vacc_deploy.assets import demo_model_dir
from vacc_deploy.models.catalog import find_model
from vacc_deploy.models.parse import parse_config

_PAGE = 4096
# What verify ends with where it has compared the models and its verdict is "Failed".
_FAILED = 3
_TINY = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 8,
    "torch_dtype": "float32",
}
_TENSORS_PER_LAYER = 12
# A configuration has at most 1,024 layers. The other tensors are those of a part for training.
_LAYERS = 1000
_SPARE = "mtp.layers.{}.weight"
# Rows as long as a configuration may have them: few pages of values fill many bytes.
_WIDE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 13,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 256,
    "torch_dtype": "float32",
}


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """Make a directory, and remove it at the end."""
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def write_sparse(
    directory: Path,
    values: Mapping[str, Any],
    num_layers: int,
    num_shards: int,
    *,
    num_spare: int = 0,
    rows: int | None = None,
) -> tuple[int, int]:
    """Write a checkpoint with one page of random values in each row, and holes between them.

    Rows of up to a page are written whole. With ``rows`` only so many rows at the beginning, in the
    middle and at the end of each matrix are written.

    Returns:
        its tensors and their bytes.
    """
    import numpy as np

    values = {**values, "num_hidden_layers": num_layers}
    config = parse_config(values, where="the checkpoint")
    (directory / "config.json").write_text(json.dumps(values, indent=2), "utf-8")
    shapes = [*config.expected_tensors().items()]
    shapes += [(_SPARE.format(index), (4,)) for index in range(num_spare)]
    random = np.random.default_rng(0)
    weight_map, total = {}, 0
    per_shard = -(-len(shapes) // num_shards)
    for index in range(num_shards):
        name = f"model-{index + 1:05d}-of-{num_shards:05d}.safetensors"
        entries, position = dict[str, Any](), 0
        part = shapes[index * per_shard : (index + 1) * per_shard]
        for tensor, shape in part:
            size = 4 * int(np.prod(shape))
            entries[tensor] = {
                "dtype": "F32",
                "shape": list(shape),
                "data_offsets": [position, position + size],
            }
            weight_map[tensor], position = name, position + size
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        with (directory / name).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            start = file.tell()
            for tensor, shape in part:
                row_bytes = 4 * shape[-1]
                offset = start + entries[tensor]["data_offsets"][0]
                for row in _rows(shape[0] if len(shape) > 1 else 1, rows):
                    file.seek(offset + row * row_bytes)
                    # A norm is one row, and is written whole.
                    count = (min(row_bytes, _PAGE) if len(shape) > 1 else row_bytes) // 4
                    file.write(random.standard_normal(count, dtype="float32").tobytes())
            file.truncate(start + position)
        total += position
    index_values = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index_values), "utf-8")
    return len(weight_map), total


def _rows(count: int, some: int | None) -> Iterable[int]:
    if some is None or count <= 3 * some:
        return range(count)
    middle = count // 2
    return (*range(some), *range(middle, middle + some), *range(count - some, count))


def describe(name: str, measured: Measured) -> str:
    """Return one line of the table."""
    return (
        f"{name:36}  {measured.cpu_seconds:8.1f} s user + system  {measured.seconds:8.1f} s  "
        f"{measured.peak_bytes / 2**20:8.0f} MiB"
    )


def run(*arguments: object) -> Measured:
    """Measure one command of the tool; of random weights ``verify`` says that they know no text."""
    command = [sys.executable, "-m", "vacc_deploy", *map(str, arguments)]
    return run_measured(command, accepted=(0, _FAILED) if arguments[0] == "verify" else (0,))


@click.group()
def main() -> None:
    """Measure great numbers and sizes."""


@main.command()
@click.argument("work_dir", type=click.Path(path_type=Path))
@click.option("--shards", default=1000, show_default=True, help="Weight files of the whole one.")
@click.option("--tensors", default=200_000, show_default=True, help="Tensors of the whole one.")
def many(work_dir: Path, shards: int, tensors: int) -> None:
    """Prepare many small tensors in many files, and half as many."""
    click.echo(f"prepare, {machine()}")
    taken = []
    for part in (2, 1):
        with folder(work_dir / f"many-{part}") as place:
            (source := place / "source").mkdir()
            layers = min(_LAYERS, tensors // _TENSORS_PER_LAYER) // part
            spare = max(0, tensors // part - layers * _TENSORS_PER_LAYER)
            count, _ = write_sparse(source, _TINY, layers, shards // part, num_spare=spare)
            measured = run("prepare", source, "--output", place / "out", "--link-mode", "copy")
            taken.append(measured.cpu_seconds)
            click.echo(describe(f"{count:,} tensors in {shards // part:,} files", measured))
    click.echo(f"time of the whole over that of its half: {taken[1] / taken[0]:.2f}")


@main.command()
@click.argument("work_dir", type=click.Path(path_type=Path))
@click.option("--gigabytes", default=100, show_default=True, help="Size of the weights.")
def sparse(work_dir: Path, gigabytes: int) -> None:
    """Prepare a checkpoint of great size, nearly all holes."""
    config = parse_config({**_WIDE, "num_hidden_layers": 1}, where="the checkpoint")
    layer_bytes = 4 * config.num_parameters()
    layers = max(1, round(gigabytes * 1e9 / layer_bytes))
    click.echo(f"prepare, {machine()}")
    with folder(work_dir / "sparse") as place:
        (source := place / "source").mkdir()
        count, total = write_sparse(source, _WIDE, layers, layers)
        measured = run("prepare", source, "--output", place / "out")
        click.echo(describe(f"{count} tensors, {total / 1e9:.1f} GB", measured))


@main.command()
@click.argument("work_dir", type=click.Path(path_type=Path))
@click.option("--layers", default=2, show_default=True, help="Layers to keep.")
@click.option("--model", "name", default="Distill-Llama-70B", show_default=True, help="Shapes of.")
@click.option("--graph", "with_graph", is_flag=True, help="Export the graphs too.")
def shapes(work_dir: Path, layers: int, name: str, with_graph: bool) -> None:
    """Take a few layers with the shapes of a model through the commands."""
    model = find_model(name)
    click.echo(f"{model.name}, {layers} layers, {machine()}")
    with folder(work_dir / "shapes") as place:
        source, prepared, text = place / "source", place / "prepared", place / "text.txt"
        # In a process of its own: the peak of a command is never below that of who starts it.
        with get_context("spawn").Pool(1) as pool:
            pool.apply(write_shaped, (source, dict(model.config.raw), layers))
        write_sums(text, 8 * 256)
        # Little text, and no limits: random weights are to show time and memory only.
        few = ("--calibration", f"text={text}", "--num-samples", 8, "--seq-len", 256)
        unlimited = ("--max-kl", "inf", "--min-top1", 0, "--max-tokens", 256)
        steps: dict[str, tuple[object, ...]] = {
            "prepare": ("prepare", source, "--output", prepared),
            "quantize, rounded": ("quantize", prepared, "--output", place / "rounded"),
            "verify, rounded": ("verify", place / "rounded", *unlimited),
            "quantize, calibrated": ("quantize", prepared, *few, "--output", place / "int8"),
            "yaml": ("yaml", place / "int8", "--card", "VA16", "--output", place / "model.yaml"),
            "verify, calibrated": ("verify", place / "int8", *unlimited),
        }
        if with_graph:
            steps["export-onnx"] = ("export-onnx", place / "int8", "--output", place / "graphs")
        for step, arguments in steps.items():
            click.echo(describe(step, run(*arguments)))


@main.command("check")
@click.argument("work_dir", type=click.Path(path_type=Path))
@click.option("--model", "name", default="Distill-Qwen-7B", show_default=True, help="Shapes of.")
@click.option("--shards", default=1000, show_default=True, help="Weight files of the 70B.")
def check_directories(work_dir: Path, name: str, shards: int) -> None:
    """Check a directory with all layers of a model, and a 70B in many files."""
    model = find_model(name)
    click.echo(f"check, {machine()}")
    with folder(work_dir / "check") as place:
        source, prepared = place / "source", place / "prepared"
        layers = model.config.num_hidden_layers
        with get_context("spawn").Pool(1) as pool:
            shaped = (source, dict(model.config.raw), layers, model.config.vocab_size)
            pool.apply(write_shaped, shaped)
        run("prepare", source, "--output", prepared)
        size = sum(path.stat().st_size for path in prepared.glob("*.safetensors"))
        for turn in ("first", "second"):
            taken = run("check", prepared)
            click.echo(describe(f"{model.name}, {size / 1e9:.1f} GB, {turn}", taken))
    llama = find_model("Distill-Llama-70B").config
    with folder(work_dir / "check-70b") as place:
        demo = json.loads((demo_model_dir() / "config.json").read_text("utf-8"))
        ids = {key: demo.get(key) for key in ("bos_token_id", "eos_token_id")}
        values = {**llama.raw, **ids, "torch_dtype": "float32"}
        layers = -(-shards // len(llama.layer_tensors(0)))
        count, total = write_sparse(place, values, layers, shards, rows=16)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (place / file).write_bytes((demo_model_dir() / file).read_bytes())
        files = len(list(place.glob("*.safetensors")))
        size = f"{count:,} tensors in {files:,} files, {total / 1e9:.0f} GB"
        click.echo(describe(f"{layers} layers of 70B, {size}", run("check", place)))


if __name__ == "__main__":
    main()
