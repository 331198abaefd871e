"""What the solver needs of a CUDA device: its float32 precision, mixed products, and Triton.

Works on a CPU too, where nothing is switched and products are those of float32 or bfloat16.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@functools.cache
def can_run_triton() -> bool:
    """Return whether Triton is installed and finds the C compiler that its launches need."""
    if importlib.util.find_spec("triton") is None:
        return False
    return bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))


@contextmanager
def float32_products(device: torch.device, precision: str = "ieee") -> Iterator[None]:
    """Let float32 matrix products on a CUDA device use this precision; then restore the caller's.

    Only for matrix products: between the two, torch may refuse to answer which precision is set
    when the caller set it the old way (torch 2.9 and newer know an old and a new one).

    Args:
        device: where the products run; nothing is done for any but CUDA.
        precision: "ieee", or "tf32" for factors of 10 bits.
    """
    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    # The new switch where there is one: to set the old one too would make torch refuse both.
    if hasattr(matmul, "fp32_precision"):
        before = matmul.fp32_precision
        matmul.fp32_precision = precision
        try:
            yield
        finally:
            matmul.fp32_precision = before
    else:
        was_allowed = matmul.allow_tf32
        matmul.allow_tf32 = precision == "tf32"
        try:
            yield
        finally:
            matmul.allow_tf32 = was_allowed
