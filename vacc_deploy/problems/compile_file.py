"""Rules for a compile file alone. Nothing here was tried with vamc, which is not public."""

from __future__ import annotations

from vacc_deploy.problems.problem import ERROR, NOTE, WARNING, Rule

_FIX = "Let check --fix write the file, or correct the value."
_PUBLISHED = "What vamc does with it is not published."
_ALIGN = "Add align_qkv: true to model_kwargs, or take a tp that divides the heads."

UNREADABLE_YAML = Rule(
    "VD600",
    ERROR,
    "the compile file cannot be read",
    "vamc reads plain YAML; anchors, tags and repeated keys are refused here.",
    "Write the file again with vacc-deploy yaml.",
)
UNKNOWN_KEY = Rule(
    "VD601",
    ERROR,
    "no published compile file has such a key",
    "A misspelt key leaves its setting at the default of vamc, after hours of compilation.",
    "Correct the name of the key, or remove it.",
)
KEY_OF_OTHERS = Rule(
    "VD602",
    NOTE,
    "the vendor has this key in files of other kinds of models only",
    "It may change nothing, or what is compiled.",
    "Remove the key, unless the vendor told you to set it.",
)
MISSING_KEY = Rule(
    "VD603",
    ERROR,
    "a key is missing that every published file has",
    "No published file says what vamc does without it.",
    "Let check --fix write the published value, or write the file again with vacc-deploy yaml.",
    is_fixable=True,
)
MISSING_SETTING = Rule(
    "VD604",
    WARNING,
    "a key is missing that every published file of a language model has",
    "vamc takes its own default, which is not published.",
    "Let check --fix write the published value. Only tp is yours to set.",
    is_fixable=True,
)
WRONG_TYPE = Rule(
    "VD605",
    ERROR,
    "a value is of another type than in the published files",
    _PUBLISHED,
    "Correct the value.",
)
UNPUBLISHED_VALUE = Rule(
    "VD606",
    ERROR,
    "no published file has this value",
    _PUBLISHED,
    "Write the value that the message names.",
)
UNUSABLE_VALUE = Rule(
    "VD607",
    ERROR,
    "a path is empty, or a number is below one",
    "Nothing can be made of it.",
    "Correct the value.",
)
OTHER_KIND = Rule(
    "VD608",
    ERROR,
    "the file is not that of a language model",
    "Only the rules of language models are known here, so the file was not checked further.",
    "Ask the vendor's page of that model.",
)
ODD_LENGTH = Rule(
    "VD610",
    ERROR,
    "a length is not a multiple of 16",
    "Compiled lengths must be (the vendor's llm/README).",
    _FIX,
    is_fixable=True,
)
NO_ROOM = Rule(
    "VD611",
    ERROR,
    "the longest prompt fills the whole length",
    "It leaves no tokens for an answer.",
    "Raise the total length, or lower the length of the prompt.",
)
ABOVE_POSITIONS = Rule(
    "VD612",
    ERROR,
    "the total length is above what the model was made for",
    "Answers beyond max_position_embeddings are not those of a trained model.",
    "Lower the total length.",
)
SHORT_ANSWERS = Rule(
    "VD613",
    NOTE,
    "the total length is short for a reasoning model",
    "It thinks in many tokens, and an answer that reaches the length is cut.",
    "Compile with a larger total length where the card has the memory.",
)
NAME_DISAGREES = Rule(
    "VD620",
    WARNING,
    "the name says something else than the file",
    "The compiled directory and the served model are called by it.",
    _FIX,
    is_fixable=True,
)
NAME_UNUSABLE = Rule(
    "VD621",
    ERROR,
    "the name cannot be that of a directory",
    "vamc writes the compiled model to a directory of this name.",
    "Give a name without slashes and control characters.",
)
INT8_WITHOUT_QUANTIZE = Rule(
    "VD630",
    ERROR,
    "int8 is asked for, and nothing says how to quantize",
    "Every published int8 file names the method.",
    _FIX,
    is_fixable=True,
)
QUANTIZE_WITH_FP16 = Rule(
    "VD631",
    ERROR,
    "a method to quantize is named for float16",
    "The published files have it with int8 only.",
    _FIX,
    is_fixable=True,
)
INT8_CACHE = Rule(
    "VD632",
    ERROR,
    "an int8 cache is asked for",
    "The vendor has a modeling file for it for ChatGLM only.",
    "Write the type w8a16_gptq.",
)
DATASET_ALONE = Rule(
    "VD633",
    ERROR,
    "a calibration set is named, and nothing is quantized",
    "Only the quantizer reads it.",
    "Remove the dataset block, or add frontend.quantize.",
)
NO_DATASET = Rule(
    "VD634",
    NOTE,
    "int8 without a calibration set",
    "Which text vamc then takes is not published.",
    "Name a set with vacc-deploy yaml --calibration.",
)
NO_DEVICE = Rule(
    "VD635",
    NOTE,
    "int8 without a device to quantize on",
    "The vendor's one example quantizes on CUDA; which device vamc takes by default is not known.",
    "Set frontend.quantize.device where vamc asks for it.",
)
DATASET_FILE = Rule(
    "VD636",
    NOTE,
    "the calibration set is a single file",
    "The vendor's examples name a file of JSON for alpaca, and else a hub data set or a directory.",
    "Give the directory of the file.",
)
TP_SIZE = Rule(
    "VD640",
    ERROR,
    "tp is not 1, 2, 4, 8 or 16",
    "The published files use 4 and 8; that the other three work is our inference.",
    "Set one of these sizes.",
)
TP_IMPOSSIBLE = Rule(
    "VD641",
    ERROR,
    "so many dies cannot share the model",
    "A die holds whole heads, and an equal part of the MLP.",
    "Set one of the sizes that the message names.",
)
ALIGN_QKV_MISSING = Rule(
    "VD642",
    ERROR,
    "tp does not divide the heads, and align_qkv is off",
    "The vendor allows leaving it off only if num_key_value_heads % tp == 0 (llm/README).",
    _ALIGN,
    is_fixable=True,
)
ALIGN_QKV_SET = Rule(
    "VD643",
    NOTE,
    "align_qkv is needed",
    "The vendor's llm/README names this switch, and no published file uses it.",
    "Take a tp that needs none, if there is one.",
)
STACK_SIZE = Rule(
    "VD650",
    NOTE,
    "the model needs VACC_STACK_SIZE",
    "The vendor asks for it from 32B upwards (llm/README). A shell forgets it.",
    "Run export VACC_STACK_SIZE=256 in the shell that starts vamc.",
)
STACK_SIZE_VALUE = Rule(
    "VD651",
    WARNING,
    "VACC_STACK_SIZE has another value than the vendor's",
    "The vendor asks for 256 from 32B upwards (llm/README).",
    "Run export VACC_STACK_SIZE=256 in the shell that starts vamc.",
)
YARN_IN_GRAPH = Rule(
    "VD660",
    NOTE,
    "yarn is computed by the modeling file beside the weights",
    "The vendor's own modeling file does not read rope_scaling.",
    "Put no other modeling file in its place.",
)
