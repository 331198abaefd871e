"""What a user may choose for a compile file.

Imports nothing heavy: the command line reads the defaults at its start.
"""

from __future__ import annotations

from dataclasses import dataclass

DTYPES = ("fp16", "int8")
# Of both compiled lengths (the vendor's llm/README).
LENGTH_MULTIPLE = 16
OPTIMIZE_FOR = ("throughput", "latency")
# The vendor's example file (tools/vamc/vamc_quant.yaml) and its comments: set name to length.
CALIBRATION_LENGTHS = {"alpaca": 512, "c4": 1024, "ceval": 128}


@dataclass(frozen=True)
class CompileOptions:
    """The choices that shape a compile file; the defaults are those of the vendor's files.

    Attributes:
        dtype: ``fp16`` or ``int8``; None takes int8 for a quantized directory, else fp16.
        tensor_parallel_size: dies that share the model.
        prefill: longest prompt in tokens.
        total: longest prompt with its answer in tokens.
        optimize: ``throughput`` or ``latency``.
        calibration: name and path of a text set for vamc's own quantizer, int8 only.
        experimental: accept a directory of int8 codes, which nobody has compiled yet.
    """

    dtype: str | None = None
    tensor_parallel_size: int = 4
    prefill: int = 1024
    total: int = 2048
    optimize: str = "throughput"
    calibration: tuple[str, str] | None = None
    experimental: bool = False


# A problem of a compile file that an option of the command decides: how it begins, and the option.
_DECIDED_BY = {
    "frontend.shape.input_ids: prefill length": "--seq-len:",
    "frontend.shape.input_ids: total length": "--max-seq-len:",
    "frontend.model_kwargs.tp:": "--tp:",
    "dataset.path:": "--calibration:",
}


def by_option(problem: str) -> str:
    """Return a problem of a compile file under the name of the option that caused it, or empty."""
    for beginning, option in _DECIDED_BY.items():
        if problem.startswith(beginning):
            rest = problem.removeprefix(beginning)
            rest = rest.replace("the total length", "--max-seq-len")
            return option + rest.replace("the prefill length", "--seq-len")
    return ""
