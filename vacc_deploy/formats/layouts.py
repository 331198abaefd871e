"""The layouts: one record for each form in which ``quantize`` stores the linears.

All hold the same codes and the same scales. ``vamc`` directories are for the vendor's compiler,
which quantizes float weights by itself and finds the same codes again. ``int8`` is for the CPU
reference and the graph, all others are for stock loaders. A new layout is one more record here,
with its functions in ``formats/packing.py``, and one in ``models/directory_config.py`` for the
files beside the weights.

Source: compressed-tensors 0.20 (pack-quantized, int-quantized); GPTQModel 7.7 (checkpoint_format
gptq, bits 8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from vacc_deploy import __version__
from vacc_deploy.formats.packing import (
    CODES_PER_WORD,
    float16_weight,
    pack_compressed_tensors,
    pack_gptq,
    unpack_compressed_tensors,
    unpack_gptq,
    unpack_int_quantized,
    unpack_vamc,
)
from vacc_deploy.formats.q8_0 import BLOCK, BLOCKS, pack_q8_0, row_bytes, unpack_q8_0

if TYPE_CHECKING:
    import torch

    from vacc_deploy.formats.packing import CodesAndScale, Packed, ReadTensor

VAMC, INT8, GPTQ, COMPRESSED_TENSORS = "vamc", "int8", "gptq", "compressed-tensors"
GGUF = "gguf"
INT_QUANTIZED = "int-quantized"
# What --format gptq writes with --group-size -1, and what version 0.1.0 called gptq.
GPTQ_ONE_GROUP = "gptq-one-group"
# The columns of a group that every GPTQ directory published for vllm_vacc has.
GROUP_SIZE = 128
_TOOL = "vacc-deploy"
# Suffix of a stored tensor to its shape and safetensors dtype.
StoredTensors: TypeAlias = dict[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Layout:
    """How one layout stores a linear, its bias left out.

    Attributes:
        tensors: takes out_features and in_features, returns the stored tensors' shapes and dtypes.
        pack: takes codes int8 [out, in] and scale float16 [out], returns the stored tensors.
        unpack: the way back; takes a function that reads a tensor by suffix, and the scale or None,
            for layouts that do not store it.
        purpose: what it is for, in one line.
        ending: of the default output, behind the name of the source.
        for_compiler: whether the vendor's compiler reads it; else stock loaders do.
        out_multiple: divides the out_features of every weight that the layout can hold.
        in_multiple: the same of the in_features.
        rounds_inputs: whether the loaders it is for also round the inputs of the linears to int8.
        config: the ``quantization_config`` by which loaders know the layout; None without one.
    """

    tensors: Callable[[int, int], StoredTensors]
    pack: Callable[[torch.Tensor, torch.Tensor], Packed]
    unpack: Callable[[ReadTensor, torch.Tensor | None], CodesAndScale]
    purpose: str
    ending: str
    for_compiler: bool
    out_multiple: int = 1
    in_multiple: int = 1
    rounds_inputs: bool = False
    config: Mapping[str, Any] | None = None


def _gptq_config(group_size: int) -> dict[str, Any]:
    return {
        "bits": 8,
        "group_size": group_size,  # -1 is one group of all columns
        "desc_act": False,
        "static_groups": False,
        "sym": True,
        "lm_head": False,
        "true_sequential": True,
        "damp_percent": 0.01,
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"{_TOOL}:{__version__}"]},
    }


def _gptq_tensors(group_size: int, rows: int, columns: int) -> StoredTensors:
    groups = columns // (group_size or columns)
    return {
        # Transposed: four inputs to a word, [in / 4, out]; zero points four outputs to a word.
        "qweight": ((columns // CODES_PER_WORD, rows), "I32"),
        "qzeros": ((groups, rows // CODES_PER_WORD), "I32"),
        "scales": ((groups, rows), "F16"),
        "g_idx": ((columns,), "I32"),
    }


# Written out: the preset names W8A16 and W8A8 stand for other settings, groups of 128 for one.
_CHANNEL_WEIGHTS: dict[str, Any] = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "strategy": "channel",
    "group_size": None,
    "dynamic": False,
    "block_structure": None,
    "actorder": None,
    "observer": "minmax",
    "observer_kwargs": {},
}
# Rounded while the model runs, with a scale for each token.
_TOKEN_INPUTS: dict[str, Any] = {
    **_CHANNEL_WEIGHTS,
    "strategy": "token",
    "dynamic": True,
    "observer": None,
}


def _compressed_tensors_config(form: str, inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "ignore": ["lm_head"],  # stays float; the decoder's linears are all the others
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "input_activations": inputs,
                "output_activations": None,
                "weights": _CHANNEL_WEIGHTS,
            }
        },
    }


# The directory holds one file in the form of llama.cpp, whatever its name.
_GGUF_CONFIG: dict[str, Any] = {
    "quant_method": "gguf",
    "format": "q8_0",
    "bits": 8,
    "meta": {"quantizer": [f"{_TOOL}:{__version__}"]},
}

LAYOUTS = {
    VAMC: Layout(
        tensors=lambda rows, columns: {"weight": ((rows, columns), "F16")},
        pack=lambda codes, scale: {"weight": float16_weight(codes, scale)},
        unpack=unpack_vamc,
        purpose="int8 values stored as float16, from which vamc should find the same integers",
        ending="int8",
        for_compiler=True,
    ),
    INT8: Layout(
        tensors=lambda rows, columns: {
            "weight": ((rows, columns), "I8"),
            "weight_scale": ((rows,), "F16"),
        },
        pack=lambda codes, scale: {"weight": codes, "weight_scale": scale},
        unpack=lambda read, _: (read("weight"), read("weight_scale")),
        purpose="int8 codes and scales, for the CPU reference and the graph; untried with vamc",
        ending="int8-codes",
        for_compiler=True,
    ),
    GPTQ: Layout(
        tensors=partial(_gptq_tensors, GROUP_SIZE),
        pack=partial(pack_gptq, group_size=GROUP_SIZE),
        unpack=partial(unpack_gptq, group_size=GROUP_SIZE),
        purpose=f"int8 codes in groups of {GROUP_SIZE}, for vLLM and GPTQModel",
        ending=GPTQ,
        for_compiler=False,
        out_multiple=CODES_PER_WORD,
        in_multiple=GROUP_SIZE,
        config=_gptq_config(GROUP_SIZE),
    ),
    GPTQ_ONE_GROUP: Layout(
        tensors=partial(_gptq_tensors, 0),
        pack=pack_gptq,
        unpack=unpack_gptq,
        purpose="int8 codes in one group, for GPTQModel and vLLM",
        ending=GPTQ,
        for_compiler=False,
        out_multiple=CODES_PER_WORD,
        in_multiple=CODES_PER_WORD,
        config=_gptq_config(-1),
    ),
    COMPRESSED_TENSORS: Layout(
        tensors=lambda rows, columns: {
            "weight_packed": ((rows, -(-columns // CODES_PER_WORD)), "I32"),
            "weight_scale": ((rows, 1), "F16"),
            # out_features and in_features, which the padding of the last word hides.
            "weight_shape": ((2,), "I64"),
        },
        pack=pack_compressed_tensors,
        unpack=unpack_compressed_tensors,
        purpose="int8 codes, for transformers and vLLM",
        ending=COMPRESSED_TENSORS,
        for_compiler=False,
        config=_compressed_tensors_config("pack-quantized", None),
    ),
    INT_QUANTIZED: Layout(
        tensors=lambda rows, columns: {
            "weight": ((rows, columns), "I8"),
            "weight_scale": ((rows, 1), "F16"),
        },
        pack=lambda codes, scale: {"weight": codes, "weight_scale": scale[:, None].clone()},
        unpack=unpack_int_quantized,
        purpose="int8 codes, for int8 products of vLLM and SGLang, which round the inputs too",
        ending=INT_QUANTIZED,
        for_compiler=False,
        rounds_inputs=True,
        config=_compressed_tensors_config("int-quantized", _TOKEN_INPUTS),
    ),
    GGUF: Layout(
        # While a run goes on its shards hold this; ``gguf_file`` makes one file of them.
        tensors=lambda rows, columns: {BLOCKS: ((rows, row_bytes(columns)), "U8")},
        pack=pack_q8_0,
        unpack=unpack_q8_0,
        purpose="one GGUF file with int8 codes (Q8_0), for llama.cpp, Ollama and LM Studio",
        ending=GGUF,
        for_compiler=False,
        in_multiple=BLOCK,
        config=_GGUF_CONFIG,
    ),
}
# What --format takes; --group-size chooses between the two of GPTQ.
FORMATS = tuple(name for name in LAYOUTS if name != GPTQ_ONE_GROUP)


def recognize(stated: Any) -> str | None:
    """Return the layout that this tool announces with ``stated``, or None for anybody else's.

    Every key must be as written, but for the version of the tool: another group size or another
    rule for zero points would be read as other weights.
    """
    for name, layout in LAYOUTS.items():
        if layout.config and _without_version(stated) == _without_version(layout.config):
            return name
    return None


def rounds_when_run(stated: Any) -> bool:
    """Return whether linears of this ``quantization_config`` also round weights stored as floats.

    Source: ``AutoBitLinear`` of transformers.
    """
    return isinstance(stated, dict) and stated.get("quant_method") == "bitnet"


def _without_version(stated: Any) -> Any:
    """Return a copy that names the tool without its version."""
    match stated:
        case {"meta": {"quantizer": [tool], **meta}}:
            return {**stated, "meta": {**meta, "quantizer": [str(tool).partition(":")[0]]}}
    return stated
