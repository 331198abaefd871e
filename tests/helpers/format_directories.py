"""Directories of every output format with the same codes, without the quantizer's pipeline."""

from __future__ import annotations

from pathlib import Path

from vacc_deploy.assets import source_file
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.formats.int8 import quantize_rounding
from vacc_deploy.formats.layouts import GGUF
from vacc_deploy.formats.linears import linear_tensors
from vacc_deploy.gguf_file.assemble import assemble
from vacc_deploy.gguf_file.plan import GgufPlan
from vacc_deploy.models.directory_config import format_files, format_source_files
from vacc_deploy.outputs.files import copy_file, side_files
from vacc_deploy.outputs.writer import shard_name, write_index, write_shard, write_text


def write_format(source: Path, layout: str, output: Path, *, embeddings: str = "F16") -> Path:
    """Write ``source``, rounded to nearest, in one layout to ``output`` and return it.

    ``embeddings`` is the type of embedding and head in a GGUF file.
    """
    output.mkdir(parents=True)
    checkpoint = Checkpoint.open(source)
    tensors, linears = {}, checkpoint.config.linear_names()
    for name, info in checkpoint.tensors.items():
        module = name.removesuffix(".weight")
        if module in linears:
            codes, scale = quantize_rounding(checkpoint.read(name))
            tensors |= linear_tensors(layout, module, codes, scale)
        else:
            tensors[name] = info
    shard = write_shard(output / shard_name(0, 1), tensors)
    if layout == GGUF:
        path = output / shard.name
        assemble(GgufPlan(checkpoint, "model", embeddings), [path], output, output / "scratch")
        path.unlink()
    else:
        write_index(output, [shard])
    for path in side_files(source, with_config=False):
        copy_file(path, output)
    for name, text in format_files(layout, checkpoint.config, source).items():
        write_text(output / name, text)
    for name in format_source_files(layout, checkpoint.config):
        copy_file(source_file(name), output)
    return output
