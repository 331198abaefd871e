"""What a user may choose for a compile file.

Imports nothing heavy: the command line reads the defaults at its start.
"""

from __future__ import annotations

from dataclasses import dataclass

DTYPES = ("fp16", "int8")
OPTIMIZE_FOR = ("throughput", "latency")
# The vendor's example file (tools/vamc/vamc_quant.yaml) and its comments: set name to length.
CALIBRATION_LENGTHS = {"alpaca": 512, "c4": 1024, "ceval": 128}


@dataclass(frozen=True)
class CompileOptions:
    """The choices that shape a compile file; the defaults are those of the vendor's files.

    Attributes:
        dtype: ``fp16`` or ``int8``; None takes int8 for a directory of int8 codes, else fp16.
        tensor_parallel_size: dies that share the model.
        prefill: longest prompt in tokens.
        total: longest prompt with its answer in tokens.
        optimize: ``throughput`` or ``latency``.
        calibration: name and path of a text set for vamc's own quantizer, int8 only.
    """

    dtype: str | None = None
    tensor_parallel_size: int = 4
    prefill: int = 1024
    total: int = 2048
    optimize: str = "throughput"
    calibration: tuple[str, str] | None = None
