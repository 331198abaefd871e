"""Find weight files whose end was never filled: downloads that were interrupted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from vacc_deploy.checkpoint.header import ShardHeader, TensorInfo
from vacc_deploy.checkpoint.scan import TensorFacts
from vacc_deploy.formats.dtypes import DTYPES

# What a tensor is.
TABLE, LINEAR, NORM, BIAS, CODES, SCALE = "table", "linear", "norm", "bias", "codes", "scale"
# So many zeros at the end of a row are no chance: the row is cut.
_CUT_VALUES = 4
# Of a norm, which has single zeros in some models.
_CUT_NORM_VALUES = 16


class CutFile(NamedTuple):
    """A file that is zero up to its end.

    Attributes:
        start: the byte from which on it is.
        tensors: those that hold zeros, the last first.
    """

    shard: ShardHeader
    start: int
    tensors: list[str]

    def to_text(self) -> str:
        """Return the line of an error."""
        return (
            f"{self.shard.path.name} is zero from byte {self.start:,} of "
            f"{self.shard.file_bytes:,} on: its download was interrupted. Zeros stand in "
            f"{len(self.tensors)} of its {len(self.shard.tensors)} tensors, the first is "
            f"{self.tensors[-1]}"
        )


class CutFinder:
    """Knows the tensors of a checkpoint and finds the files that are cut."""

    def __init__(
        self,
        tensors: Mapping[str, TensorInfo],
        kinds: Mapping[str, str],
        facts: Mapping[str, TensorFacts],
        is_dead: Callable[[str], bool],
    ) -> None:
        """Begin.

        Args:
            tensors: all that are used, by name.
            kinds: of those that are judged, what each is.
            facts: what is known of those that were read whole.
            is_dead: whether a tensor of zeros is one with which no model can work.
        """
        self._kinds, self._facts, self._is_dead = kinds, facts, is_dead
        self._by_file = defaultdict[str, dict[str, TensorInfo]](dict)
        for name in kinds:
            if tensors[name].num_bytes:
                self._by_file[tensors[name].path.name][name] = tensors[name]
        self._padded = Counter(
            linear_of(name)
            for name, known in facts.items()
            if known.trailing_zero_rows and not known.is_zero
        )

    def find(self, shards: Mapping[str, ShardHeader]) -> Iterator[CutFile]:
        """Yield the files that are cut.

        A download that was given its space in advance and then interrupted leaves zeros to the end
        of the file, mostly from the middle of a row on.
        """
        for file, infos in self._by_file.items():
            if cut := self._look(shards[file], infos):
                yield cut

    def _look(self, shard: ShardHeader, infos: Mapping[str, TensorInfo]) -> CutFile | None:
        start, told, num_dead, is_cut = shard.file_bytes, list[str](), 0, False
        for name in sorted(infos, key=lambda n: infos[n].offset, reverse=True):
            info, known = infos[name], self._facts.get(name)
            if known is None or info.offset + info.num_bytes != start:
                break
            if known.is_zero:
                start, told = info.offset, [*told, name]
                num_dead += self._is_dead(name)
                continue
            is_cut = self._is_cut(name, known)
            if known.trailing_zeros >= _CUT_VALUES:
                start -= known.trailing_zeros * DTYPES[info.dtype].num_bytes
                told.append(name)
            break
        # A single one may have been zeroed by a program.
        return CutFile(shard, start, told) if is_cut or num_dead > 1 else None

    def _is_cut(self, name: str, facts: TensorFacts) -> bool:
        """Return whether the zeros at the end of a file's last tensor are missing data."""
        kind = self._kinds[name]
        if kind == NORM:
            return facts.trailing_zeros >= _CUT_NORM_VALUES
        if kind not in (LINEAR, TABLE) or not facts.trailing_zero_rows:
            return False
        if facts.trailing_zeros % facts.row_values >= _CUT_VALUES:
            return True
        # A single row may be a dead output.
        if facts.trailing_zero_rows == 1:
            return False
        # Whole rows: so end all the linears of a padded model, and a table behind its last token.
        # This one counts too.
        is_padded = self._padded[linear_of(name)] > 1
        return kind == LINEAR and not is_padded


def module_of(name: str) -> str:
    """Return the name of a tensor without its last part."""
    return name.rpartition(".")[0]


def linear_of(name: str) -> str:
    """Return ``q_proj`` of the name of a tensor of such a linear."""
    return module_of(name).rpartition(".")[2]
