"""The keys of a vamc compile file, and what each of them holds.

A file is a nested mapping, as YAML gives it. Rules and messages name a value by its dotted path,
for example ``frontend.model_kwargs.tp``. Which values are allowed is in ``rules``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from vacc_deploy.problems.compile_file import (
    KEY_OF_OTHERS,
    MISSING_KEY,
    MISSING_SETTING,
    OTHER_KIND,
    UNKNOWN_KEY,
    WRONG_TYPE,
)
from vacc_deploy.problems.problem import Problem, Rule

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
    """What one key holds.

    Attributes:
        kind: returns what is wrong with a value.
        missing: the rule that a file breaks which has the key's block and not the key; None where
            the key may be left out.
        published: the value of all published files of language models, where they agree.
    """

    kind: Kind
    missing: Rule | None = MISSING_KEY
    published: Any = None


# Those that rules ask for.
MODEL_KWARGS, QUANTIZE, DTYPE = "frontend.model_kwargs", "frontend.quantize", "backend.dtype"
CHECKPOINT = "frontend.checkpoint"
TP, LENGTHS = f"{MODEL_KWARGS}.tp", "frontend.shape.input_ids"

# In the order of the published files. A block stands before the keys in it. Missing is an error
# for what all 73 published files of this frontend have, and a warning for what some do without.
KEYS = {
    "name": Key(_text),
    "frontend": Key(_block),
    "frontend.checkpoint": Key(_text),
    "frontend.type": Key(_text, published="huggingface"),
    "frontend.shape": Key(_block),
    # The longest prompt, and the longest prompt with its answer.
    "frontend.shape.input_ids": Key(_lengths),
    "frontend.model_kwargs": Key(_block, MISSING_SETTING),
    # On for throughput, off for latency (the vendor's llm/README).
    "frontend.model_kwargs.b2s": Key(_flag, MISSING_SETTING, published=True),
    "frontend.model_kwargs.tp": Key(_whole_number, MISSING_SETTING),
    "frontend.model_kwargs.model_arch": Key(_text, MISSING_SETTING, published="vacc"),
    "frontend.model_kwargs.align_qkv": Key(_flag, None),
    "frontend.quantize": Key(_block, None),
    "frontend.quantize.type": Key(_text),
    "frontend.quantize.device": Key(_text, None),
    "frontend.quantize.calib_args": Key(_plain_values, None),
    "backend": Key(_block),
    "backend.type": Key(_text, MISSING_SETTING, published="tvm_vacc"),
    "backend.dtype": Key(_text),
    "backend.merge_params": Key(_flag, MISSING_SETTING, published=True),
    "backend.compile": Key(_block),
    "backend.compile.data_type": Key(_whole_number, published=0),
    "backend.compile.gather_data_vccl_dsp_enable": Key(_flag, MISSING_SETTING, published=True),
    # The calibration text of vamc's own quantizer.
    "dataset": Key(_block, None),
    "dataset.type": Key(_text),
    "dataset.name": Key(_text),
    "dataset.path": Key(_text),
    "dataset.nsamples": Key(_whole_number),
    "dataset.seqlen": Key(_whole_number),
    "workspace": Key(_block),
    "workspace.path": Key(_text, published="./vacc_deploy"),
    "workspace.workers": Key(_whole_number, MISSING_SETTING, published=4),
}
_TOWER = "the vendor's files of the language part of vision models have it"
_VISION = "the vendor's files of vision towers have it"
_PINS = "the vendor's files of vision models have it, to name versions"
_SHARE = "the vendor's llm/yi/README asks vamc 2 for it, and vamc 3 decides by itself"
# Keys that the vendor publishes for other models, or for other versions of vamc.
_KEYS_OF_OTHERS = {
    "frontend.model_kwargs.enable_kv_share": _SHARE,
    "backend.enable_kv_share": _SHARE,
    "backend.compile.enable_kv_share": _SHARE,
    "backend.remove_params": _TOWER,
    "backend.compile.attention_split_num": _TOWER,
    "backend.compile.ffn_split_num": _TOWER,
    "backend.compile.stream_mode": "the vendor's files of embedding models have it",
    "backend.compile.data_transport_mode": _VISION,
    "backend.compile.llm_build": _VISION,
    "backend.compile.output_layout": _VISION,
    "backend.compile.fullatt_block_indexes": _VISION,
    "workspace.env_recheck": _PINS,
    "workspace.pyenv": _PINS,
}
# A file with one of these compiles no language model.
_VISION_KEYS = ("frontend.model_kwargs.build_visual", "frontend.shape.pixel_values")


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


def read_keys(content: Any) -> tuple[dict[str, Any], list[Problem]]:
    """Compare parsed values with ``KEYS``.

    Returns:
        The values of the right kind by dotted path, blocks included, and the problems found. Of a
        file that is not of a language model that alone is said.
    """
    if wrong := _block(content):
        text = f"the file: got {show_value(content)}, {wrong}"
        return {}, [WRONG_TYPE.broken(text, got=show_value(content), expected=_expected(wrong))]
    if of_vision := next((path for path in _VISION_KEYS if _has(content, path)), ""):
        text = f"{of_vision}: {_VISION}; only those of language models are handled"
        return {}, [OTHER_KIND.broken(text, where=of_vision)]
    values: dict[str, Any] = {}
    problems = list[Problem]()
    # The blocks found so far by path; the file itself is the block without a name.
    blocks = {"": content}
    for path, key in KEYS.items():
        parent, _, name = path.rpartition(".")
        block = blocks.get(parent, {})
        if name not in block:
            # The keys of an absent block are not missed one by one.
            if key.missing and parent in blocks:
                text = f"{path}: missing; the vendor's files have it"
                expected = "" if key.published is None else show_value(key.published, quote=False)
                problems.append(key.missing.broken(text, where=path, expected=expected))
            continue
        value = block[name]
        if wrong := key.kind(value):
            problems.append(_wrong_type(path, value, wrong))
            continue
        values[path] = value
        # A block of the wrong kind is reported once; its keys are then not looked for.
        if key.kind is _block:
            blocks[path] = value
    if problems and any(problem.rule is OTHER_KIND for problem in problems):
        return {}, [problem for problem in problems if problem.rule is OTHER_KIND]
    for path, block in blocks.items():
        problems += _unknown_keys(block, f"{path}." if path else "")
    return values, problems


def _wrong_type(path: str, value: Any, wrong: str) -> Problem:
    # Embedding models have no second length.
    is_embedding = path == LENGTHS and isinstance(value, list) and value[1:] == [[]]
    rule, got = OTHER_KIND if is_embedding else WRONG_TYPE, show_value(value)
    return rule.broken(
        f"{path}: got {got}, {wrong}", where=path, got=got, expected=_expected(wrong)
    )


def _expected(wrong: str) -> str:
    return wrong.removeprefix("expected ").partition(",")[0]


def _has(content: Mapping[Any, Any], path: str) -> bool:
    *parents, name = path.split(".")
    block: Any = content
    for parent in parents:
        block = block.get(parent) if isinstance(block, dict) else None
    return isinstance(block, dict) and name in block


def _unknown_keys(block: Mapping[Any, Any], prefix: str) -> Iterator[Problem]:
    inside = (path.removeprefix(prefix) for path in KEYS if path.startswith(prefix))
    known = [name for name in inside if "." not in name]
    for key in block:
        if key in known:
            continue
        path = f"{prefix}{show_value(key, quote=False)}"
        if reason := _KEYS_OF_OTHERS.get(path):
            yield KEY_OF_OTHERS.broken(
                f"{path}: no file of a language model has it; {reason}", where=path
            )
            continue
        near = difflib.get_close_matches(key[:60] if isinstance(key, str) else "", known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        yield UNKNOWN_KEY.broken(
            f"{path}: unknown key; {hint}", where=path, got=path, expected=near[0] if near else ""
        )


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
