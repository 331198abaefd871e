"""Rules for a compile file against the directory that it names, and against its surroundings."""

from __future__ import annotations

from vacc_deploy.problems.problem import ERROR, NOTE, WARNING, Rule

_VAMC = "Name the directory that vacc-deploy quantize writes in the format vamc, its default."
_START = "vamc resolves a relative path by the directory in which it is started (our inference)."

NO_CHECKPOINT = Rule(
    "VD701",
    ERROR,
    "the checkpoint is not there",
    _START,
    "Write the absolute path of the directory, or start where the path holds.",
)
ONE_PLACE = Rule(
    "VD702",
    WARNING,
    "the checkpoint is found from one directory only",
    _START,
    "Start vamc in the directory that the message names, or write an absolute path.",
)
ELSEWHERE = Rule(
    "VD703",
    NOTE,
    "the checkpoint is not on this machine",
    "The file was not checked against its directory.",
    "Run check on the machine that has the directory.",
)
NOT_MADE_YET = Rule(
    "VD704",
    NOTE,
    "the directory is not made yet",
    "The file was not checked against its directory.",
    "Run the command that the message names, and start vamc where it was run.",
)
NO_MODEL = Rule(
    "VD705",
    ERROR,
    "what the checkpoint names is no directory of a model",
    "vamc cannot load it.",
    "Name a directory that prepare or quantize wrote.",
)
OTHER_MODEL = Rule(
    "VD706",
    WARNING,
    "the name is that of another model than the directory's",
    "The served model is called by the name.",
    "Correct name or frontend.checkpoint, whichever is wrong.",
)
OTHER_PROGRAMS = Rule(
    "VD707",
    ERROR,
    "the weights are in a layout for other programs",
    "vamc would read codes as weights, or fail.",
    _VAMC,
)
INT8_AS_FLOAT16 = Rule(
    "VD710",
    NOTE,
    "int8 values are compiled as float16",
    "The model takes the memory of float16.",
    "Write the file again with vacc-deploy yaml, which takes int8 for this directory.",
)
INT8_AGAIN = Rule(
    "VD711",
    NOTE,
    "vamc quantizes the int8 values again",
    "That it finds the same integers is our inference (docs/deploy.md).",
    "Compare the compiled model's answers with those of vacc-deploy generate.",
)
VAMC_QUANTIZES = Rule(
    "VD712",
    NOTE,
    "vamc chooses the integers",
    "Nothing here can check its result.",
    "Run vacc-deploy quantize first, to choose and to verify them here.",
)
CODES_UNTRIED = Rule(
    "VD713",
    WARNING,
    "the directory holds int8 codes, which are untried with vamc",
    "A wrong result would come without an error.",
    _VAMC,
)
CODES_OF_LLAMA = Rule(
    "VD714",
    ERROR,
    "the directory holds int8 codes of a Llama model",
    "vamc loads Llama through its own code, which cannot read them (our inference).",
    _VAMC,
)
CODES_AGAIN = Rule(
    "VD715",
    ERROR,
    "int8 codes would be quantized once more",
    "The codes would be read as weights.",
    "Remove quantize and dataset.",
)
CODES_AS_FLOAT16 = Rule(
    "VD716",
    ERROR,
    "int8 codes would be compiled as float16",
    "The codes would be read as weights.",
    "Set dtype int8, or name a float directory.",
)
WORKSPACE = Rule(
    "VD720",
    ERROR,
    "vamc cannot write to workspace.path",
    "Hours of compilation would be lost.",
    "Name a directory in which you may write.",
)
COMPILED_BEFORE = Rule(
    "VD721",
    NOTE,
    "the workspace holds a directory of this name already",
    "What vamc does with an older compiled model is not published.",
    "Move the older one away.",
)
