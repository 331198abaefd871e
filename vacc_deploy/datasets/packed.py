"""gzip and zstd data as a stream: little memory for any input, and an error where they are cut off.

The readers of the libraries take cut zstd data for the end, and gzip data in any number of members.
"""

from __future__ import annotations

import io
import shlex
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from vacc_deploy.bounds import PACKED_FRAMES, ZSTD_WINDOW_BYTES
from vacc_deploy.datasets.extras import find_package, load_package
from vacc_deploy.errors import CalibrationError

GZIP_MAGIC = b"\x1f\x8b"
# Of a frame, and of the 16 kinds of frames to skip, which some packers write first.
ZSTD_MAGICS = (b"\x28\xb5\x2f\xfd", *(bytes((kind, 0x2A, 0x4D, 0x18)) for kind in range(80, 96)))
# Four bytes may stand for a block of 128 KiB: so much packed zstd data makes at most 32 MiB.
PIECE_BYTES = 1 << 10
_GZIP_HEADER = 31  # for zlib: data with the header and the checksum of gzip


@dataclass(frozen=True)
class _Packing:
    """How data are packed: a decoder for one frame, what it raises, and what may follow a frame."""

    name: str
    begin: Callable[[], Any]
    error: type[Exception]
    padding: bytes = b""


_GZIP = _Packing("gzip", lambda: zlib.decompressobj(_GZIP_HEADER), zlib.error, b"\0")


def is_packed(head: bytes) -> bool:
    """Return whether a file that begins with ``head`` holds gzip or zstd data."""
    return head.startswith((GZIP_MAGIC, *ZSTD_MAGICS))


def open_packed(raw: IO[bytes], path: Path, head: bytes) -> IO[bytes]:
    """Return the unpacked data of an open file that begins with ``head``.

    Raises:
        CalibrationError: the package zstandard is missing; while reading: damaged data.
    """
    is_gzip = head.startswith(GZIP_MAGIC)
    packing = _GZIP if is_gzip else _zstd(load_package("zstandard", path, "zstd data"))
    return cast(IO[bytes], io.BufferedReader(_Unpacked(raw, path, packing)))


def unpack_head(data: bytes, limit_bytes: int) -> bytes:
    """Return the first bytes of packed data, up to where they are damaged or cut.

    There are none where the package zstandard is missing.
    """
    packing = _GZIP
    if not data.startswith(GZIP_MAGIC):
        package = find_package("zstandard")
        if package is None:
            return b""
        packing = _zstd(package)
    reader, unpacked = _Unpacked(io.BytesIO(data), Path(), packing), b""
    # The end of the data is most often not that of the file.
    with suppress(CalibrationError):
        while piece := reader.read(limit_bytes - len(unpacked)):
            unpacked += piece
    return unpacked


def _zstd(package: Any) -> _Packing:
    decoder = package.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    return _Packing("zstd", decoder.decompressobj, package.ZstdError)


class _Unpacked(io.RawIOBase):
    """Unpacks one frame after another; gzip calls a frame a member."""

    def __init__(self, raw: IO[bytes], path: Path, packing: _Packing) -> None:
        self._raw, self._path, self._packing = raw, path, packing
        self._num_frames = self._num_bytes = 0
        self._decoder: Any = None  # of the frame that has begun and not ended
        self._packed, self._ready = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._packed:
                self._packed = self._raw.read(PIECE_BYTES)
                self._num_bytes += len(self._packed)
                if not self._packed:
                    if self._decoder is not None:
                        raise self._damaged("they end in the middle of a frame")
                    return 0
            self._ready = memoryview(self._unpack())
        count = min(len(buffer), len(self._ready))
        # A view: bytes would be copied once for each small read.
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _unpack(self) -> bytes:
        """Return what the packed bytes at hand give; what follows a frame stays at hand."""
        if self._decoder is None:
            if self._num_frames:
                self._packed = self._packed.lstrip(self._packing.padding)
            if not self._packed:
                return b""
            self._decoder = self._begin()
        try:
            data: bytes = self._decoder.decompress(self._packed)
        except self._packing.error as err:
            if "too much memory" in str(err):
                raise self._too_wide() from err
            raise self._damaged(str(err).removeprefix("zstd decompressor error: ")) from err
        self._packed = b""
        if self._decoder.eof:
            self._packed, self._decoder = self._decoder.unused_data, None
        return data

    def _begin(self) -> Any:
        self._num_frames += 1
        if self._num_frames > PACKED_FRAMES * (1 + (self._num_bytes >> 20)):
            raise self._damaged(f"they are in {self._num_frames:,} frames, far more than any")
        return self._packing.begin()

    def _too_wide(self) -> CalibrationError:
        unpack = shlex.join(["zstd", "-dk", "--long=31", str(self._path)])
        return CalibrationError(
            f"{self._path} holds zstd data for a window of more than {ZSTD_WINDOW_BYTES >> 20} "
            f"MiB, which takes as much memory. Unpack it, then give the new file:\n  {unpack}"
        )

    def _damaged(self, problem: str) -> CalibrationError:
        return CalibrationError(
            f"{self._path} holds {self._packing.name} data that are cut off or damaged: {problem}. "
            "Download it again."
        )
