"""The content of a vamc compile file as frozen records, and how plain values become records.

The field names are the vendor's keys. What the values may be is in ``compile_rules``.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any

_TEXTS = {str: "text", int: "a whole number", bool: "true or false"}


@dataclass(frozen=True)
class SequenceLengths:
    """``[[prefill], [total]]``: the longest prompt, and the longest prompt with its answer."""

    prefill: int
    total: int


@dataclass(frozen=True)
class Shape:
    """``frontend.shape``."""

    input_ids: SequenceLengths


@dataclass(frozen=True)
class ModelKwargs:
    """``frontend.model_kwargs``: b2s is on for throughput and off for latency (llm/README)."""

    b2s: bool
    tp: int
    model_arch: str
    align_qkv: bool | None = None


@dataclass(frozen=True)
class Quantize:
    """``frontend.quantize``, of int8 files only."""

    type: str
    device: str | None = None
    calib_args: Mapping[str, Any] | None = field(default=None, hash=False)


@dataclass(frozen=True)
class Frontend:
    """``frontend``: what is compiled."""

    checkpoint: str
    type: str
    shape: Shape
    model_kwargs: ModelKwargs
    quantize: Quantize | None = None


@dataclass(frozen=True)
class CompileOptions:
    """``backend.compile``."""

    data_type: int
    gather_data_vccl_dsp_enable: bool


@dataclass(frozen=True)
class Backend:
    """``backend``: what it is compiled to."""

    type: str
    dtype: str
    merge_params: bool
    compile: CompileOptions


@dataclass(frozen=True)
class Dataset:
    """``dataset``: the calibration text of vamc's own quantizer."""

    type: str
    name: str
    path: str
    nsamples: int
    seqlen: int


@dataclass(frozen=True)
class Workspace:
    """``workspace``: where vamc writes, and with how many processes."""

    path: str
    workers: int


@dataclass(frozen=True)
class CompileFile:
    """One vamc compile file."""

    name: str
    frontend: Frontend
    backend: Backend
    workspace: Workspace
    dataset: Dataset | None = None

    def to_mapping(self) -> dict[str, Any]:
        """Return the vendor's nested mapping, keys in the order of the published files."""
        values = _to_plain(self)
        order = ("name", "frontend", "backend", "dataset", "workspace")
        return {key: values[key] for key in order if key in values}


def _to_plain(record: Any) -> Any:
    if isinstance(record, SequenceLengths):
        return [[record.prefill], [record.total]]
    if not dataclasses.is_dataclass(record):
        return dict(record) if isinstance(record, Mapping) else record
    pairs = ((item.name, getattr(record, item.name)) for item in dataclasses.fields(record))
    return {name: _to_plain(value) for name, value in pairs if value is not None}


class RecordReader:
    """Builds records from plain values; collects problems, and every good value by its path."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.values: dict[str, Any] = {}

    def record(self, kind: type, value: Any, path: str) -> Any:
        """Return ``value`` as a record of the dataclass ``kind``; None once there is a problem."""
        if not isinstance(value, dict):
            at = path or "the file"
            self.problems.append(f"{at}: got {show_value(value)}, expected a block of keys")
            return None
        if path:
            self.values[path] = True
        prefix = f"{path}." if path else ""
        items = {item.name: item for item in dataclasses.fields(kind)}
        self._refuse_unknown(value, items, prefix)
        hints = typing.get_type_hints(kind)
        built: dict[str, Any] = {}
        for name, item in items.items():
            if name in value:
                built[name] = self._value(hints[name], value[name], prefix + name)
            elif item.default is dataclasses.MISSING:
                self.problems.append(f"{prefix}{name}: missing; the vendor's files have it")
        return None if self.problems else kind(**built)

    def _refuse_unknown(self, value: dict[Any, Any], known: Mapping[str, Any], prefix: str) -> None:
        for key in value:
            if key in known:
                continue
            text = key[:60] if isinstance(key, str) else ""
            near = difflib.get_close_matches(text, list(known), n=1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            self.problems.append(f"{prefix}{show_value(key, quote=False)}: unknown key; {hint}")

    def _value(self, hint: Any, value: Any, path: str) -> Any:
        if isinstance(hint, UnionType):
            hint = typing.get_args(hint)[0]
        if hint is SequenceLengths:
            return self._lengths(value, path)
        if dataclasses.is_dataclass(hint):
            return self.record(typing.cast(type, hint), value, path)
        if hint not in _TEXTS:
            return self._scalars(value, path)
        if type(value) is not hint:
            self.problems.append(f"{path}: got {show_value(value)}, expected {_TEXTS[hint]}")
            return None
        if hint is int and value.bit_length() > 32:
            self.problems.append(f"{path}: got {show_value(value)}, which is far too large")
            return None
        self.values[path] = value
        return value

    def _lengths(self, value: Any, path: str) -> SequenceLengths | None:
        rows = value if isinstance(value, list) else []
        flat = [row[0] for row in rows if isinstance(row, list) and len(row) == 1]
        whole = all(type(item) is int and item.bit_length() <= 32 for item in flat)
        if len(rows) != 2 or len(flat) != 2 or not whole:
            self.problems.append(
                f"{path}: got {show_value(value)}, expected [[prefill], [total]] with one whole "
                "number each, as in the vendor's files of language models"
            )
            return None
        self.values[path] = lengths = SequenceLengths(*flat)
        return lengths

    def _scalars(self, value: Any, path: str) -> dict[str, Any] | None:
        good = isinstance(value, dict) and all(
            isinstance(key, str) and isinstance(item, (bool, int, float, str))
            for key, item in value.items()
        )
        if not good:
            self.problems.append(
                f"{path}: got {show_value(value)}, expected keys with plain values"
            )
            return None
        return dict(value)


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
