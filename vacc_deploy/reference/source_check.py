"""Tell, by the tensors that are only copied, whether one model can be the source of another.

``prepare`` and ``quantize`` copy norms, biases, embedding and head; a GGUF file holds them in the
dtypes of llama.cpp. So they must be equal once those of the one are converted to the other's dtype.
"""

from __future__ import annotations

import torch

from vacc_deploy.checkpoint.gguf_tensors import GgufTensorInfo
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import name_some
from vacc_deploy.formats.dtypes import DTYPES
from vacc_deploy.models.config import EMBEDDING, LM_HEAD

# Of the embedding and of the head, the rows that are compared: the rest of them is hundreds of MB.
_NUM_ROWS = 64
_NUM_NAMED = 3


def find_foreign(reference: Checkpoint, deployed: Checkpoint) -> str:
    """Return which copied tensors of ``deployed`` are not those of ``reference``; empty if none.

    Reads all norms and biases, and some rows of embedding and head: under 2 MB of a 7B model.

    Args:
        reference: the float checkpoint.
        deployed: the deployed checkpoint, of the same configuration.
    """
    weights = {f"{linear}.weight" for linear in deployed.config.linear_names()}
    # What else a linear is stored as, such as scales, has no counterpart.
    names = [name for name in reference.tensors if name in deployed.tensors and name not in weights]
    compared = [name for name in names if _is_comparable(deployed, name)]
    foreign = [name for name in compared if not _is_equal(reference, deployed, name)]
    if not foreign:
        return ""
    return (
        f"{len(foreign)} of its {len(compared)} norms, biases and tables, which are only copied, "
        f"have other values ({name_some(foreign, _NUM_NAMED)})"
    )


def explain_foreign(reference: Checkpoint, deployed: Checkpoint, *, has_manifest: bool) -> str:
    """Return sentences on a float model that is not the source, and what to do; empty if it can be.

    Args:
        reference: the float checkpoint.
        deployed: the deployed checkpoint, of the same configuration.
        has_manifest: whether our commands wrote ``deployed``. Another tool may have moved factors
            between norms and weights: only the figures tell.
    """
    if not (foreign := find_foreign(reference, deployed)):
        return ""
    if has_manifest:
        return (
            f"{deployed.directory} was not made from {reference.directory}: {foreign}. Give the "
            "right float model with --reference."
        )
    return (
        f"{deployed.directory} was not copied from {reference.directory}: {foreign}. Another tool "
        "may have changed them on purpose, or the float model is another one."
    )


def _is_comparable(deployed: Checkpoint, name: str) -> bool:
    info = deployed.info(name)
    # Blocks of codes (Q8_0) are rounded.
    return not isinstance(info, GgufTensorInfo) or info.dtype in DTYPES


def _is_equal(reference: Checkpoint, deployed: Checkpoint, name: str) -> bool:
    if name in (EMBEDDING, LM_HEAD):
        num_rows = deployed.info(name).shape[0]
        rows = sorted({num_rows * i // _NUM_ROWS for i in range(_NUM_ROWS)})
        source, copied = (each.read_rows(name, rows) for each in (reference, deployed))
    else:
        source, copied = reference.read(name), deployed.read(name)
    # Either may be a rounded copy of the other.
    pairs = ((source.to(copied.dtype), copied), (source, copied.to(source.dtype)))
    return any(_same_values(*pair) for pair in pairs)


def _same_values(left: torch.Tensor, right: torch.Tensor) -> bool:
    # NaN is damage, not another model: it is told elsewhere.
    return bool(((left == right) | (left.isnan() & right.isnan())).all())
