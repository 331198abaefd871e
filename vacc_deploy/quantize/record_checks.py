"""Check what a record of an interrupted run says, before anything of it is used.

The partial directory may be a stranger's, or its disk may have failed.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from vacc_deploy.bounds import HEADER_NUMBER, RECORD_NUMBER, TENSOR_NAME
from vacc_deploy.solver.records import LinearRecord

_SHA256 = re.compile(r"[0-9a-f]{64}")
_METHODS = ("gptq", "rtn")
# Of the fields of a ``LinearRecord``: whole numbers, and numbers that may be missing.
_COUNTS = ("num_saturated", "num_pinned")
_OPTIONAL = ("error_gptq", "error_rtn", "dampening_frac")
_NUMBERS = (*_OPTIONAL, "correction", "scale_shrink")


def read_identity(value: Any) -> dict[str, Any]:
    """Return the identity of a run: names with plain values.

    Raises:
        ValueError: says what is wrong.
    """
    if not isinstance(value, dict):
        raise ValueError("it lacks the run's identity")
    for name, plain in value.items():
        if len(name) > TENSOR_NAME or not name.isprintable():
            raise ValueError(f"the identity has the name {name!r:.80}")
        is_plain = plain is None or isinstance(plain, (bool, int, float, str))
        is_weight = name.startswith("calibration sources ") and name.endswith(" weight")
        if not is_plain or (is_weight and not isinstance(plain, (int, float))):
            raise ValueError(f"the identity has {plain!r:.80} as {name!r:.80}")
    return value


def read_number(value: Any) -> float:
    """Return a finite number, zero or above.

    Raises:
        ValueError: it is none.
    """
    if type(value) not in (int, float) or not 0 <= value <= RECORD_NUMBER:
        raise ValueError(f"a number is {value!r:.40}")
    return float(value)


def read_files(value: Any) -> dict[str, tuple[int, str]]:
    """Return path to size and SHA-256 of a shard's files."""
    files = {}
    for name, entry in _items(value):
        if not isinstance(entry, list) or len(entry) != 2:
            raise ValueError(f"the file {name!r:.80} has {entry!r:.80}")
        size, sha256 = entry
        if type(size) is not int or not 0 <= size <= HEADER_NUMBER:
            raise ValueError(f"the file {name!r:.80} has the size {size!r:.40}")
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise ValueError(f"the file {name!r:.80} has the hash {sha256!r:.80}")
        files[name] = (size, sha256)
    return files


def read_linear(value: Any) -> LinearRecord:
    """Return the record of one linear.

    Raises:
        ValueError: a field is missing, unknown or impossible.
    """
    names = {item.name for item in fields(LinearRecord)}
    if not isinstance(value, dict) or value.keys() != names:
        found = sorted(value) if isinstance(value, dict) else value
        raise ValueError(f"the record of a linear is {found!r:.200}, expected {sorted(names)}")
    name, method = value["name"], value["method"]
    if not isinstance(name, str) or len(name) > TENSOR_NAME or method not in _METHODS:
        raise ValueError(f"the record of a linear is {value!r:.80}")
    for key in _NUMBERS:
        # A relative error may be infinite: that of an output that is zero.
        is_missing = value[key] is None and key in _OPTIONAL
        if not is_missing and value[key] != math.inf:
            read_number(value[key])
    for key in _COUNTS:
        if type(value[key]) is not int or not 0 <= value[key] <= RECORD_NUMBER:
            raise ValueError(f"{key} of {name!r:.80} is {value[key]!r:.40}")
    return LinearRecord(**value)


def read_texts(value: Any) -> dict[str, str]:
    """Return name to text."""
    pairs = _items(value)
    if not all(isinstance(text, str) for _, text in pairs):
        raise ValueError("the scales are no texts")
    return dict(pairs)


def read_seconds(value: Any) -> dict[str, float]:
    """Return name to seconds."""
    return {name: read_number(seconds) for name, seconds in _items(value)}


def _items(value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.80} stands in place of an object")
    return list(value.items())


def unpack_scale(text: str, num_rows: int) -> torch.Tensor:
    """Return a scale float16 [num_rows] of its base64.

    Raises:
        ValueError: it is no base64, or not of so many rows, or a value is no scale.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as err:
        raise ValueError("a scale is no base64") from err
    # One value alone would be taken for the scale of every row.
    if len(data) != 2 * num_rows:
        raise ValueError(f"a scale has {len(data):,} bytes, expected {2 * num_rows:,}")
    # A bytearray: torch warns of memory that must not be written to.
    scale = torch.frombuffer(bytearray(data), dtype=torch.float16)
    if not bool((torch.isfinite(scale) & (scale >= 0)).all()):
        raise ValueError("a scale holds a value that is none")
    return scale


def find_problem(
    records: tuple[LinearRecord, ...],
    scales: Mapping[str, str],
    linears: Mapping[str, tuple[int, int]],
    *,
    needs_scales: bool,
) -> str:
    """Return what is wrong with the record of a shard, or an empty text.

    Args:
        records: of its linears.
        scales: linear to its scales in base64.
        linears: the linears that the shard has, name to [out, in].
        needs_scales: whether no format stores the scales.
    """
    if sorted(record.name for record in records) != sorted(linears):
        return f"it has records of {len(records)} linears, expected {len(linears)} by their names"
    if scales.keys() != (linears.keys() if needs_scales else set()):
        return f"it has scales of {len(scales)} linears"
    try:
        for name, text in scales.items():
            unpack_scale(text, linears[name][0])
    except ValueError as err:
        return str(err)
    return ""
