"""Runs the tokenizers library on a stranger's ``tokenizer.json``, in the process of ``child``.

The library ends its process where memory is short, and a pattern may search without end: both
happen to that process alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import tokenizers

# Of tokenizers: one of 10 MB takes 150 MB of memory.
_MAX_HELD, _MAX_HELD_BYTES = 2, 40 << 20
_held: dict[str, tokenizers.Tokenizer] = {}
_sizes: dict[str, int] = {}


def handle(request: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """Load a ``tokenizer.json``, encode or decode; the request says which.

    ``load`` holds the file in ``body``, and tells the size of the vocabulary and the added tokens.
    ``encode`` takes text and returns ids, ``decode`` the other way; ids are uint32.
    """
    key, op = request["key"], request["op"]
    if op == "load":
        # Before, not after: two at once are more than is needed.
        while _held and (
            len(_held) >= _MAX_HELD or sum(_sizes.values()) + len(body) > _MAX_HELD_BYTES
        ):
            oldest = next(iter(_held))
            del _held[oldest], _sizes[oldest]
        _held[key] = backend = tokenizers.Tokenizer.from_buffer(body)
        _sizes[key] = len(body)
        # Settings saved by somebody's calibration run would cut or stretch every text.
        backend.no_truncation()
        backend.no_padding()
        decoder = backend.get_added_tokens_decoder()
        added = {str(idx): token.content for idx, token in decoder.items()}
        return {"size": backend.get_vocab_size(with_added_tokens=True), "added": added}, b""
    if key not in _held:
        return {"unknown": True}, b""
    backend = _held[key]
    if op == "encode":
        encoding = backend.encode(body.decode(), add_special_tokens=request["special"])
        return {}, array("I", encoding.ids).tobytes()
    ids = array("I")
    ids.frombytes(body)
    text = backend.decode(ids.tolist(), skip_special_tokens=request["skip_special"])
    return {}, text.encode()
