"""Write tests/data/qwen2_graph_4_37.json from transformers 4.37's own eager Qwen2.

Needs an environment with transformers 4.37.2; beside a newer one, an overlay does:

    pip install --target OVERLAY --no-deps transformers==4.37.2 'tokenizers<0.19' \
        'huggingface_hub<0.25'
    PYTHONPATH=OVERLAY python tests/graphs/make_reference.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
from canonical import FIXTURE, OPSET, SIZES, STAGES, canonical_nodes, export, randomize  # noqa: E402


def main():
    """Export every stage and write the node lists."""
    if not transformers.__version__.startswith("4.37."):
        raise SystemExit(f"transformers is {transformers.__version__}, expected 4.37.x")
    # The library masks by sliding_window whatever use_sliding_window says: none here.
    config = transformers.Qwen2Config(**SIZES, sliding_window=None)
    config._attn_implementation = "eager"
    model = randomize(transformers.Qwen2ForCausalLM(config))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        nodes = {stage: canonical_nodes(export(model, stage, path)) for stage in STAGES}
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
    FIXTURE.write_text("\n".join(lines) + "\n", "utf-8")
    sys.stdout.write(f"{FIXTURE}: {', '.join(f'{k} {len(v)} nodes' for k, v in nodes.items())}\n")


if __name__ == "__main__":
    main()
