"""Make of a checkpoint as it was found the checkpoint as it is used: one table of rules.

Every loader of the field reads checkpoints whose names, heads and configuration differ from the
published form. What such a checkpoint means is decided here, once, from the data; all that reads a
``Checkpoint`` then sees the published form. ``prepare`` writes that form down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vacc_deploy.checkpoint.generation_config import token_lookup
from vacc_deploy.checkpoint.header import ShardHeader, TensorInfo
from vacc_deploy.checkpoint.spare_tensors import find_spare, find_zero_biases, is_spare
from vacc_deploy.checkpoint.stored import same_values
from vacc_deploy.checkpoint.tensor_names import (
    Renaming,
    drop_wrappers,
    published_names,
    settle_prefixes,
)
from vacc_deploy.errors import name_some
from vacc_deploy.formats.dtypes import DTYPES, STORED_FLOATS, used_dtype
from vacc_deploy.formats.layouts import rounds_when_run
from vacc_deploy.models.config import CONFIG_NAME, EMBEDDING, LM_HEAD
from vacc_deploy.models.settle import Applied, preview_config, settle_config
from vacc_deploy.problems.files import STORED_TWICE
from vacc_deploy.problems.problem import Problem

# The rules by which the source's index does not hold for the output.
ABSENT_ENTRIES, INDEX_NAMES, INDEX_PLACES = "absent-entries", "index-names", "index-places"
INDEX_RULES = {ABSENT_ENTRIES, INDEX_NAMES, INDEX_PLACES}


@dataclass
class Found:
    """A checkpoint on its way from how it was found to how it is used.

    Attributes:
        raw: the values of ``config.json``.
        tensors: what is used, by the name under which it is used.
        weight_map: the index, by the stored names; None without one.
        aliases: names that the files' metadata give for tensors which are stored under another.
        spare: stored tensors that no loader reads, by their names.
        problems: what cannot be settled.
    """

    raw: dict[str, Any]
    tensors: dict[str, TensorInfo]
    weight_map: dict[str, str] | None
    aliases: Mapping[str, str]
    spare: dict[str, TensorInfo] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def rename(self, names: Mapping[str, str]) -> None:
        """Use tensors under other names; ``names`` has the new name of each that changes.

        Of two equal tensors under one name one is used; two different ones are a problem.
        """
        renamed = {name: info for name, info in self.tensors.items() if name not in names}
        for name, new in names.items():
            info = self.tensors[name]
            if new not in renamed:
                renamed[new] = replace(info, name=new)
            elif same_values(renamed[new], info):
                self.spare[name] = info
            else:
                text = (
                    f"{new} is stored twice, as {renamed[new].stored_name} and {info.stored_name}, "
                    "with different values"
                )
                self.problems.append(STORED_TWICE.broken(text, where=new))
        self.tensors = renamed

    def says_one(self, absent: str, stored: str) -> bool:
        """Return whether a file's metadata say that one tensor is stored under another's name."""
        absent, stored = (name.removeprefix("model.") for name in (absent, stored))
        return any(
            f".{key}".endswith(f".{absent}") and f".{value}".endswith(f".{stored}")
            for key, value in self.aliases.items()
        )

    def take_out(self, name: str) -> None:
        """Leave a tensor unused."""
        self.spare[name] = self.tensors.pop(name)


def _rename_by(rule: Callable[[Collection[str]], Renaming]) -> Callable[[Found], str]:
    """Return the function of a rule that changes names."""

    def apply(found: Found) -> str:
        names, note = rule(found.tensors)
        found.rename(names)
        return note if names else ""

    return apply


def _settle_index_names(found: Found) -> str:
    """Write an index entry under the name that its tensor has in the file."""
    weight_map = found.weight_map or {}
    stored = {info.name: info.stored_name for info in found.tensors.values()}
    held = {*stored.values(), *(info.stored_name for info in found.spare.values())}
    # A name that a file holds is the right one, whatever it would become.
    other = {
        name: stored[new]
        for name, new in published_names(weight_map).items()
        if name not in held and new in stored and stored[new] not in weight_map
    }
    if not other:
        return ""
    found.weight_map = {other.get(name, name): file for name, file in weight_map.items()}
    return (
        f"the index lists {len(other):,} tensors under other names than the files; those of the "
        "files count."
    )


def _drop_spare_tensors(found: Found) -> str:
    """Leave out what no loader reads."""
    names = find_spare(found.tensors, found.raw.get("architectures"))
    for name in names:
        found.take_out(name)
    if not names:
        return ""
    listed = name_some([f"{name:.80}" for name in names], 3)
    return f"{listed}: tensors that no loader reads are left out."


def _drop_zero_biases(found: Found) -> str:
    """Leave out biases of zero that the architecture does not have."""
    config = preview_config(found.raw, where=CONFIG_NAME)
    names = find_zero_biases(found.tensors, config.expected_tensors())
    for name in names:
        found.take_out(name)
    if not names:
        return ""
    listed = f"{names[0]:.80}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    return f"{listed}: biases of zeros, which this architecture does not have, are left out."


def _settle_head_only(found: Found) -> str:
    """Use a head as the embedding too, where only the head of a tied model is stored."""
    is_alias = found.says_one(EMBEDDING, LM_HEAD)
    if EMBEDDING in found.tensors or LM_HEAD not in found.tensors:
        return ""
    if not (is_alias or found.raw.get("tie_word_embeddings") is True):
        return ""
    found.raw["tie_word_embeddings"] = True
    found.tensors = {
        EMBEDDING if name == LM_HEAD else name: info for name, info in found.tensors.items()
    }
    found.tensors[EMBEDDING] = replace(found.tensors[EMBEDDING], name=EMBEDDING)
    return f"only {LM_HEAD} is stored; the embedding and the head are one (tied), so it is both."


def _settle_embedding_only(found: Found) -> str:
    """Tie the head where the file itself says that it is the embedding."""
    is_alias = found.says_one(LM_HEAD, EMBEDDING)
    is_stored = EMBEDDING in found.tensors and LM_HEAD not in found.tensors
    if not (is_alias and is_stored) or found.raw.get("tie_word_embeddings") is True:
        return ""
    found.raw["tie_word_embeddings"] = True
    return (
        "config.json does not tie the head to the embedding, but the weight file says that they "
        "are one; tie_word_embeddings is true."
    )


def _settle_two_heads(found: Found) -> str:
    """Decide by the data between a head that is stored and a configuration that ties it."""
    if found.raw.get("tie_word_embeddings") is not True or not {EMBEDDING, LM_HEAD} <= set(
        found.tensors
    ):
        return ""
    if same_values(found.tensors[EMBEDDING], found.tensors[LM_HEAD]):
        found.take_out(LM_HEAD)
        return f"{LM_HEAD} equals the embedding, to which config.json ties it; it is left out."
    found.raw["tie_word_embeddings"] = False
    return (
        f"config.json ties the head to the embedding, but {LM_HEAD} is stored and differs from "
        f"{EMBEDDING}; the stored head is used, and tie_word_embeddings is false."
    )


def _drop_absent_entries(found: Found) -> str:
    """Leave out index entries of tensors that are stored nowhere and that no loader misses."""
    if found.weight_map is None:
        return ""
    stored = {info.stored_name for info in (*found.tensors.values(), *found.spare.values())}
    is_tied = found.raw.get("tie_word_embeddings") is True
    absent = []
    for name in found.weight_map.keys() - stored:
        is_head = name.endswith(LM_HEAD) and is_tied
        if is_head or name in found.tensors or is_spare(name):
            absent.append(name)
    for name in absent:
        del found.weight_map[name]
    names = ", ".join(sorted(absent)[:3])
    return f"the index lists {names}, which no file holds and no loader misses." if absent else ""


def _settle_index_places(found: Found) -> str:
    """Let the files say where a tensor is, where the index knows all of them but not their places.

    Loaders read every tensor of a file that the index names.
    """
    infos = (*found.tensors.values(), *found.spare.values())
    held = {info.stored_name: info.path.name for info in infos}
    weight_map = found.weight_map
    if weight_map is None or weight_map == held or weight_map.keys() - held.keys():
        return ""
    count = sum(weight_map.get(name) != file for name, file in held.items())
    found.weight_map = held
    return (
        f"the index and the files do not agree on the place of {count:,} tensors; the files count."
    )


def _drop_left_over_quantization(found: Found) -> str:
    """Leave out what is said of quantized weights where every weight is a float of its own name."""
    stated, bits = found.raw.get("quantization_config"), found.raw.get("quantization_bit")
    is_float = all(
        info.dtype in STORED_FLOATS and name.endswith((".weight", ".bias"))
        for name, info in found.tensors.items()
    )
    # With 8 bits it is a directory of ours, which lacks its codes.
    if not (is_float and (stated is not None or bits)) or bits == 8 or rounds_when_run(stated):
        return ""
    for key in ("quantization_config", "quantization_bit"):
        found.raw.pop(key, None)
    method = stated.get("quant_method") if isinstance(stated, dict) else stated
    key, value = ("quantization_bit", bits) if stated is None else ("quantization_config", method)
    return (
        f"config.json has a {key} ({value!r:.40}), but every weight is a float: it is left over "
        "from a base model and left out."
    )


def _read_float64(found: Found) -> str:
    count = sum(info.dtype == "F64" for info in found.tensors.values())
    return f"{count:,} tensors are float64; they are read as float32." if count else ""


# Each changes what was found and returns a sentence that tells what; an empty text where it does
# not apply. The names stand in notes and manifests; docs/prepare.md says what each does.
RULES: dict[str, Callable[[Found], str]] = {
    "wrappers": _rename_by(drop_wrappers),
    "prefix": _rename_by(settle_prefixes),
    INDEX_NAMES: _settle_index_names,
    "spare-tensors": _drop_spare_tensors,
    "zero-biases": _drop_zero_biases,
    "head-only": _settle_head_only,
    "embedding-only": _settle_embedding_only,
    "two-heads": _settle_two_heads,
    ABSENT_ENTRIES: _drop_absent_entries,
    INDEX_PLACES: _settle_index_places,
    "left-over-quantization": _drop_left_over_quantization,
    "float64": _read_float64,
}


def normalize(
    raw: Mapping[str, Any],
    shards: Mapping[str, ShardHeader],
    weight_map: Mapping[str, str] | None,
    directory: Path,
) -> tuple[Found, tuple[Applied, ...]]:
    """Return the checkpoint as it is used, and the rules that have changed something.

    Args:
        raw: values of ``config.json``; not changed.
        shards: the checked headers of all files.
        weight_map: the index; not changed.
        directory: where the checkpoint lies, for its tokenizer.

    Raises:
        CheckpointError: a file was changed since its header was read.
    """
    tensors = {info.name: info for shard in shards.values() for info in shard.tensors}
    aliases = {k: v for shard in shards.values() for k, v in shard.metadata.items()}
    index = dict(weight_map) if weight_map is not None else None
    found = Found(dict(raw), tensors, index, aliases)
    applied = [Applied(name, note) for name, rule in RULES.items() if (note := rule(found))]
    settler = settle_config(found.raw, _most_stored(found.tensors), token_lookup(directory))
    found.raw = settler.values
    return found, (*applied, *settler.applied)


def _most_stored(tensors: Mapping[str, TensorInfo]) -> str | None:
    """Return torch's name of the float dtype of most bytes."""
    num_bytes = Counter[str]()
    for info in tensors.values():
        if info.dtype in STORED_FLOATS:
            num_bytes[used_dtype(info.dtype)] += info.num_bytes
    return DTYPES[max(num_bytes, key=num_bytes.__getitem__)].torch_name if num_bytes else None
