"""The process in which pyarrow reads a stranger's Parquet file: started by ``parquet_worker``.

Run as ``python -I -S parquet_child.py FOLDER...``, with the directories that hold pyarrow. It
imports nothing of this package. A request is a line of JSON on stdin. The reply is a row of frames
on stdout, the last one ``e`` or ``f``; a full pipe holds the reading up.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import select
import struct
import sys
import time
from typing import Any

# Without a request for so long the process ends and gives its memory back.
IDLE_SECONDS = 60.0
_FRAME = struct.Struct("<cI")
_OPEN_FILES = 32
_PAGE = os.sysconf("SC_PAGE_SIZE")
_BUFFER_BYTES = 1 << 16
# What earlier files may leave behind before the process ends and another takes its place.
_KEPT_BYTES = 128 << 20
# Few: a value that a dictionary holds once may be repeated in each row of a batch.
_BATCH_ROWS = 8
# As what a value that JSON does not know is sent: an object with this key only.
STAND_IN = "\0type"


def main() -> None:
    """Serve requests until stdin ends."""
    # Nothing of what follows writes a file, or leaves an image of memory.
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)
    # Behind the standard library: nothing there can be replaced.
    sys.path += sys.argv[1:]
    import pyarrow.parquet  # noqa: F401, PLC0415

    before = _mapped()
    while line := _read_line():
        out = _Frames()
        is_last = _serve(out, json.loads(line))
        if is_last or _mapped() > before + _KEPT_BYTES:
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


def _serve(out: _Frames, request: dict[str, Any]) -> bool:
    """Answer one request; return whether the process has to end behind it."""
    # The kernel ends the process when the time is over; its clock counts whole seconds.
    _lower(resource.RLIMIT_CPU, int(time.process_time() + request["seconds"]) + 1)
    _lower(resource.RLIMIT_AS, _mapped() + request["bytes"])
    kind, failed = b"e", ""
    try:
        _read_file(out, request)
    except MemoryError:
        kind = b"f"
    except BrokenPipeError:
        return True
    except BaseException as err:
        kind, failed = b"f", (str(err).strip() or type(err).__name__)[:1000]
    _lower(resource.RLIMIT_AS, None)
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


def _read_line() -> bytes:
    """Return the next request, nothing where stdin ends or none comes for long."""
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([0], [], [], IDLE_SECONDS)[0]:
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


def _lower(kind: int, limit: int | None) -> None:
    """Set a soft limit, None for none; never above what this process was started with."""
    hard = resource.getrlimit(kind)[1]
    if limit is None or (hard != resource.RLIM_INFINITY and limit > hard):
        limit = hard
    # macOS has kinds that it lets nobody set.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(kind, (limit, hard))


def _mapped() -> int:
    """Return the bytes of memory that the process has mapped, 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * _PAGE
    except OSError:
        return 0


if __name__ == "__main__":
    main()
