"""The names of weight files that were saved together: ``model-00001-of-00002.safetensors``."""

from __future__ import annotations

import os
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vacc_deploy.bounds import FILE_NAME_BYTES, SHARDS
from vacc_deploy.errors import MAX_LISTED

# DeepSeek's own files are model-00001-of-000002.safetensors: the two numbers differ in width.
_SHARD = re.compile(r"(.+)-(\d{5,6})-of-(\d{5,6})\.safetensors")


# A file of the directory itself: no path, no drive, no NUL.
_PLAIN_NAME = re.compile(r"(?!\.)[^/\\:\0]*\.safetensors")


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
        """Whether all files are here; never of far too many."""
        count = int(self.total)
        # The number is a stranger's: it is compared before anything is made of it.
        return count <= min(SHARDS, len(self.numbers)) and self.numbers >= set(range(1, count + 1))

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


def is_plain(name: Any) -> bool:
    """Return whether an index may name this file: of its own directory, as every system has it."""
    is_name = isinstance(name, str) and name.isprintable() and _PLAIN_NAME.fullmatch(name)
    return bool(is_name) and len(name.encode("utf-8", "surrogatepass")) <= FILE_NAME_BYTES


def explain_odd_names(directory: Path, names: Sequence[str]) -> str:
    """Return the message of weight files whose names are not plain, with commands that rename them.

    Args:
        directory: the checkpoint, without an index.
        names: those of the files.
    """
    place = shlex.quote(str(directory))
    numbered = (f"weights-{number}.safetensors" for number in range(1, SHARDS))
    # Nothing that is there is replaced.
    free = (name for name in numbered if not os.path.lexists(directory / name))
    moves = [
        f"  mv -n -- {place}/{_quote(name)} {place}/{new}"
        for name, new in zip(names[:MAX_LISTED], free, strict=False)
    ]
    more = [f"  and {len(names) - MAX_LISTED} more"] if len(names) > MAX_LISTED else []
    head = (
        f"{directory} holds weight files whose names no index may give: such a name has at most "
        f"{FILE_NAME_BYTES} bytes, all of them printable, and no colon or backslash. Rename them:"
    )
    return "\n".join([head, *moves, *more])


def _quote(name: str) -> str:
    """Return a file name as a word of the shell, in one line whatever it holds."""
    if name.isprintable():
        return shlex.quote(name)
    chars = (
        chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}"
        for byte in os.fsencode(name)
    )
    return f"$'{''.join(chars)}'"
