"""What a user has to know about a compile file.

vamc is not public: what it does with a file could not be tried, hence the notes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vacc_deploy.formats.layouts import INT8, VAMC
from vacc_deploy.models.catalog import PLAIN, plain_sizes, tensor_parallel_rule
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.models.rope import YARN
from vacc_deploy.models.vacc_config import needs_vacc_config
from vacc_deploy.problems.compile_directory import (
    CODES_UNTRIED,
    INT8_AGAIN,
    INT8_AS_FLOAT16,
    VAMC_QUANTIZES,
)
from vacc_deploy.problems.compile_file import (
    ALIGN_QKV_SET,
    DATASET_FILE,
    NO_DATASET,
    NO_DEVICE,
    YARN_IN_GRAPH,
)
from vacc_deploy.problems.configuration import VOCABULARY, YARN_ON_LLAMA
from vacc_deploy.problems.problem import Problem
from vacc_deploy.vamc.keys import CHECKPOINT, DTYPE, MODEL_KWARGS, QUANTIZE, TP, read_keys
from vacc_deploy.vamc.options import LENGTH_MULTIPLE
from vacc_deploy.vamc.rules import QUANTIZE_TYPE

_FILE_ENDINGS = frozenset({".gz", ".json", ".jsonl", ".parquet", ".txt", ".zip"})
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
_CODES_NOTE = (
    "The checkpoint holds int8 codes, and this file has no quantize block, so that vamc "
    "does not quantize them again. No published file looks like this. That vamc then reads "
    "the codes through quantization_vacc.py is our inference; a wrong result would come "
    "without an error. Compare the compiled model's answers with those of vacc-deploy "
    "generate. The published way takes the directory of quantize --format vamc."
)
_LLAMA_YARN_NOTE = (
    "rope_scaling yarn: vamc loads Llama through its own code, and whether that computes yarn is "
    "not published. Compare the compiled model's answers with those of vacc-deploy generate."
)


def compile_notes(
    content: Mapping[str, Any], config: ModelConfig, layout: str | None = ""
) -> list[Problem]:
    """Return what a user has to know about a file; each note says whether it is our inference.

    Args:
        content: of the compile file; what is missing or of another type in it is passed over.
        config: of the model.
        layout: of the checkpoint's weights; empty for a float model, None where it is not known.
    """
    values, _ = read_keys(content)
    return [
        *_model_notes(values, config),
        *_weight_notes(values, layout),
        *_dataset_notes(values, layout),
    ]


def _model_notes(values: Mapping[str, Any], config: ModelConfig) -> Iterator[Problem]:
    size, key = values.get(TP, 1), f"{MODEL_KWARGS}.align_qkv"
    if values.get(key) and size >= 1 and tensor_parallel_rule(config, size) != PLAIN:
        sizes = ", ".join(map(str, plain_sizes(config)))
        text = (
            f"align_qkv is set because tp {size} does not divide "
            f"{config.num_attention_heads} attention heads and {config.num_key_value_heads} "
            "key-value heads evenly. The vendor's llm/README names this switch; no published file "
            f"uses it. A tp that needs none: {sizes}."
        )
        yield ALIGN_QKV_SET.broken(text, where=key)
    if config.vocab_size % LENGTH_MULTIPLE:
        text = (
            f"The vocabulary of {config.vocab_size} is not a multiple of {LENGTH_MULTIPLE}: it "
            "needs vocabulary padding, which the vendor has from vamc 2.3.4 on "
            "(llm/tigerbot/README)."
        )
        yield VOCABULARY.broken(text, where=CHECKPOINT)
    if config.rope_scaling is not None and config.rope_scaling.rope_type == YARN:
        if needs_vacc_config(config):
            yield YARN_IN_GRAPH.broken(_YARN_NOTE, where=CHECKPOINT)
        else:
            yield YARN_ON_LLAMA.broken(_LLAMA_YARN_NOTE, where=CHECKPOINT)


def _weight_notes(values: Mapping[str, Any], layout: str | None) -> Iterator[Problem]:
    dtype = values.get(DTYPE)
    if layout == INT8 and QUANTIZE not in values:
        yield CODES_UNTRIED.broken(_CODES_NOTE, where=CHECKPOINT)
    elif layout == VAMC and dtype == "int8":
        yield INT8_AGAIN.broken(_VAMC_INT8_NOTE, where=CHECKPOINT)
    elif layout == VAMC and dtype == "fp16":
        yield INT8_AS_FLOAT16.broken(_VAMC_FLOAT16_NOTE, where=DTYPE)
    elif layout == "" and dtype == "int8":
        text = (
            f"vamc quantizes the float weights itself ({QUANTIZE_TYPE}); nothing here can check "
            "the result. To decide the integers, and to verify them on this CPU, run vacc-deploy "
            "quantize first."
        )
        yield VAMC_QUANTIZES.broken(text, where=CHECKPOINT)


def _dataset_notes(values: Mapping[str, Any], layout: str | None) -> Iterator[Problem]:
    if path := values.get("dataset.path"):
        name = values.get("dataset.name")
        endings = _FILE_ENDINGS if name != "alpaca" else _FILE_ENDINGS - {".json"}
        if path.lower().endswith(tuple(endings)):
            text = (
                f"dataset.path names a file, {path}. The vendor's examples name a hub data set "
                "for c4 (allenai/c4), a directory for ceval (ceval-exam), and a file of JSON for "
                "alpaca only; that vamc reads another file is not published."
            )
            yield DATASET_FILE.broken(text, where="dataset.path", got=path)
        if f"{QUANTIZE}.device" not in values:
            text = (
                "quantize.device and quantize.calib_args are left to vamc's defaults; the vendor's "
                "one example sets device cuda:5 and calib_args true_sequential: false."
            )
            yield NO_DEVICE.broken(text, where=QUANTIZE)
    elif values.get(DTYPE) == "int8" and layout != INT8:
        text = (
            "There is no dataset block, as in the vendor's int8 files; which calibration text vamc "
            "then takes is not published. --calibration NAME=PATH names one."
        )
        yield NO_DATASET.broken(text, where=QUANTIZE)
