"""PNG files of the plain kind, gray or RGB of 8 bits a channel: the pixels that Pillow gives, several times as fast.

Whatever else a file has, or has wrong, is left to Pillow. Its checksums are compared here, as the decoder does not.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

_COLOURS = {(): 0, (3,): 2}  # as the header calls gray and RGB
_HEADER_BYTES = 29  # the signature, and the first chunk but for its checksum
# Chunks that change no pixel, in any program. Not those that make a colour transparent, turn the image, or animate it.
_HARMLESS = frozenset((b"IHDR", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"pHYs", b"tIME"))


def decode_plain(data: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The pixels of a plain PNG file of this shape, (h, w) or (h, w, 3). None for any other file, and for a damaged
    one."""
    if data[:_HEADER_BYTES] != _header(shape) or not _is_sound(data):
        return None
    import pyspng

    try:
        pixels: NDArray[np.uint8] = pyspng.load(data)
    except Exception:  # which kind, it does not promise
        return None
    return pixels if pixels.shape == shape else None


@lru_cache(maxsize=16)
def _header(shape: tuple[int, ...]) -> bytes:
    """How a plain file of this shape begins."""
    height, width, *_ = shape
    sizes = struct.pack(">IIBBBBB", width, height, 8, _COLOURS[shape[2:]], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + sizes


def _is_sound(data: bytes) -> bool:
    """Whether all chunks are whole, and none may change a pixel."""
    start, view = 8, memoryview(data)
    while start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if kind not in _HARMLESS or end > len(data):
            return False
        if crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            return False
        if kind == b"IEND":
            return True
        start = end
    return False
