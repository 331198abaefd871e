"""The program that reads a stranger's Parquet file with pyarrow: run by ``children.entry``.

It imports nothing of this package. A request is a line of JSON on stdin. The reply is a row of
frames on stdout, the last one ``e`` or ``f``; a full pipe holds the reading up.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from typing import Any

_FRAME = struct.Struct("<cI")
_BUFFER_BYTES = 1 << 16
# What earlier files may leave behind before the process ends and another takes its place.
_KEPT_BYTES = 128 << 20
# Few: a value that a dictionary holds once may be repeated in each row of a batch.
_BATCH_ROWS = 8
# As what a value that JSON does not know is sent: an object with this key only.
STAND_IN = "\0type"


def main(host: Any) -> None:
    """Serve requests until stdin ends; ``host`` is the one of ``children.entry``."""
    import pyarrow.parquet  # noqa: F401, PLC0415

    host.be_ready()
    before = host.mapped()
    while line := _read_line(host):
        out = _Frames()
        is_last = _serve(host, out, json.loads(line))
        if is_last or host.mapped() > before + _KEPT_BYTES:
            return


class _Frames:
    """The frames of a reply, written when there are enough of them.

    Attributes:
        has_stand_in: whether a value that JSON does not know was met since this was set to False.
    """

    def __init__(self) -> None:
        self._waiting = bytearray()
        self.has_stand_in = False
        self._encoder = json.JSONEncoder(ensure_ascii=False, default=self._stand_in)

    def pack(self, value: Any) -> bytes:
        return self._encoder.encode(value).encode()

    def add(self, kind: bytes, data: bytes) -> None:
        self._waiting += _FRAME.pack(kind, len(data))
        self._waiting += data
        if len(self._waiting) >= _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        view = memoryview(bytes(self._waiting))
        self._waiting.clear()
        while view:
            view = view[os.write(1, view) :]

    def _stand_in(self, value: Any) -> dict[str, str]:
        self.has_stand_in = True
        return {STAND_IN: type(value).__name__}


def _serve(host: Any, out: _Frames, request: dict[str, Any]) -> bool:
    """Answer one request; return whether the process has to end behind it."""
    kind, failed = b"e", ""
    with host.limited(request["seconds"], request["bytes"]):
        try:
            _read_file(out, request)
        except MemoryError:
            kind = b"f"
        except BrokenPipeError:
            return True
        except BaseException as err:
            kind, failed = b"f", (str(err).strip() or type(err).__name__)[:1000]
    is_memory = kind == b"f" and not failed
    told = {"text": failed, "is_short": is_memory and not _can_map(request["bytes"])}
    # Escapes only: an error may quote what is not Unicode.
    out.add(kind, json.dumps(told).encode("ascii"))
    out.flush()
    return is_memory


def _read_file(out: _Frames, request: dict[str, Any]) -> None:
    """Send the names of the columns, and with ``columns`` the rows of those that are wanted."""
    import pyarrow.parquet as parquet  # noqa: PLC0415

    with open(bytes.fromhex(request["path"]), "rb") as raw:
        metadata = parquet.read_metadata(raw)
        schema = metadata.schema.to_arrow_schema()
        head = {"names": schema.names, "groups": metadata.num_row_groups}
        out.add(b"h", out.pack(head))
        if request["columns"] is None:
            return
        out.flush()
        names = [name for name in schema.names if name.lower() in request["columns"]]
        if not names:
            return
        raw.seek(0)
        file = parquet.ParquetFile(raw, metadata=metadata)
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            out.add(b"g", json.dumps([group.total_byte_size, number]).encode())
            out.flush()
            for batch in file.iter_batches(
                _BATCH_ROWS, row_groups=[number], columns=names, use_threads=False
            ):
                _send_rows(out, batch, request["row_bytes"])


def _send_rows(out: _Frames, batch: Any, limit: int) -> None:
    columns = list(zip(batch.schema.names, batch.columns, strict=True))
    for position in range(batch.num_rows):
        out.has_stand_in = False
        try:
            row = {name: column[position].as_py() for name, column in columns}
            data = out.pack(row)
        except UnicodeError as err:
            out.add(b"o", json.dumps(f"is not UTF-8: {err}"[:500]).encode())
        except (ValueError, OverflowError) as err:
            out.add(b"o", json.dumps(f"cannot be read: {err}"[:500]).encode())
        else:
            if len(data) > limit:
                out.add(b"l", json.dumps(len(data)).encode())
                continue
            out.add(b"s" if out.has_stand_in else b"r", data)


def _read_line(host: Any) -> bytes:
    """Return the next request, nothing where stdin ends or none comes for long."""
    line = b""
    while not line.endswith(b"\n"):
        if not host.has_request():
            return b""
        piece = os.read(0, 1 << 16)
        if not piece:
            return b""
        line += piece
    return line


def _can_map(num_bytes: int) -> bool:
    """Return whether the system has so much memory: else the file is not to blame."""
    try:
        mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, ValueError, OverflowError, MemoryError):
        return False
    return True
