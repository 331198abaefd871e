"""How the inputs of the corpus are put together."""

import json

from mutations import SEPARATOR


def dump(value) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def lines(*values) -> bytes:
    return b"".join(dump(value) + b"\n" for value in values)


def join(*parts: bytes) -> bytes:
    return SEPARATOR.join(parts)
