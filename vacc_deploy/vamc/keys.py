"""The keys of a vamc compile file, and what each of them holds.

A file is a nested mapping, as YAML gives it. Rules and messages name a value by its dotted path,
for example ``frontend.model_kwargs.tp``. Which values are allowed is in ``rules``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

# Each kind returns what is wrong with a value, as the end of a message; nothing for a good one.
Kind = Callable[[Any], str]


def _of_type(kind: type, name: str) -> Kind:
    # The exact type: true is an int in Python.
    return lambda value: "" if type(value) is kind else f"expected {name}"


_text = _of_type(str, "text")
_flag = _of_type(bool, "true or false")
_block = _of_type(dict, "a block of keys")


def _whole_number(value: Any) -> str:
    wrong = _of_type(int, "a whole number")(value)
    return wrong or ("which is far too large" if value.bit_length() > 32 else "")


def _lengths(value: Any) -> str:
    is_pair = isinstance(value, list) and len(value) == 2
    if is_pair and all(
        isinstance(row, list) and len(row) == 1 and not _whole_number(row[0]) for row in value
    ):
        return ""
    return (
        "expected [[prefill], [total]] with one whole number each, as in the vendor's files of "
        "language models"
    )


def _plain_values(value: Any) -> str:
    if isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(item, (bool, int, float, str))
        for key, item in value.items()
    ):
        return ""
    return "expected keys with plain values"


class Key(NamedTuple):
    """What one key holds, and whether every file that has its block has the key too."""

    kind: Kind
    required: bool = True


# In the order of the published files. A block stands before the keys in it.
KEYS = {
    "name": Key(_text),
    "frontend": Key(_block),
    "frontend.checkpoint": Key(_text),
    "frontend.type": Key(_text),
    "frontend.shape": Key(_block),
    # The longest prompt, and the longest prompt with its answer.
    "frontend.shape.input_ids": Key(_lengths),
    "frontend.model_kwargs": Key(_block),
    # On for throughput, off for latency (the vendor's llm/README).
    "frontend.model_kwargs.b2s": Key(_flag),
    "frontend.model_kwargs.tp": Key(_whole_number),
    "frontend.model_kwargs.model_arch": Key(_text),
    "frontend.model_kwargs.align_qkv": Key(_flag, required=False),
    "frontend.quantize": Key(_block, required=False),
    "frontend.quantize.type": Key(_text),
    "frontend.quantize.device": Key(_text, required=False),
    "frontend.quantize.calib_args": Key(_plain_values, required=False),
    "backend": Key(_block),
    "backend.type": Key(_text),
    "backend.dtype": Key(_text),
    "backend.merge_params": Key(_flag),
    "backend.compile": Key(_block),
    "backend.compile.data_type": Key(_whole_number),
    "backend.compile.gather_data_vccl_dsp_enable": Key(_flag),
    # The calibration text of vamc's own quantizer.
    "dataset": Key(_block, required=False),
    "dataset.type": Key(_text),
    "dataset.name": Key(_text),
    "dataset.path": Key(_text),
    "dataset.nsamples": Key(_whole_number),
    "dataset.seqlen": Key(_whole_number),
    "workspace": Key(_block),
    "workspace.path": Key(_text),
    "workspace.workers": Key(_whole_number),
}


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested mapping of values by dotted path; a value of None leaves its key out."""
    content: dict[str, Any] = {}
    for path, value in values.items():
        if value is None:
            continue
        # Parents are made as their first key comes, so the order of `values` is that of the file.
        *blocks, name = path.split(".")
        block = content
        for parent in blocks:
            block = block.setdefault(parent, {})
        block[name] = value
    return content


def read_keys(content: Any) -> tuple[dict[str, Any], list[str]]:
    """Compare parsed values with ``KEYS``.

    Returns:
        The values of the right kind by dotted path, blocks included, and the problems found.
    """
    if wrong := _block(content):
        return {}, [f"the file: got {show_value(content)}, {wrong}"]
    values: dict[str, Any] = {}
    problems = []
    # The blocks found so far by path; the file itself is the block without a name.
    blocks = {"": content}
    for path, key in KEYS.items():
        parent, _, name = path.rpartition(".")
        block = blocks.get(parent, {})
        if name not in block:
            # The keys of an absent block are not missed one by one.
            if key.required and parent in blocks:
                problems.append(f"{path}: missing; the vendor's files have it")
            continue
        value = block[name]
        if wrong := key.kind(value):
            problems.append(f"{path}: got {show_value(value)}, {wrong}")
            continue
        values[path] = value
        # A block of the wrong kind is reported once; its keys are then not looked for.
        if key.kind is _block:
            blocks[path] = value
    for path, block in blocks.items():
        problems += _unknown_keys(block, f"{path}." if path else "")
    return values, problems


def _unknown_keys(block: Mapping[Any, Any], prefix: str) -> Iterator[str]:
    inside = (path.removeprefix(prefix) for path in KEYS if path.startswith(prefix))
    known = [name for name in inside if "." not in name]
    for key in block:
        if key in known:
            continue
        near = difflib.get_close_matches(key[:60] if isinstance(key, str) else "", known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        yield f"{prefix}{show_value(key, quote=False)}: unknown key; {hint}"


def show_value(value: Any, *, quote: bool = True, depth: int = 2) -> str:
    """Return a short text of a stranger's value, whatever its size."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str):
        short = value if len(value) <= 60 else value[:57] + "..."
        return repr(short) if quote or not short.isprintable() else short
    if value is None:
        return "nothing"
    if isinstance(value, (bool, int, float)):
        return str(value).lower()
    if isinstance(value, list):
        inner = ", ".join(show_value(item, depth=depth - 1) for item in value[:3]) if depth else ""
        return f"[{inner}{', ...' if len(value) > 3 or not depth else ''}]"
    return "a block of keys" if isinstance(value, dict) else f"a {type(value).__name__}"
