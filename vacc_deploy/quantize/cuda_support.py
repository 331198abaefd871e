"""What the solver needs of a CUDA device: its float32 precision, mixed products, and Triton.

Works on a CPU too, where nothing is switched and products are those of float32 or bfloat16.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

# A panel of a Hessian: at 2048 rows cuBLAS is as fast as on the whole, and the panels on and above
# the diagonal are 0.55 of 18,944² and 0.76 of 3584².
_PANEL_ROWS = 2048
_CPU_PANEL_ROWS = 512
_Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


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


def accumulate_half(hessian: torch.Tensor, inputs: torch.Tensor) -> None:
    """Add ``inputsᵀ · inputs`` to the upper triangle of ``hessian``; sums in float32.

    What lies below the diagonal is undefined afterwards.

    Args:
        hessian: float32 [in_features, in_features].
        inputs: bfloat16 or float16 [num_tokens, in_features].
    """
    if inputs.device.type == "cpu" and inputs.dtype == torch.bfloat16:
        _add_rounded_panels(hessian, inputs)
        return
    product = find_half_product(inputs.device, inputs.dtype)
    if product is not None:
        _add_panels(hessian, inputs, product)
        return
    # The values have at most the 10 bits of TF32: its products lose nothing here.
    with float32_products(inputs.device, "tf32"):
        _add_panels(hessian, inputs.float(), torch.Tensor.addmm_)


def _add_rounded_panels(hessian: torch.Tensor, inputs: torch.Tensor) -> None:
    """Add on a CPU, where torch returns the products of a batch rounded to bfloat16.

    Each entry of each batch is rounded once, by 1/256 at most, and the batches are summed in
    float32: the mean diagonal is off by 1/25 of the default damping at most (tests hold the factor
    and the error to float32's).
    """
    size, columns = hessian.shape[0], inputs.T.contiguous()
    # Widened in memory of its own: torch adds tensors of two dtypes three times slower.
    room = torch.empty(min(size, _CPU_PANEL_ROWS) * size)
    for start in range(0, size, _CPU_PANEL_ROWS):
        stop = min(start + _CPU_PANEL_ROWS, size)
        product = torch.mm(columns[start:stop], inputs[:, start:])
        widened = room[: product.numel()].view(product.shape).copy_(product)
        hessian[start:stop, start:].add_(widened)


def _add_panels(
    hessian: torch.Tensor, inputs: torch.Tensor, product: Callable[..., object]
) -> None:
    size = hessian.shape[0]
    for start in range(0, size, _PANEL_ROWS):
        stop = min(start + _PANEL_ROWS, size)
        product(hessian[start:stop, start:], inputs[:, start:stop].T, inputs[:, start:])


@functools.cache
def find_half_product(device: torch.device, dtype: torch.dtype) -> _Product | None:
    """Return a function that adds a product of ``dtype`` matrices to a float32 one on ``device``.

    torch has such products on CUDA since 2.8; those that add came later. Each is tried on a small
    matrix, since neither a version number nor a schema tells what a build can run.

    Returns:
        ``product(total, left, right)``, which adds to ``total`` in place, or None.
    """
    left = torch.eye(16, dtype=dtype, device=device)
    for product in (_add_product, _add_made_product):
        total = torch.ones(16, 32, device=device)[:, :16]  # a view, as a panel is
        try:
            product(total, left, left)
        except (RuntimeError, TypeError):  # no kernel; no such argument
            continue
        if torch.equal(total, 1 + left.float()):
            return product
    return None


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    torch.addmm(total, left, right, out_dtype=torch.float32, out=total)


def _add_made_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    total.add_(torch.mm(left, right, out_dtype=torch.float32))
