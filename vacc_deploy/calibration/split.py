"""Which documents calibrate, which judge the calibration, and which calibration never reads.

A document's position is drawn from the hash of its content: it does not depend on the seed, on the
order of the file or on the other documents.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from vacc_deploy.datasets.files import Document
from vacc_deploy.errors import UsageError

CALIBRATION, EVALUATION = "calibration", "evaluation"
PARTS = (CALIBRATION, EVALUATION)
# Share of the rows, and of the documents, that is held out: on it GPTQ is compared with rounding.
HELD_OUT_SHARE = 0.1
MAX_EVALUATION_SHARE = 0.9


def hash_document(document: Document) -> bytes:
    """Return the sha256 of a document's content."""
    # JSON tells a text from a conversation of the same words; its escapes keep it ASCII.
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode("ascii")).digest()


def position_of(digest: bytes) -> float:
    """Return the fixed position of a document, from 0 to below 1, evenly spread."""
    # 53 bits: exact in a float, and never rounded up to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)


def is_held_out(digest: bytes) -> bool:
    """Return whether a calibrating document judges the fit: these have the first positions."""
    return position_of(digest) < HELD_OUT_SHARE


@dataclass(frozen=True)
class Split:
    """The documents that rows may be made of.

    Attributes:
        part: ``calibration`` or ``evaluation``.
        evaluation_share: share of each file's documents in the evaluation part.

    Raises:
        UsageError: the part does not exist or holds nothing; says which value is wrong.
    """

    part: str
    evaluation_share: float

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise UsageError(f"The part is {self.part!r}, expected one of {', '.join(PARTS)}.")
        if not 0 <= self.evaluation_share <= MAX_EVALUATION_SHARE:
            raise UsageError(
                f"The evaluation share is {self.evaluation_share}, expected 0 to "
                f"{MAX_EVALUATION_SHARE}."
            )
        if self.part == EVALUATION and not self.evaluation_share:
            raise UsageError(
                "The evaluation part holds no document: the evaluation share is 0. Give the share "
                "with which the model was calibrated."
            )

    def includes(self, digest: bytes) -> bool:
        """Return whether a document is in the part: evaluation has the last positions."""
        # At the other end than the held-out documents: another evaluation share leaves those alone.
        is_last = position_of(digest) >= 1 - self.evaluation_share
        return is_last == (self.part == EVALUATION)


def split_shares(shares: list[int]) -> list[int]:
    """Return how many of its rows each source holds out.

    One in ten, and at least one of a source with two rows or more. Where every source has one row
    only, the last one's is held out, unless it is the only row.
    """
    # A single row is fitted: held out, it would leave nothing of its source to fit.
    held_out = [max(1, round(rows * HELD_OUT_SHARE)) if rows > 1 else 0 for rows in shares]
    if not any(held_out) and len(shares) > 1:
        held_out[-1] = 1
    return held_out
