"""Write the directories that every environment of the matrix loads.

They are made once, by this environment, as a user makes them on one machine and loads them on
another: random models, each as published, prepared and int8, and the logits that this environment's
own transformers computes of those that older versions do not have.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from checkpoint_builders import YARN_ROPE, write_checkpoint, write_json  # noqa: E402

from vacc_deploy.prepare import prepare  # noqa: E402
from vacc_deploy.quantize.options import QuantizeOptions  # noqa: E402
from vacc_deploy.quantize.run import quantize  # noqa: E402

# As DeepSeek-R1-0528-Qwen3-8B has it, with a trained length that the tests reach beyond.
YARN = {"rope_scaling": YARN_ROPE, "max_position_embeddings": 128}
MODELS: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2"},
    "tied": {"model_type": "qwen2", "tied": True},
    "llama": {"model_type": "llama"},
    "qwen3": {"model_type": "qwen3"},
    "qwen3-yarn": {"model_type": "qwen3", "tied": True, "config_overrides": YARN},
    "qwen2-yarn": {"model_type": "qwen2", "config_overrides": YARN},
}
WITH_NUMBERS = ("qwen3", "qwen3-yarn", "qwen2-yarn")


def write_directories(folder: Path) -> Path:
    """Write ``<folder>/<model>-{source,prepared,int8}`` in float32 and return the folder."""
    for name, options in MODELS.items():
        source = write_checkpoint(folder / f"{name}-source", dtype=torch.float32, **options)
        # As published: transformers 4.55 to 5.0 save no temperature without do_sample.
        path = source / "generation_config.json"
        write_json(path, {**json.loads(path.read_text("utf-8")), "do_sample": True})
        prepare(weights=source, output=folder / f"{name}-prepared", link_mode="copy")
        quantize(
            source,
            output=folder / f"{name}-int8",
            options=QuantizeOptions("rtn", formats=("int8",)),
        )
    (folder / "expected").mkdir()
    with torch.no_grad():
        numbers = {name: stock_logits(folder / f"{name}-prepared") for name in WITH_NUMBERS}
    save_file(numbers, folder / "expected" / "logits.safetensors")
    return folder


def stock_logits(folder: Path) -> torch.Tensor:
    """Return the logits of the library's own model for the ids of the checks."""
    options = {"attn_implementation": "eager", "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    ids = torch.randint(1, 256, (2, 24), generator=torch.Generator().manual_seed(2))
    return model(ids).logits


if __name__ == "__main__":
    write_directories(Path(sys.argv[1]))
