"""What every peer's runner shares: the clock, the float model, and the stock checkpoint at the end.

Runs in the peer's own environment: imports the standard library, numpy, torch and transformers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_STARTED = time.perf_counter()
REPORT_NAME = "peer.json"
LINEARS_PER_LAYER = 7


class Run:
    """One run of a peer: its arguments, and the seconds of its steps.

    Attributes:
        checkpoint: the float checkpoint.
        output: receives ``own/`` (the peer's own format), ``stock/`` and the report.
        method: which of the peer's methods.
        rows: calibration token ids, int64 [rows, seq].
    """

    def __init__(self, usage: str) -> None:
        """Read CHECKPOINT, IDS.npy, OUTPUT and METHOD from the command line."""
        parser = argparse.ArgumentParser(usage=f"{usage} CHECKPOINT IDS.npy OUTPUT METHOD")
        for name in ("checkpoint", "ids", "output"):
            parser.add_argument(name, type=Path)
        parser.add_argument("method")
        arguments = parser.parse_args()
        self.checkpoint, self.output = arguments.checkpoint, arguments.output
        self.method, self.seconds = arguments.method, dict[str, float]()
        self.rows = np.load(arguments.ids, allow_pickle=False)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Record the seconds of a block."""
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)

    def finish(self, **more: str) -> None:
        """Write the report; call it once the peer's own output is written, before any export."""
        report = {
            "seconds": round(time.perf_counter() - _STARTED, 3),
            "steps": self.seconds,
            "cpu_seconds": round(time.process_time(), 3),
            "peak_memory_bytes": _peak_memory_bytes(),
            "peak_device_memory_bytes": _peak_device_memory_bytes(),
            **more,
        }
        (self.output / REPORT_NAME).write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def _peak_memory_bytes() -> int:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _peak_device_memory_bytes() -> int:
    import torch

    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0


def load_model(checkpoint: Path):  # noqa: ANN201 - a transformers model
    """Return the float model in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype=torch.bfloat16)


def write_stock(checkpoint: Path, stock: Path, weights: dict) -> None:
    """Write the float checkpoint with some weights replaced by what their codes stand for.

    Args:
        checkpoint: the float checkpoint.
        stock: the directory to write.
        weights: float32 tensors by name; every other tensor stays as it is stored.

    Raises:
        ValueError: a name is not in the checkpoint, or not every linear of every layer was given.
    """
    from safetensors.torch import load_file, save_file

    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    if len(weights) != LINEARS_PER_LAYER * config["num_hidden_layers"]:
        raise ValueError(
            f"{len(weights)} quantized weights in {config['num_hidden_layers']} layers"
        )
    stock.mkdir()
    left = dict(weights)
    for path in sorted(checkpoint.iterdir()):
        if path.suffix == ".safetensors":
            tensors = {name: left.pop(name, old) for name, old in load_file(path).items()}
            save_file({k: t.contiguous() for k, t in tensors.items()}, stock / path.name)
        elif path.is_file():
            shutil.copyfile(path, stock / path.name)
    if left:
        raise ValueError(f"not in {checkpoint}: {sorted(left)[:5]}")
