"""Make of a checkpoint as it was found the checkpoint as it is used: one table of rules.

Every loader of the field reads checkpoints whose names, heads and configuration differ from the
published form. What such a checkpoint means is decided here, once, from the data; all that reads a
``Checkpoint`` then sees the published form. ``prepare`` writes that form down.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vacc_deploy.checkpoint.generation_config import token_lookup
from vacc_deploy.checkpoint.header import ShardHeader, TensorInfo
from vacc_deploy.checkpoint.stored import read_values, stored_bytes
from vacc_deploy.errors import name_some
from vacc_deploy.formats.dtypes import DTYPES, STORED_FLOATS, used_dtype
from vacc_deploy.models.config import EMBEDDING, LM_HEAD
from vacc_deploy.models.settle import Applied, settle_config

ABSENT_ENTRIES = "absent-entries"
_VALUES_AT_ONCE = 1 << 20  # of two heads that are compared
# Modules that only wrap others; their names stand anywhere in a tensor's name.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# In every checkpoint of these architectures; what stands in front of it is the prefix.
_ANCHOR = "layers.0.input_layernorm.weight"
_BODY = ("layers.", "embed_tokens.", "norm.", "rotary_emb.")
# Buffers that loaders compute anew, and heads that are for training or scoring.
_SPARE = re.compile(
    r"(?:.*\.)?rotary_emb\.\w+"
    r"|.*\.self_attn\.(?:masked_bias|bias)|(?:.*\.)?position_ids"
    r"|(?:.*\.)?(?:v_head|value_head|score|reward_head|regression_head)\..*"
)


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
    problems: list[str] = field(default_factory=list)

    def rename(self, change: Callable[[str], str]) -> int:
        """Use every tensor under a changed name; return how many have changed."""
        renamed, count = dict[str, TensorInfo](), 0
        for name, info in self.tensors.items():
            new = change(name)
            count += new != name
            if new in renamed:
                self.problems.append(
                    f"{new} is stored twice, as {renamed[new].stored_name} and {info.stored_name}"
                )
            renamed[new] = replace(info, name=new)
        self.tensors = renamed
        return count

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


def _drop_wrappers(found: Found) -> str:
    """Leave out the parts of names that ``_WRAPPERS`` leave."""
    dropped = Counter[str]()

    def change(name: str) -> str:
        parts = name.split(".")
        dropped.update(_WRAPPERS.intersection(parts))
        return ".".join(part for part in parts if part not in _WRAPPERS)

    count = found.rename(change)
    wrappers = ", ".join(sorted(dropped))
    return f"left {wrappers} out of the names of {count:,} tensors." if count else ""


def _settle_prefix(found: Found) -> str:
    """Read names without ``model.``, or with another prefix in its place, as if they began so."""
    anchors = [name for name in found.tensors if f".{name}".endswith(f".{_ANCHOR}")]
    heads = [name for name in found.tensors if f".{name}".endswith(f".{LM_HEAD}")]
    # Of two models in one file neither is the one to take.
    prefix = anchors[0].removesuffix(_ANCHOR) if len(anchors) == 1 else "model."
    head = heads[0] if len(heads) == 1 else LM_HEAD

    def change(name: str) -> str:
        if name == head:
            return LM_HEAD
        rest = name.removeprefix(prefix)
        is_body = name.startswith(prefix) and rest.startswith(_BODY)
        return f"model.{rest}" if is_body else name

    if not found.rename(change):
        return ""
    if prefix != "model.":
        stated = f"begin with {prefix!r}, not" if prefix else "do not begin with"
        return f"the names of the tensors {stated} 'model.'; they are read as if they did."
    return f"{head} is read as {LM_HEAD}."


def _drop_spare_tensors(found: Found) -> str:
    """Leave out what no loader reads: see ``_SPARE``."""
    names = [name for name in found.tensors if _SPARE.fullmatch(name)]
    for name in names:
        found.take_out(name)
    if not names:
        return ""
    return f"{name_some(names, 3)}: tensors that no loader reads are left out."


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
        if is_head or name in found.tensors or _SPARE.fullmatch(name):
            absent.append(name)
    for name in absent:
        del found.weight_map[name]
    names = ", ".join(sorted(absent)[:3])
    return f"the index lists {names}, which no file holds and no loader misses." if absent else ""


def _drop_left_over_quantization(found: Found) -> str:
    """Leave out a ``quantization_config`` where every weight is a float of its own name."""
    stated = found.raw.get("quantization_config")
    is_float = all(
        info.dtype in STORED_FLOATS and name.endswith((".weight", ".bias"))
        for name, info in found.tensors.items()
    )
    if not stated or found.raw.get("quantization_bit") or not is_float:
        return ""
    del found.raw["quantization_config"]
    method = stated.get("quant_method") if isinstance(stated, dict) else stated
    return (
        f"config.json has a quantization_config ({method!r:.40}), but every weight is a float: it "
        "is left over from a base model and left out."
    )


def _read_float64(found: Found) -> str:
    count = sum(info.dtype == "F64" for info in found.tensors.values())
    return f"{count:,} tensors are float64; they are read as float32." if count else ""


# Each changes what was found and returns a sentence that tells what; an empty text where it does
# not apply. The names stand in notes and manifests; docs/prepare.md says what each does.
RULES: dict[str, Callable[[Found], str]] = {
    "wrappers": _drop_wrappers,
    "prefix": _settle_prefix,
    "spare-tensors": _drop_spare_tensors,
    "head-only": _settle_head_only,
    "embedding-only": _settle_embedding_only,
    "two-heads": _settle_two_heads,
    ABSENT_ENTRIES: _drop_absent_entries,
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
        CheckpointError: a file became shorter since its header was read.
    """
    tensors = {info.name: info for shard in shards.values() for info in shard.tensors}
    aliases = {k: v for shard in shards.values() for k, v in shard.metadata.items()}
    index = dict(weight_map) if weight_map is not None else None
    found = Found(dict(raw), tensors, index, aliases)
    applied = [Applied(name, note) for name, rule in RULES.items() if (note := rule(found))]
    settler = settle_config(found.raw, _most_stored(found.tensors), token_lookup(directory))
    found.raw = settler.values
    return found, (*applied, *settler.applied)


def same_values(left: TensorInfo, right: TensorInfo) -> bool:
    """Return whether two stored tensors are the same matrix of floats, whatever their dtypes."""
    if left.shape != right.shape or not {left.dtype, right.dtype} <= set(STORED_FLOATS):
        return False
    # Piece by piece: neither is ever whole in memory.
    if left.dtype == right.dtype:
        pieces = zip(stored_bytes(left), stored_bytes(right), strict=True)
        return all(mine.tobytes() == its.tobytes() for mine, its in pieces)
    count = math.prod(left.shape)
    for start in range(0, count, _VALUES_AT_ONCE):
        stop = min(start + _VALUES_AT_ONCE, count)
        # float64 holds the values of every other float.
        if (read_values(left, start, stop).double() != read_values(right, start, stop)).any():
            return False
    return True


def _most_stored(tensors: Mapping[str, TensorInfo]) -> str | None:
    """Return torch's name of the float dtype of most bytes."""
    num_bytes = Counter[str]()
    for info in tensors.values():
        if info.dtype in STORED_FLOATS:
            num_bytes[used_dtype(info.dtype)] += info.num_bytes
    return DTYPES[max(num_bytes, key=num_bytes.__getitem__)].torch_name if num_bytes else None
