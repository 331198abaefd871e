"""Write the graphs of transformers' own eager Qwen2 (4.37) or Qwen3 (4.51) into tests/data.

Needs an environment with that version, the oldest that has the architecture; beside a newer one,
an overlay does:

    pip install --target OVERLAY --no-deps transformers==4.37.2 'tokenizers<0.19' \
        'huggingface_hub<0.25'
    PYTHONPATH=OVERLAY python tests/graphs/make_reference.py qwen2

    pip install --target OVERLAY --no-deps transformers==4.51.0 'tokenizers<0.22' \
        'huggingface_hub<1'
    PYTHONPATH=OVERLAY python tests/graphs/make_reference.py qwen3
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
from canonical import (  # noqa: E402
    FIXTURES,
    OPSET,
    SIZES,
    STAGES,
    VERSIONS,
    canonical_nodes,
    export,
    randomize,
)


class TuplePast(nn.Module):
    """A library model with a tuple as past, which 4.51 itself no longer takes."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, past_key_values, return_dict, **inputs):
        cache = transformers.DynamicCache.from_legacy_cache(past_key_values)
        output = self.model(input_ids, past_key_values=cache, **inputs)
        return output.logits, output.past_key_values.to_legacy_cache()


def build_model(architecture):
    """Return the library's own eager model, which takes tuples."""
    name = architecture.capitalize()
    # 4.37 masks by sliding_window whatever use_sliding_window says: none here.
    config = getattr(transformers, f"{name}Config")(**SIZES[architecture], sliding_window=None)
    config._attn_implementation = "eager"
    model = randomize(getattr(transformers, f"{name}ForCausalLM")(config))
    return model if architecture == "qwen2" else TuplePast(model)


def main(architecture):
    """Export every stage and write the node lists."""
    version, fixture = VERSIONS[architecture], FIXTURES[architecture]
    if not transformers.__version__.startswith(f"{version}."):
        raise SystemExit(f"transformers is {transformers.__version__}, expected {version}.x")
    model, sizes = build_model(architecture), SIZES[architecture]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        nodes = {stage: canonical_nodes(export(model, stage, path, sizes)) for stage in STAGES}
    lines = [
        "{",
        f'"made_with": "transformers {transformers.__version__}, '
        f'torch {torch.__version__.partition("+")[0]}, opset {OPSET}",',
        ",\n".join(
            f'"{stage}": [\n' + ",\n".join(json.dumps(node) for node in listed) + "\n]"
            for stage, listed in nodes.items()
        ),
        "}",
    ]
    fixture.write_text("\n".join(lines) + "\n", "utf-8")
    sys.stdout.write(f"{fixture}: {', '.join(f'{k} {len(v)} nodes' for k, v in nodes.items())}\n")


if __name__ == "__main__":
    main(sys.argv[1])
