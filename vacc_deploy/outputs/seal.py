"""A hash that a file carries of its own content: it tells whether somebody has changed the file.

No protection against who means to deceive; a user who edits a file does not mean to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from vacc_deploy.json_files import dump_json

_KEY = "seal"
_LINE = b"# Seal of all lines above: "
_COMMENT = (b"<!-- Seal of all lines above: ", b" -->")


def seal_json(values: Mapping[str, Any]) -> str:
    """Return ``values`` as the text of a JSON file with a seal."""
    return dump_json({**values, _KEY: _hash(_encode(values))})


def has_seal(values: Mapping[str, Any]) -> bool:
    """Return whether a JSON file was written with a seal, which may be broken."""
    return _KEY in values


def is_sealed_json(data: bytes, values: Mapping[str, Any]) -> bool:
    """Return whether ``data``, which holds ``values``, are as ``seal_json`` made them."""
    rest = {key: value for key, value in values.items() if key != _KEY}
    return values.get(_KEY) == _hash(_encode(rest)) and is_canonical(data, values)


def is_canonical(data: bytes, values: Mapping[str, Any]) -> bool:
    """Return whether ``data`` have the form in which all JSON files of outputs are written."""
    return data == _encode(values)


def seal_text(text: str) -> str:
    """Return ``text`` with a line behind it: a comment, in YAML."""
    data = text.encode(errors="backslashreplace")
    return f"{text}{_LINE.decode()}{_hash(data)}\n"


def seal_page(text: str) -> str:
    """Return ``text`` with a line behind it: a comment, in HTML."""
    data = text.encode(errors="backslashreplace")
    start, end = (mark.decode() for mark in _COMMENT)
    return f"{text}{start}{_hash(data)}{end}\n"


def is_sealed_text(data: bytes) -> bool:
    """Return whether ``data`` are as ``seal_text`` or ``seal_page`` made them."""
    for start, end in ((_LINE, b""), _COMMENT):
        text, _, seal = data.rpartition(start)
        if seal == _hash(text).encode() + end + b"\n":
            return True
    return False


def _encode(values: Mapping[str, Any]) -> bytes:
    # A lone surrogate becomes its escape, as in ``writer.write_text``.
    return dump_json(values).encode(errors="backslashreplace")


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
