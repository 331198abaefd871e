"""The names of weight files that were saved together: ``model-00001-of-00002.safetensors``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from vacc_deploy.bounds import SHARDS

# DeepSeek's own files are model-00001-of-000002.safetensors: the two numbers differ in width.
_SHARD = re.compile(r"(.+)-(\d{5,6})-of-(\d{5,6})\.safetensors")


class ShardSet(NamedTuple):
    """The files of one saving that are here.

    Attributes:
        stem: what stands in front of the numbers.
        digits: of a file's number.
        total: the number of files as the names write it, such as ``000002``.
        numbers: the files that are here.
    """

    stem: str
    digits: int
    total: str
    numbers: frozenset[int]

    @property
    def is_whole(self) -> bool:
        """Whether all files are here."""
        return self.numbers >= set(range(1, int(self.total) + 1))

    def all_names(self) -> list[str]:
        """Return the names of all files of the saving; none of far too many."""
        count = int(self.total)
        numbers = range(1, count + 1) if count <= SHARDS else ()
        return [
            f"{self.stem}-{number:0{self.digits}}-of-{self.total}.safetensors" for number in numbers
        ]

    def describe(self) -> str:
        """Return, for example, ``model-...-of-00004 (3 of 4 files)``."""
        return f"{self.stem}-...-of-{self.total} ({len(self.numbers)} of {int(self.total)} files)"


def find_sets(names: Iterable[str]) -> list[ShardSet]:
    """Return the savings that files of these names belong to, in the order of their names."""
    sets = defaultdict[tuple[str, int, str], set[int]](set)
    for name in names:
        if match := _SHARD.fullmatch(name):
            sets[match[1], len(match[2]), match[3]].add(int(match[2]))
    return [ShardSet(*key, frozenset(sets[key])) for key in sorted(sets)]
