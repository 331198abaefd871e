"""Write the directories that every environment of the matrix loads.

They are made once, by this environment, as a user makes them on one machine and loads them on
another: a random Qwen2 and a random Llama, each as published, prepared and int8.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from checkpoint_builders import write_checkpoint, write_json  # noqa: E402

from vacc_deploy.prepare import prepare  # noqa: E402
from vacc_deploy.quantize.options import QuantizeOptions  # noqa: E402
from vacc_deploy.quantize.run import quantize  # noqa: E402


def write_directories(folder: Path) -> Path:
    """Write ``<folder>/<model>-{source,prepared,int8}`` in float32 and return the folder."""
    for name, model_type, tied in (
        ("qwen2", "qwen2", False),
        ("tied", "qwen2", True),
        ("llama", "llama", False),
    ):
        source = write_checkpoint(
            folder / f"{name}-source", model_type=model_type, tied=tied, dtype=torch.float32
        )
        # As published: transformers 4.55 to 5.0 save no temperature without do_sample.
        path = source / "generation_config.json"
        write_json(path, {**json.loads(path.read_text("utf-8")), "do_sample": True})
        prepare(weights=source, output=folder / f"{name}-prepared", link_mode="copy")
        quantize(
            source,
            output=folder / f"{name}-int8",
            options=QuantizeOptions("rtn", formats=("int8",)),
        )
    return folder


if __name__ == "__main__":
    write_directories(Path(sys.argv[1]))
