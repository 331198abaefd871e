"""Sum the Hessian of a linear's inputs, and shrink it to its diagonal."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from vacc_deploy.solver.precision import float32_products

# Rows handled at a time, which bounds temporaries: 78 MB of float32 at 18,944 columns.
HESSIAN_BLOCK = 1024
# A panel of a Hessian: at 2048 rows cuBLAS is as fast as on the whole, and the panels on and above
# the diagonal are 0.55 of 18,944² and 0.76 of 3584².
_PANEL_ROWS = 2048
# Bounds the float32 copy of a panel's product: 39 MB at 18,944 columns.
_CPU_PANEL_ROWS = 512
_Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


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
        _add_panels(hessian, inputs, product, _PANEL_ROWS)
        return
    # The values have at most the 10 bits of TF32: its products lose nothing here.
    with float32_products(inputs.device, "tf32"):
        _add_panels(hessian, inputs.float(), torch.Tensor.addmm_, _PANEL_ROWS)


def _add_rounded_panels(hessian: torch.Tensor, inputs: torch.Tensor) -> None:
    """Add on a CPU, where torch returns the products of a batch rounded to bfloat16.

    Each entry of each batch is rounded once, by 1/256 at most, and the batches are summed in
    float32: the mean diagonal is off by 1/25 of the default dampening at most (tests hold factor
    and the error to float32's).
    """
    # inputs [tokens, in], columns [in, tokens]: the rows of a panel are adjacent in memory.
    size, columns = hessian.shape[0], inputs.T.contiguous()
    # Widened in memory of its own: torch adds tensors of two dtypes three times slower.
    memory = torch.empty(min(size, _CPU_PANEL_ROWS) * size)
    for start in range(0, size, _CPU_PANEL_ROWS):
        stop = min(start + _CPU_PANEL_ROWS, size)
        # [rows, tokens] @ [tokens, in - start]; the result is rounded to bfloat16.
        product = torch.mm(columns[start:stop], inputs[:, start:])
        widened = memory[: product.numel()].view(product.shape).copy_(product)
        hessian[start:stop, start:].add_(widened)


def _add_panels(
    hessian: torch.Tensor, inputs: torch.Tensor, product: Callable[..., object], rows: int
) -> None:
    """Add the panels of so many rows [rows, in - start] that begin at the diagonal."""
    size = hessian.shape[0]
    for start in range(0, size, rows):
        stop = min(start + rows, size)
        # [rows, tokens] @ [tokens, in - start]
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


def accumulate_hessian(hessian: torch.Tensor, inputs: torch.Tensor) -> None:
    """Add ``inputsᵀ · inputs`` to the upper triangle of ``hessian``, in place.

    Only blocks on and above the diagonal are computed; what lies below is undefined until
    ``mirror_upper``.

    Args:
        hessian: float [in_features, in_features].
        inputs: [num_tokens, in_features], of the dtype of ``hessian``, or bfloat16 with a float32
            ``hessian``, at the speed of bfloat16.
    """
    if inputs.dtype != hessian.dtype:
        accumulate_half(hessian, inputs)
        return
    with float32_products(hessian.device):
        _add_panels(hessian, inputs, torch.Tensor.addmm_, HESSIAN_BLOCK)


def mirror_upper(hessian: torch.Tensor) -> None:
    """Copy the upper triangle of ``hessian`` below the diagonal, in place."""
    size = hessian.shape[0]
    for start in range(0, size, HESSIAN_BLOCK):
        stop = min(start + HESSIAN_BLOCK, size)
        block = hessian[start:stop, start:stop]
        # triu drops the undefined lower half; triu(1) counts the diagonal once.
        block.copy_(block.triu() + block.triu(1).T)
        # [in - stop, block] from [block, in - stop]
        hessian[stop:, start:stop] = hessian[start:stop, stop:].T


def shrink_to_diagonal(hessian: torch.Tensor, shrinkage: float) -> None:
    """Multiply what is off the diagonal of ``hessian`` by ``1 - shrinkage``, in place.

    The correlations of few tokens are partly noise, and partly those of one kind of text; the
    nearest plane of a diagonal Hessian is plain rounding.

    Source: Ledoit and Wolf, A well-conditioned estimator for large-dimensional covariance
    matrices (2004), with the diagonal as the target.
    """
    if shrinkage:
        diagonal = hessian.diagonal().clone()
        hessian.mul_(1 - shrinkage)
        hessian.diagonal().copy_(diagonal)
