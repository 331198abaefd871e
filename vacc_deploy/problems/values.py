"""Rules for the values of the weights."""

from __future__ import annotations

from vacc_deploy.problems.problem import ERROR, NOTE, WARNING, Rule

_DOWNLOAD = "Download the file again. If it is the same, make the model again."
_QUANTIZE = "Quantize the model again."

NOT_FINITE = Rule(
    "VD501", ERROR, "a weight is NaN or infinite", "It reaches every answer.", _DOWNLOAD
)
DEAD_TENSOR = Rule(
    "VD502",
    ERROR,
    "all values of a tensor are zero or the same",
    "A part of the model does nothing. Downloads with holes look so.",
    _DOWNLOAD,
)
ZERO_SCALE = Rule(
    "VD503",
    ERROR,
    "a scale is zero",
    "All weights of the row are zero, whatever its codes are.",
    _QUANTIZE,
)
CUT_FILE = Rule(
    "VD504",
    ERROR,
    "a weight file ends in zeros",
    "The download was cut, and the rest filled with zeros.",
    _DOWNLOAD,
)
NEGATIVE_SCALE = Rule(
    "VD505",
    ERROR,
    "a scale is negative",
    "The symmetric rule knows positive scales only.",
    _QUANTIZE,
)
CODE_RANGE = Rule(
    "VD506",
    ERROR,
    "a code is -128",
    "The symmetric rule ends at ±127. A weight that wrapped around looks so: its sign changed.",
    _QUANTIZE,
)
SATURATED = Rule(
    "VD507",
    WARNING,
    "many codes are ±127",
    "The scales are too small, so large weights are cut.",
    _QUANTIZE,
)
NOT_CODES = Rule(
    "VD508",
    ERROR,
    "a row of a vamc directory is not of int8 values",
    "vamc would round it to other integers than those that were verified.",
    _QUANTIZE,
)
DEAD_ROWS = Rule(
    "VD509",
    NOTE,
    "many rows of a tensor are zero",
    "A download with holes looks so, and so does a pruned model.",
    "Compare the file's hash with the one that the model's repository states.",
)
