"""Where and in which precision the calibrated quantizer computes.

Products take bfloat16 factors and sum in float32 where the processor has units for that; the solver
is float32 everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from vacc_deploy.errors import UsageError
from vacc_deploy.system import has_bfloat16_units

AUTO = "auto"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_GIB = 1 << 30


@dataclass(frozen=True)
class Compute:
    """A device and how much it takes at a time.

    Attributes:
        device: where everything but reading and writing happens.
        dtype: dtype of activations and of the weights they meet: float32 or bfloat16.
        batch_tokens: tokens of one matrix product.
        kept_bytes: memory for the Hessian of down_proj and for those of its inputs that are kept
            between their two uses.
        num_sharing: processes of the run that share this machine's memory.
    """

    device: torch.device
    dtype: torch.dtype
    batch_tokens: int
    kept_bytes: int
    num_sharing: int = 1

    @property
    def synchronize(self) -> Callable[[], None] | None:
        """Return what waits for the device, or None where nothing runs ahead of the host."""
        if self.device.type != "cuda":
            return None
        # The main stream only: the copies of the next layer's weights go on beside it.
        return lambda: torch.cuda.current_stream(self.device).synchronize()

    def shared_by(self, num_processes: int) -> Compute:
        """Return it for one of several processes on one machine, each with a device of its own."""
        kept_bytes = self.kept_bytes
        if self.device.type == "cpu":
            kept_bytes //= num_processes
        return replace(self, kept_bytes=kept_bytes, num_sharing=num_processes)

    def free_memory_bytes(self) -> int | None:
        """Return the bytes free on the device; None where that is the host."""
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else None

    def peak_memory_bytes(self) -> int | None:
        """Return the most that this process has held on the device; None where that is the host."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None

    def describe(self) -> str:
        """Return the device's name for the report: bytes may differ between two kinds."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return "cpu"


def choose_compute(
    device: str, dtype: str = AUTO, *, is_bfloat16_fast: Callable[[], bool] = has_bfloat16_units
) -> Compute:
    """Return how to compute on ``device``.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``float32``, ``bfloat16``, or ``auto`` for bfloat16 where it is fast.
        is_bfloat16_fast: tells whether the CPU multiplies bfloat16 itself.

    Raises:
        UsageError: the device is not there, or a name is unknown.
    """
    if dtype != AUTO and dtype not in DTYPES:
        raise UsageError(f"The compute dtype is {dtype!r}, expected auto, float32 or bfloat16.")
    if device == "cpu":
        chosen = DTYPES.get(dtype) or (torch.bfloat16 if is_bfloat16_fast() else torch.float32)
        # The Hessian of a down_proj with 18,944 inputs (7B) takes 1.34 GiB of these 2 GiB.
        return Compute(torch.device("cpu"), chosen, 2048, 2 * _GIB)
    # Beside that Hessian, 4.5 GiB hold the bfloat16 inputs of some 89,000 tokens.
    return Compute(_cuda_device(device), DTYPES.get(dtype, torch.bfloat16), 16384, 9 * _GIB // 2)


def _cuda_device(name: str) -> torch.device:
    match = re.fullmatch("cuda(?::([0-9]+))?", name)
    if match is None:
        raise UsageError(f"--device is {name!r}, expected cpu, cuda or cuda:N.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = int(match[1] or 0)
    if count <= number:
        raise UsageError(
            f"--device {name}: torch {torch.__version__} sees {count} CUDA devices. Use --device "
            "cpu, or install a CUDA build of torch and the driver."
        )
    return torch.device("cuda", number)
