"""Load what a CUDA device needs while the host reads the calibration text.

The first call of each library there takes tenths of a second: handles, modules, compiled kernels.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name

from vacc_deploy.formats.int8 import choose_scale
from vacc_deploy.quantize.compute import Compute
from vacc_deploy.solver.gptq import factorize, solve
from vacc_deploy.solver.hessian import accumulate_hessian, mirror_upper

# Two blocks of the kernel, so that the product between blocks is loaded too.
_SIZE = 256
# The block kernel has a second form for wide outputs.
_WIDE = 1 << 15


@contextmanager
def warming_up(compute: Compute) -> Iterator[None]:
    """Run one small linear through the solver in a thread while the block runs.

    Nothing for a CPU, which has nothing to load.
    """
    if compute.device.type != "cuda":
        yield
        return
    thread = threading.Thread(target=_solve_small, args=(compute,), name="warm-up", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@torch.inference_mode()
def _solve_small(compute: Compute) -> None:
    device = compute.device
    inputs = torch.eye(_SIZE, dtype=compute.dtype, device=device)
    hessian = torch.zeros(_SIZE, _SIZE, device=device)
    accumulate_hessian(hessian, F.linear(inputs, inputs))
    mirror_upper(hessian)
    heads = inputs.view(1, 2, -1, 128)  # [rows, heads, seq, head_dim]
    F.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    torch.cholesky_solve(hessian, hessian)
    factor = factorize(hessian, 0.01, act_order=True)
    for out_features in (_SIZE, _WIDE):
        weight = torch.ones(out_features, _SIZE, device=device)
        if factor is not None:
            solve(weight, choose_scale(weight), factor)
