"""The published names of tensors that are stored under other ones. Looks at names alone.

Trainers wrap a model in modules, and save it with their names in front of those of its tensors.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from vacc_deploy.models.config import LM_HEAD

# Modules that only wrap others; their names stand anywhere in a tensor's name.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# In every checkpoint of these architectures; what stands in front of it is the prefix.
_ANCHOR = "layers.0.input_layernorm.weight"
_BODY = ("layers.", "embed_tokens.", "norm.", "rotary_emb.")
# What may stand in front of some tensors of a model of which others have another prefix.
_PREFIX_PARTS = {"", "model", "base_model", "language_model"}


class Renaming(NamedTuple):
    """The names that change, each with its published name, and a sentence that tells it."""

    names: dict[str, str]
    note: str


def drop_wrappers(names: Collection[str]) -> Renaming:
    """Leave the names of wrapping modules out."""
    changed = {name: _unwrapped(name) for name in names if _unwrapped(name) != name}
    wrappers = sorted({part for name in changed for part in name.split(".")} & _WRAPPERS)
    note = f"left {', '.join(wrappers)} out of the names of {len(changed):,} tensors."
    return Renaming(changed, note)


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def settle_prefixes(names: Collection[str]) -> Renaming:
    """Begin the names of the body with ``model.``, and those of the head with nothing."""
    anchors = [name for name in names if f".{name}".endswith(f".{_ANCHOR}")]
    heads = [name for name in names if f".{name}".endswith(f".{LM_HEAD}")]
    # Of two models in one file neither is the one to take.
    prefix = anchors[0].removesuffix(_ANCHOR) if len(anchors) == 1 else "model."
    head = heads[0] if len(heads) == 1 else LM_HEAD
    main, other = dict[str, str](), dict[str, str]()
    for name in names:
        rest = name.removeprefix(prefix)
        if name != head and name.startswith(prefix) and rest.startswith(_BODY):
            main[name] = f"model.{rest}"
        elif name != head and len(anchors) == 1 and (rest := _body_name(name)):
            other[name] = f"model.{rest}"
    changed = {old: new for old, new in (main | other).items() if old != new}
    if head != LM_HEAD:
        changed[head] = LM_HEAD
    if other:
        # Either these change, or all of the others do.
        different = [old for old, new in other.items() if old != new] or list(main)
        example = min(different, key=len)
        note = (
            f"{len(different):,} names of tensors have another prefix than the others "
            f"({example:.80}); all are read as if they began with 'model.'."
        )
        return Renaming(changed, note)
    if prefix != "model.":
        stated = f"begin with {prefix!r:.80}, not" if prefix else "do not begin with"
        note = f"the names of the tensors {stated} 'model.'; they are read as if they did."
        return Renaming(changed, note)
    return Renaming(changed, f"{head:.80} is read as {LM_HEAD}.")


def _body_name(name: str) -> str:
    """Return what stands behind a prefix of known parts; empty where another one stands there."""
    for start in _BODY:
        front, found, rest = name.partition(start)
        if found and f".{front}".endswith(".") and _PREFIX_PARTS.issuperset(front.split(".")):
            return start + rest
    return ""


def published_names(names: Collection[str]) -> dict[str, str]:
    """Return every name with its published one."""
    unwrapped = {name: _unwrapped(name) for name in names}
    settled = settle_prefixes(unwrapped.values()).names
    return {name: settled.get(new, new) for name, new in unwrapped.items()}
