"""Make of a GGUF file the same model with float32 weights, by the package ``gguf`` alone.

    python float_gguf.py DIRECTORY OUTPUT

llama.cpp rounds the inputs of Q8_0 products. Of float32 weights it rounds nothing, so its tokens
show whether all else is right: names, order of rows, key-values, tokenizer.
"""

import sys
from pathlib import Path

import gguf
import numpy as np

_ALL_F32 = 0  # llama.cpp's number of the file type


def make_float(directory, output):
    """Write the GGUF file of ``directory`` with float32 weights into the new folder ``output``."""
    (path,) = Path(directory).glob("*.gguf")
    output.mkdir()
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(output / path.name, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":  # the writer's own
            continue
        value = _ALL_F32 if key == "general.file_type" else field.contents()
        kind, *inner = field.types
        writer.add_key_value(key, value, kind, sub_type=inner[-1] if inner else None)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    make_float(sys.argv[1], Path(sys.argv[2]))
