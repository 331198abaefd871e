"""Let llama.cpp continue prompts with the weights of ``--format gguf`` made float32.

It then rounds no inputs: see ``float_gguf.py``. The contract is that of ``check_xllamacpp.py``.
"""

import json
import sys
import tempfile
from pathlib import Path

import check_xllamacpp
from float_gguf import make_float


def main():
    request = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "float"
        make_float(request["directory"], copy)
        check_xllamacpp.answer(request, copy, "the weights made float32")


if __name__ == "__main__":
    main()
