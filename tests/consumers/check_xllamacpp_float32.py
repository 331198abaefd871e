"""Let llama.cpp continue prompts with the weights of ``--format gguf`` made float32.

It then rounds no inputs: see ``float_gguf.py``.
"""

import tempfile
from pathlib import Path

import check_xllamacpp
from consumer_io import respond
from float_gguf import make_float

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "float"

        def load(directory):
            """Return the server of the copy."""
            make_float(directory, copy)
            return check_xllamacpp.start(copy)

        respond("xllamacpp", load, check_xllamacpp.go_on)
