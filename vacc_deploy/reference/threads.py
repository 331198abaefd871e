"""How many threads torch uses, decided by the size of the model, in one place.

The matrices of a small model are done sooner than two threads have met, and where another process
holds a core each meeting waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from vacc_deploy.models.config import ModelConfig

# Below it one thread was never slower on a shared machine, and up to eight times as fast.
SMALL_PARAMETERS = 100_000_000


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_for(config: ModelConfig) -> AbstractContextManager[None]:
    """Return the block in which a model runs: a small one on one thread, others on all."""
    is_small = config.num_parameters() < SMALL_PARAMETERS
    return torch_threads(1) if is_small else nullcontext()
