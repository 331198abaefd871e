"""Recognize the adapters of peft, and say how the model that they belong to is made whole."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import ADAPTER_CONFIG_BYTES
from vacc_deploy.json_files import read_json

ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
# What reads peft's adapter, adds it to its base model and saves the sum.
_MERGE = (
    "import sys; from peft import AutoPeftModelForCausalLM as Model; "
    "Model.from_pretrained(sys.argv[1]).merge_and_unload().save_pretrained(sys.argv[2])"
)
# Vectors in front of the input or between the layers: no weight takes them up.
_NOT_MERGEABLE = (
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT"),
    *("CPT", "XLORA"),
)
# Parts of the names of an adapter's tensors, and of what peft wraps.
_PARTS = re.compile(
    r"(?:^|\.)(?:lora_\w+|base_layer|modules_to_save|original_module|ia3_l|hada_\w+|lokr_\w+"
    r"|oft_\w+|boft_\w+|vera_\w+|prompt_embeddings|prompt_encoder|adaption_prompt)(?:\.|$)"
)


def is_adapter_tensor(name: str) -> bool:
    """Return whether a tensor belongs to an adapter, or to a layer that one is put on."""
    return bool(_PARTS.search(name))


def is_adapter_file(name: str) -> bool:
    """Return whether a file of this name holds an adapter's weights."""
    return name.startswith("adapter_")


def explain_adapter(path: Path) -> tuple[str, Path | None]:
    """Return what an adapter directory is and how to merge it, and the directory that this makes.

    Raises:
        CheckpointError: its configuration cannot be read.
    """
    values = _read_values(path)
    base, kind = values.get("base_model_name_or_path"), values.get("peft_type", "LORA")
    kind = kind if isinstance(kind, str) and re.fullmatch(r"\w{1,40}", kind) else "LORA"
    title = "LoRA" if kind == "LORA" else kind
    named = f"its base model {base!r:.200}" if isinstance(base, str) and base else "its base model"
    article = "an" if title[0] in "AEIO" else "a"
    what = f"{path} is {article} {title} adapter, not a whole model."
    if kind in _NOT_MERGEABLE:
        return (
            f"{what} An adapter of this kind is no change of the weights and cannot be merged into "
            f"them. Give {named}, or train a LoRA adapter instead.",
            None,
        )
    merged = path if path.name not in ("", "..") else Path(os.path.abspath(path))
    merged = merged.with_name(f"{merged.name}-merged")
    rename, weights, expected = "", path / "model.safetensors", path / _ADAPTER_WEIGHTS
    if not (path / ADAPTER_CONFIG).is_file():
        what += f" Its {ADAPTER_CONFIG} is not here: copy it from where it was trained."
    if not os.path.isfile(expected) and os.path.isfile(weights):
        # peft looks for its own file name.
        rename = f"\n  {shlex.join(['mv', str(weights), str(expected)])}"
    return (
        f"{what} Merge it into {named} first (with the Python package peft):{rename}\n"
        f"  {shlex.join(['python3', '-c', _MERGE, str(path), str(merged)])}\n"
        f"Copy the base model's tokenizer files into {merged}.",
        merged,
    )


def explain_adapter_tensors(directory: Path, names: Iterable[str]) -> str:
    """Return what weight files are that hold an adapter's tensors, and what to do; or nothing."""
    names = list(names)
    of_adapter = [name for name in names if is_adapter_tensor(name)]
    if not of_adapter:
        return ""
    if len(of_adapter) == len(names) and not any(".base_layer." in name for name in names):
        return explain_adapter(directory)[0]
    return (
        f"{directory} holds a model and an adapter side by side that were never merged (for "
        f"example {of_adapter[0]}). Save it once more from the program that trained it: "
        "model.merge_and_unload().save_pretrained(...), with peft's model."
    )


def _read_values(path: Path) -> dict[str, Any]:
    file = path / ADAPTER_CONFIG
    if not file.is_file():
        return {}
    values = read_json(file, limit_bytes=ADAPTER_CONFIG_BYTES)
    return values if isinstance(values, dict) else {}
