"""Recognize what other programs store: states of a training, and weights quantized by others."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from vacc_deploy.checkpoint.adapters import explain_adapter_tensors
from vacc_deploy.checkpoint.header import TensorInfo
from vacc_deploy.models.config import LM_HEAD

_START_AGAIN = "Start from the float checkpoint that it was made from."
# Parts of the names of files and folders that a training leaves.
_DISTRIBUTED = re.compile(r".*\.distcp|pytorch_model_fsdp_\d+|\.metadata")
_DEEPSPEED = re.compile(r"global_step\d+|zero_to_fp32\.py|(?:bf16_)?zero_pp_rank_.*")
_MEGATRON = re.compile(r"mp_rank_\d+.*|iter_\d{7}|latest_checkpointed_iteration\.txt")
_META = re.compile(r"consolidated\.\d+\.(?:pth|pt)|consolidated\.safetensors")
_META_NAMES = re.compile(r"layers\.\d+\.(?:attention\.w[qkvo]|feed_forward\.w[123])\.weight")
# A head that scores texts in place of one for the next token, or beside it.
SCORES = re.compile(r"(?:.*\.)?(?:score|classifier|qa_outputs|reward_head|regression_head)\..*")
# Names of tensors to the tool or format that writes them. The first that fits is taken.
_FORMATS = (
    (re.compile(r".*\.(?:absmax|quant_map|bitsandbytes__\w+)"), "bitsandbytes (4 bit)"),
    (re.compile(r".*\.(?:SCB|weight_format)"), "bitsandbytes (8 bit)"),
    (re.compile(r".*\.(?:q_weight|q_scale|q_groups|q_invperm)"), "ExLlamaV2 (EXL2)"),
    (re.compile(r".*\.(?:trellis|suh|svh)"), "ExLlamaV3 (EXL3)"),
    (re.compile(r".*\.g_idx"), "GPTQ"),
    (re.compile(r".*\.qweight"), "AWQ or GPTQ"),
    (re.compile(r".*\.weight_scale_inv"), "FP8 in blocks"),
    (re.compile(r".*\.(?:W_q|W_q_meta)"), "HQQ"),
    (re.compile(r".*\.(?:codebooks|Qidxs.*)"), "AQLM or QuIP#"),
    (re.compile(r".*\.(?:centroids\.weight|res_centroids\.weight)"), "VPTQ"),
    (re.compile(r".*\.weight_scale_2"), "FP4 of ModelOpt"),
    (re.compile(r".*\.weight_(?:blocks|scales)"), "MXFP4"),
    (re.compile(r".*\.weight(?:_qdata|\._data)"), "torchao or quanto"),
    (re.compile(r".*\.(?:weight_packed|weight_zero_point|weight_shape)"), "compressed-tensors"),
)
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32")


def explain_training_state(directory: Path, names: Iterable[str]) -> str:
    """Return what state of a training a directory holds and how to convert it, or nothing."""
    names = sorted(names)
    output = f"{directory}-hf"
    if any(map(_DEEPSPEED.fullmatch, names)):
        return f"{directory} holds the state of a training with DeepSpeed. {_gather(directory)}"
    if any(map(_DISTRIBUTED.fullmatch, names)):
        inner = next((n for n in names if n.startswith("pytorch_model_fsdp_")), "")
        command = shlex.join(["accelerate", "merge-weights", str(directory / inner), output])
        return (
            f"{directory} holds the state of a training with FSDP, in pieces (.distcp). Put them "
            f"together with the Python package accelerate:\n  {command}\nand copy config.json and "
            "the tokenizer files beside the result."
        )
    if any(map(_MEGATRON.fullmatch, names)):
        return (
            f"{directory} holds a checkpoint of Megatron, cut for several ranks. Convert it to the "
            "Hugging Face layout with the converter of the program that trained it (Megatron-LM: "
            "tools/checkpoint/convert.py; NeMo: its export to hf)."
        )
    if any(map(_META.fullmatch, names)):
        command = (
            "python3 -m transformers.models.llama.convert_llama_weights_to_hf "
            f"{shlex.join(['--input_dir', str(directory), '--output_dir', output])}"
        )
        return (
            f"{directory} holds the weights in Meta's own form. Download the repository in the "
            f"Hugging Face layout instead, or convert it with transformers:\n  {command}"
        )
    return ""


def _gather(directory: Path) -> str:
    """Return how the parts of a training with DeepSpeed become one model."""
    script, output = directory / "zero_to_fp32.py", f"{directory}-hf"
    program = str(script) if os.path.isfile(script) else "zero_to_fp32.py"
    words = ["python3", program, str(directory), output, "--safe_serialization"]
    return (
        "Each rank holds a part of the weights. Put them together with the script that DeepSpeed "
        f"leaves beside them:\n  {shlex.join(words)}\nand copy config.json and the tokenizer files "
        "beside the result. Next time set stage3_gather_16bit_weights_on_model_save in the "
        "configuration of DeepSpeed, and the trainer saves the whole model."
    )


def explain_foreign_tensors(
    directory: Path, infos: Iterable[TensorInfo], architectures: object
) -> str:
    """Return what weights are that do not fit ``config.json``, and what to do; or nothing.

    Args:
        directory: where they lie.
        infos: all stored tensors.
        architectures: what ``config.json`` says under this key.
    """
    infos = list(infos)
    names = [info.stored_name for info in infos]
    if text := explain_adapter_tensors(directory, names):
        return text
    empty = [info.stored_name for info in infos if not info.num_bytes]
    if empty:
        return (
            f"{len(empty)} of {len(infos)} tensors in {directory} are empty (for example "
            f"{empty[0]}): it was saved by one rank of a training with DeepSpeed ZeRO-3. "
            f"{_gather(directory)}"
        )
    if any("flat_param" in name for name in names):
        return (
            f"{directory} holds the flat parameters of a training with FSDP. Save the model once "
            "more with the state dict type FULL_STATE_DICT."
        )
    if by := _name_quantizer(infos):
        return f"{directory} holds weights that are quantized already ({by}). {_START_AGAIN}"
    if any(map(_META_NAMES.fullmatch, names)):
        return explain_training_state(directory, ["consolidated.safetensors"])
    return _explain_other_head(directory, names, architectures)


def _name_quantizer(infos: list[TensorInfo]) -> str:
    """Return the tool or format that has quantized the weights, or nothing."""
    names = [info.stored_name for info in infos]
    for pattern, tool in _FORMATS:
        if any(map(pattern.fullmatch, names)):
            return tool
    dtypes = {info.dtype for info in infos if info.stored_name.endswith(".weight")}
    if any(dtype.startswith("F8") for dtype in dtypes):
        return "FP8"
    if "U32" in dtypes and any(name.endswith((".scales", ".biases")) for name in names):
        return "MLX"
    return "integers" if dtypes.intersection(_INTEGERS) else ""


def names_scorer(architectures: object) -> str:
    """Return the first of the ``architectures`` of a config.json that has no head for tokens."""
    stated = [str(name) for name in architectures] if isinstance(architectures, list) else []
    return next((n for n in stated if not n.endswith(("ForCausalLM", "Model"))), "")


def _explain_other_head(directory: Path, names: list[str], architectures: object) -> str:
    stated = architectures[0] if isinstance(architectures, list) and architectures else ""
    is_part = isinstance(stated, str) and stated.endswith("Model")
    if is_part and not any(name.endswith(LM_HEAD) for name in names):
        return (
            f"{directory} holds a {stated:.100}, which is a model without its head for the next "
            "token. Save it once more as the class ...ForCausalLM, or download the whole model."
        )
    other = names_scorer(architectures)
    scores = [name for name in names if SCORES.fullmatch(name)]
    if not scores and not other or any(name.endswith(LM_HEAD) for name in names):
        return ""
    what = f"a {other:.100}" if other else f"a model that scores texts ({scores[0]})"
    return (
        f"{directory} holds {what}: it has no head for the next token, and so writes no text. Give "
        "a checkpoint of the class ...ForCausalLM."
    )
