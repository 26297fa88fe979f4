"""Files that gzip or zlib has compressed as a whole, as the options of TensorFlow's TFRecordWriter have it."""

from __future__ import annotations

import io
import zlib
from typing import Any

_PACKERS = {
    "gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ", "zstd": b"\x28\xb5\x2f\xfd", "7-Zip": b"7z\xbc\xaf",
    "RAR": b"Rar!",
}  # fmt: skip
"""How what they compress begins."""
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS  # zlib then looks which of the two it is
_BLOCK = 1 << 20


def is_packed(first_bytes: bytes) -> bool:
    """Whether a file begins as gzip or zlib do. Few others do; what is within tells."""
    return first_bytes[:2] in (b"\x1f\x8b", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")


def packer_of(first_bytes: bytes) -> str:
    """The name of the program that has compressed a file; "" for others, or where it is not known."""
    name = next((name for name, start in _PACKERS.items() if first_bytes.startswith(start)), "")
    return "" if name == "bzip2" and first_bytes[4:10] != b"1AY&SY" else name  # three letters may begin any text


def unpacked_start(first_bytes: bytes, size: int) -> bytes:
    """Of what is compressed; b"" where it cannot be decompressed."""
    try:
        return zlib.decompressobj(_GZIP_OR_ZLIB).decompress(first_bytes, size)
    except zlib.error:
        return b""


class Unpacked(io.RawIOBase):
    """The content of a compressed file. To go back is to begin again: read it forward.

    It ends where the file is damaged or truncated. Holds a block of the file and one of its content, whatever they are.
    """

    is_whole = True
    """Whether nothing is missing, as far as it has been read."""

    def __init__(self, packed: io.RawIOBase) -> None:
        self._packed = packed
        self._begin()

    def _begin(self) -> None:
        self._packed.seek(0)
        self._zlib: Any = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._block = b""  # what is still compressed
        self._ready = memoryview(b"")
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Forward, as far as there is anything."""
        if offset < self._at:
            self._begin()
        while self._at < offset and self._take(offset - self._at):
            pass
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._take(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _take(self, most: int) -> memoryview:
        """Some of what follows; nothing at the end."""
        if not self._ready:
            self._ready = memoryview(self._next())
        data, self._ready = self._ready[:most], self._ready[most:]
        self._at += len(data)
        return data

    def _next(self) -> bytes:
        while block := self._zlib.unconsumed_tail or self._block or self._packed.read(_BLOCK):
            try:
                data: bytes = self._zlib.decompress(block, _BLOCK)
            except zlib.error:
                self.is_whole = False
                break
            self.is_whole, self._block = self._zlib.eof, b""
            if self._zlib.eof:  # files that are compressed may follow each other in one
                self._block = self._zlib.unused_data.lstrip(b"\0")
                self._zlib = zlib.decompressobj(_GZIP_OR_ZLIB)
            if data:
                return data
        return b""
