"""Plain PNG files: the pixels that Pillow gives, or left to Pillow; above all where a file is damaged."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mnist_ray.sources import decoding, png
from mnist_ray.sources.decoding import decode
from mnist_ray.sources.pixels import Conversion
from tests.support import data_makers as make

GRAY = make.images(1, (5, 7))[0]
COLOURS = make.images(1, (5, 7, 3))[0]
SMOOTH = np.add.outer(np.arange(40), np.arange(33)).astype(np.uint8)  # for which each row's filter is another


def file(pixels: Any, **options: Any) -> bytes:
    data = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(data, "PNG", **options)
    return data.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def of_stream(stream: bytes, *between: bytes, interlaced: int = 0) -> bytes:
    """A PNG file of gray images of 5 x 7, as no sound program writes it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 7, 5, 8, 0, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(between) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


ROWS = b"".join(b"\0" + bytes(row) for row in GRAY)


@pytest.mark.parametrize(
    "pixels", [GRAY, COLOURS, SMOOTH, np.stack([SMOOTH, SMOOTH.T[:1].repeat(40, 0)[:, :33], SMOOTH], 2)]
)
@pytest.mark.parametrize("options", [{}, {"compress_level": 0}, {"optimize": True}, {"dpi": (72, 72)}])
def test_a_plain_file_is_decoded_without_pillow(
    pixels: np.ndarray, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_pillow", None)
    decoded = decode(file(pixels, **options), pixels.shape)
    assert (decoded.dtype, decoded.shape) == (np.uint8, pixels.shape)
    np.testing.assert_array_equal(decoded, pixels)
    with pytest.raises(ValueError, match=r"\(TypeError\)"):  # what is to be converted needs Pillow
        decode(file(pixels), pixels.shape, Conversion(size=(3, 3)))


def other_files() -> dict[str, bytes]:
    described, turned = PngInfo(), Image.Exif()
    described.add_text("exif", "1")
    turned[0x0112] = 3
    return {
        "colours": file(COLOURS), "alpha": file(np.dstack([GRAY, GRAY])), "16 bits": file(GRAY.astype(np.uint16) * 256),
        "1 bit": file(GRAY > 128), "palette": file(Image.fromarray(GRAY).convert("P")),
        "a transparent gray": file(GRAY, transparency=int(GRAY[1, 1])), "turned": file(GRAY, exif=turned.tobytes()),
        "text": file(GRAY, pnginfo=described), "animated": of_stream(zlib.compress(ROWS), chunk(b"acTL", bytes(8))),
        "interlaced": of_stream(zlib.compress(ROWS), interlaced=1), "other size": file(GRAY[:, 1:]),
        "BMP": b"BM" + bytes(60), "nothing": b"",
    }  # fmt: skip


@pytest.mark.parametrize("kind", other_files())
def test_other_files_are_left_to_pillow(kind: str) -> None:
    assert png.decode_plain(other_files()[kind], GRAY.shape) is None


def outcome(data: bytes) -> Any:
    try:
        return decode(data, GRAY.shape).tolist()
    except ValueError as error:
        return str(error)


def test_a_damaged_file_is_what_pillow_makes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bit flipped, each length, and streams that are sound for the checksums of the file, but not as an image."""
    whole = file(GRAY)
    flipped = [bytes([*whole[:place], whole[place] ^ 1 << bit, *whole[place + 1 :]])
               for place in range(len(whole)) for bit in range(8)]  # fmt: skip
    streams = [zlib.compress(rows) for rows in (ROWS[:-3], ROWS[:16], ROWS + b"more", b"\7" + ROWS[1:])]
    streams += [b"", zlib.compress(ROWS)[:-4]]
    cut = [whole[:length] for length in range(1, len(whole))]
    damaged = [*flipped, *cut, whole + b"more", *map(of_stream, streams)]
    fast = list(map(outcome, damaged))
    assert GRAY.tolist() in fast
    monkeypatch.setattr(png, "decode_plain", lambda *_: None)
    assert fast == list(map(outcome, damaged))
