"""Export a real model's graphs, run them for many tokens, and print how far they are from torch.

    python benchmarks/onnx_real.py DIR --output DIR [--seq-len 256] [--tokens 64]

DIR is a prepared or int8 directory. The graphs remain in the output directory.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from measured import machine

from vacc_deploy.graphs.export import export_onnx
from vacc_deploy.graphs.result import ExportOptions


def main() -> int:
    """Return 1 where a graph does not compute what torch computes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path, help="prepared or int8 directory")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument("--seq-len", type=int, default=256, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=64, help="greedy tokens, the first included")
    arguments = parser.parse_args()
    options = ExportOptions(sequence_length=arguments.seq_len, num_steps=arguments.tokens - 1)
    result = export_onnx(
        arguments.directory, output=arguments.output, options=options, overwrite=True
    )
    sys.stdout.write(f"{machine()}\n{result.to_text()}\n")
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
