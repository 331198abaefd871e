"""What a user has to know about a compile file.

vamc is not public: what it does with a file could not be tried, hence the notes.
"""

from __future__ import annotations

from typing import Any

from vacc_deploy.formats.layouts import INT8, VAMC
from vacc_deploy.models.catalog import plain_sizes
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.models.rope import YARN
from vacc_deploy.models.vacc_config import needs_vacc_config
from vacc_deploy.vamc.rules import LENGTH_MULTIPLE, QUANTIZE_TYPE

_FILE_ENDINGS = (".gz", ".json", ".jsonl", ".parquet", ".txt", ".zip")
_VAMC_INT8_NOTE = (
    "The weights are int8 values of vacc-deploy quantize, stored as float16. vamc quantizes them "
    f"again ({QUANTIZE_TYPE}) and should find the same integers: rounding per output channel, as "
    "in the vendor's published quantization_vacc.py, finds all of them; GPTQ moves up to 0.03 %. "
    "That vamc works per channel and loads the weights as float16, as their configuration says, "
    "is our inference. docs/deploy.md says what another way would cost."
)
_VAMC_FLOAT16_NOTE = (
    "The weights are int8 values stored as float16. With dtype fp16 they are compiled as float16, "
    "with the memory of float16. Leave --dtype out to compile them as int8."
)
_YARN_NOTE = (
    "rope_scaling yarn is computed by the modeling file beside the weights, as constants of the "
    "graph. The vendor's own modeling file does not read it; do not put that one in its place."
)
_LLAMA_YARN_NOTE = (
    "rope_scaling yarn: vamc loads Llama through its own code, and whether that computes yarn is "
    "not published. Compare the compiled model's answers with those of vacc-deploy generate."
)


def compile_notes(content: dict[str, Any], config: ModelConfig, layout: str = "") -> list[str]:
    """Return what a user has to know about a file; each note says whether it is our inference.

    Args:
        content: of the compile file.
        config: of the model.
        layout: of the checkpoint's weights; empty for a float model.
    """
    notes = []
    model_kwargs, dtype = content["frontend"]["model_kwargs"], content["backend"]["dtype"]
    if model_kwargs.get("align_qkv"):
        notes.append(
            f"align_qkv is set because tp {model_kwargs['tp']} does not divide "
            f"{config.num_attention_heads} attention heads and {config.num_key_value_heads} "
            "key-value heads evenly. The vendor's llm/README names this switch; no published file "
            "uses it. A tp that needs none: " + ", ".join(map(str, plain_sizes(config))) + "."
        )
    if config.vocab_size % LENGTH_MULTIPLE:
        notes.append(
            f"The vocabulary of {config.vocab_size} is not a multiple of {LENGTH_MULTIPLE}: it "
            "needs vocabulary padding, which the vendor has from vamc 2.3.4 on "
            "(llm/tigerbot/README)."
        )
    if config.rope_scaling is not None and config.rope_scaling.rope_type == YARN:
        notes.append(_YARN_NOTE if needs_vacc_config(config) else _LLAMA_YARN_NOTE)
    if layout == INT8:
        notes.append(
            "The checkpoint holds int8 codes, and this file has no quantize block, so that vamc "
            "does not quantize them again. No published file looks like this. That vamc then reads "
            "the codes through quantization_vacc.py is our inference; a wrong result would come "
            "without an error. Compare the compiled model's answers with those of vacc-deploy "
            "generate. The published way takes the directory of quantize --format vamc."
        )
    elif layout == VAMC:
        notes.append(_VAMC_INT8_NOTE if dtype == "int8" else _VAMC_FLOAT16_NOTE)
    elif dtype == "int8":
        notes.append(
            f"vamc quantizes the float weights itself ({QUANTIZE_TYPE}); nothing here can check "
            "the result. To decide the integers, and to verify them on this CPU, run vacc-deploy "
            "quantize first."
        )
    if path := content.get("dataset", {}).get("path"):
        if path.lower().endswith(_FILE_ENDINGS):
            notes.append(
                f"dataset.path names a file, {path}. The vendor's examples name a hub data set "
                "(allenai/c4) or a directory (ceval-exam); that vamc reads a single file is not "
                "published."
            )
        notes.append(
            "quantize.device and quantize.calib_args are left to vamc's defaults; the vendor's "
            "one example sets device cuda:5 and calib_args true_sequential: false."
        )
    elif dtype == "int8" and layout != INT8:
        notes.append(
            "There is no dataset block, as in the vendor's int8 files; which calibration text vamc "
            "then takes is not published. --calibration NAME=PATH names one."
        )
    return notes
