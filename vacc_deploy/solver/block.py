"""One diagonal block of the nearest-plane solver, and what solves it on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Block(NamedTuple):
    """The columns of a weight that are solved together; views of the whole's tensors.

    Attributes:
        unit_rows: unit rows of the factor, float [n, n].
        targets: v plus what columns further right add to it, float [n, out]; changed in place.
        errors: float [n, out], v on entry, v − q on return.
        codes: int8 [n, out], filled in.
        num_saturated: int32 [1], grows by the number of codes cut at ±127.
    """

    unit_rows: torch.Tensor
    targets: torch.Tensor
    errors: torch.Tensor
    codes: torch.Tensor
    num_saturated: torch.Tensor

    def columns(self, start: int, stop: int) -> Block:
        """Return the block of some of the columns."""
        chosen = slice(start, stop)
        # Views: what is solved here changes the whole's tensors, and the count is the same one.
        return Block(
            self.unit_rows[chosen, chosen],
            self.targets[chosen],
            self.errors[chosen],
            self.codes[chosen],
            self.num_saturated,
        )


@dataclass(frozen=True)
class BlockSolver:
    """How a device solves a block too narrow to split.

    Attributes:
        max_columns: the widest block that it takes.
        solve: called with the block.
        is_aligned: split wider blocks at multiples of ``max_columns``, so that launches are few.
    """

    max_columns: int
    solve: Callable[[Block], None]
    is_aligned: bool = False
