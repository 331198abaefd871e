"""zstd data as a stream: little memory for any input, and an error where the data are cut off."""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from typing import IO, Any, cast

from vacc_deploy.bounds import ZSTD_FRAMES, ZSTD_WINDOW_BYTES
from vacc_deploy.datasets.extras import find_package, load_package
from vacc_deploy.errors import CalibrationError

# Of a frame, and of the 16 kinds of frames to skip, which some packers write first.
ZSTD_MAGICS = (b"\x28\xb5\x2f\xfd", *(bytes((kind, 0x2A, 0x4D, 0x18)) for kind in range(80, 96)))
# Four bytes may stand for a block of 128 KiB: so much packed data makes at most 32 MiB.
PIECE_BYTES = 1 << 10


def open_zstd(raw: IO[bytes], path: Path) -> IO[bytes]:
    """Return the unpacked data of an open file.

    Raises:
        CalibrationError: the package zstandard is missing; while reading: damaged data.
    """
    package = load_package("zstandard", path, "zstd data")
    return cast(IO[bytes], io.BufferedReader(_Unpacked(raw, path, package)))


def unpack_head(data: bytes, limit_bytes: int) -> bytes | None:
    """Return the first bytes of packed data; None where they are damaged or cannot be unpacked."""
    package = find_package("zstandard")
    if package is None:
        return None
    try:
        reader = _Unpacked(io.BytesIO(data), Path(), package)
        return io.BufferedReader(reader).read1(limit_bytes)
    except CalibrationError:
        return None


class _Unpacked(io.RawIOBase):
    """Unpacks one frame after another; the package's own reader takes cut data for the end."""

    def __init__(self, raw: IO[bytes], path: Path, package: Any) -> None:
        self._raw, self._path, self._package = raw, path, package
        self._num_frames = self._num_bytes = 0
        self._decoder = self._begin()
        self._packed, self._ready = b"", memoryview(b"")
        self._is_inside = False  # a frame has begun and not ended

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._packed:
                self._packed = self._raw.read(PIECE_BYTES)
                self._num_bytes += len(self._packed)
            if not self._packed:
                if self._is_inside:
                    raise self._damaged("they end in the middle of a frame")
                return 0
            self._ready = memoryview(self._unpack())
        count = min(len(buffer), len(self._ready))
        # A view: bytes would be copied once for each small read.
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _unpack(self) -> bytes:
        """Return what the packed bytes at hand give; what follows a frame stays at hand."""
        try:
            data: bytes = self._decoder.decompress(self._packed)
        except self._package.ZstdError as err:
            if "too much memory" in str(err):
                raise self._too_wide() from err
            raise self._damaged(str(err).removeprefix("zstd decompressor error: ")) from err
        self._is_inside, self._packed = not self._decoder.eof, b""
        if self._decoder.eof:
            self._packed, self._decoder = self._decoder.unused_data, self._begin()
        return data

    def _begin(self) -> Any:
        self._num_frames += 1
        if self._num_frames > ZSTD_FRAMES * (1 + (self._num_bytes >> 20)):
            raise self._damaged(f"they are in {self._num_frames:,} frames, far more than any")
        return self._package.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj()

    def _too_wide(self) -> CalibrationError:
        unpack = shlex.join(["zstd", "-dk", "--long=31", str(self._path)])
        return CalibrationError(
            f"{self._path} holds zstd data for a window of more than {ZSTD_WINDOW_BYTES >> 20} "
            f"MiB, which takes as much memory. Unpack it, then give the new file:\n  {unpack}"
        )

    def _damaged(self, problem: str) -> CalibrationError:
        return CalibrationError(
            f"{self._path} holds zstd data that are cut off or damaged: {problem}. Download it "
            "again."
        )
