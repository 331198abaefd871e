"""The program for a stranger's template or tokenizer: run by ``children.entry``.

It imports nothing of this package: the job is another file beside this one, and its function
``handle`` does one request. Frames go over stdin and stdout: see ``worker``.
"""

from __future__ import annotations

import importlib.util
import json
import struct
import time
from collections.abc import Callable
from io import RawIOBase
from typing import Any

_FRAME = struct.Struct("<IQ")


def main(host: Any, job_file: str) -> None:
    """Serve requests until stdin ends; ``host`` is the one of ``children.entry``."""
    spec = importlib.util.spec_from_file_location("job", job_file)
    assert spec is not None and spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    requests, replies = open(0, "rb", buffering=0), open(1, "wb", buffering=0)  # noqa: SIM115
    host.be_ready()
    while host.has_request():
        frame = _read(requests, _FRAME.size)
        if frame is None:
            return
        head, body = (_read(requests, size) for size in _FRAME.unpack(frame))
        if head is None or body is None:
            return
        reply, data = _serve(host, job.handle, json.loads(head), body)
        # What is left of a request without memory is nobody's to guess.
        is_last = reply["is_last"] = reply.get("failed") == "memory"
        # Escapes only: an error may quote half of a surrogate pair.
        told = json.dumps(reply).encode("ascii")
        _write(replies, _FRAME.pack(len(told), len(data)) + told)
        _write(replies, data)
        if is_last:
            return


def _serve(
    host: Any,
    handle: Callable[..., tuple[dict[str, Any], bytes]],
    request: dict[str, Any],
    body: bytes,
) -> tuple[dict[str, Any], bytes]:
    """Return the reply to one request, and its data."""
    used = time.process_time()
    seconds, num_bytes, most = (request.pop(name) for name in ("seconds", "bytes", "most"))
    with host.limited(seconds, num_bytes, most):
        try:
            reply, data = handle(request, body)
        except MemoryError:
            reply, data = {"failed": "memory"}, b""
        except RecursionError:
            reply, data = {"failed": "depth"}, b""
        # The panic of a Rust library is a BaseException only.
        except BaseException as err:
            reply = {"failed": "error", "text": str(err)[:500], "line": getattr(err, "line", None)}
            data = b""
    reply["used"] = time.process_time() - used
    return reply, data


def _read(stream: RawIOBase, size: int) -> bytes | None:
    """Return ``size`` bytes, None where the stream ends before."""
    data = bytearray()
    while len(data) < size:
        piece = stream.read(min(size - len(data), 1 << 20))
        if not piece:
            return None
        data += piece
    return bytes(data)


def _write(stream: RawIOBase, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]
