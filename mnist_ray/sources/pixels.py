"""Conversion of what files hold (encoded images, floats, wide integers) to uint8 pixels and class numbers.

What cannot be converted gets a reason, worded to follow the name of its row: "row 3 …".
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.storage.records import Rule

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""What is decoded, by Pillow's names."""
MAX_SIDE = 4096  # pixels: far more than a dense model can take; keeps a forged header from filling the memory
MAX_CLASSES = 65_536
SAMPLE_ROWS = 1_000  # rows that decide whether float pixels are 0..1 or 0..255
_ROWS_AT_ONCE = 4096  # limits the temporary arrays of a conversion


@dataclass(frozen=True)
class Conversion:
    """From the images of an input to those that the model takes: the options --resize and --gray of `score`.

    Its repr is part of the identity of a converted input: if a field were renamed, such a scoring could not resume.
    """

    size: tuple[int, int] | None = None
    """(h, w)"""
    gray: bool = False
    scales_jpeg: bool = True
    """Whether a JPEG is decoded at 1/2, 1/4 or 1/8 where that is still twice the size: the pixels differ a little from
    those of a whole decoding, which takes three times as long and up to 64 times the memory."""
    offered: bool = False
    """Whether an error about an image of another shape may suggest these options."""

    def __bool__(self) -> bool:
        return self.size is not None or self.gray

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a converted image, from its stored shape."""
        return (*(self.size or stored[:2]), *(() if self.gray else stored[2:]))

    def draft(self, image: Any) -> None:
        """Have a Pillow image that has not been decoded yet decoded small, if it can be."""
        if self.size and self.scales_jpeg and image.format in ("JPEG", "MPO"):
            image.draft(None, (2 * self.size[1], 2 * self.size[0]))

    def image(self, image: Any) -> Any:
        """Convert a Pillow image of mode L or RGB."""
        from PIL import Image

        if self.gray:
            image = image.convert("L")
        return image.resize(self.size[::-1], Image.Resampling.BILINEAR) if self.size else image

    def arrays(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert (n, *stored) to (n, *shape(stored)), each image as `image` does."""
        if not self or self.shape(images.shape[1:]) == images.shape[1:]:
            return images
        from PIL import Image

        converted = np.empty((len(images), *self.shape(images.shape[1:])), np.uint8)
        for row, each in enumerate(images):
            converted[row] = self.image(Image.fromarray(each))
        return converted


NO_CONVERSION = Conversion()


def options(found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """The options of `score` that convert images of one shape to another; "" where none do."""
    if len(found) < len(wanted):
        return ""
    resize = f"--resize {wanted[0]}x{wanted[1]}" if found[:2] != wanted[:2] else ""
    return f"{resize}{' ' if resize and len(found) > len(wanted) else ''}{'--gray' if len(found) > len(wanted) else ''}"


def decode(data: bytes, shape: tuple[int, ...] | None = None, convert: Conversion = NO_CONVERSION) -> NDArray[np.uint8]:
    """The pixels of an image file, converted: (h, w) for gray, (h, w, 3) for RGB. Of several frames, the first.

    The content tells the format, not the name. Raises ValueError with a reason where it is none of FORMATS, or has
    another shape than `shape`, which is taken from the header and compared before anything is decoded.
    """
    from PIL import Image

    if not data:
        raise ValueError("is an empty file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            height, width = image.height, image.width
            convert.draft(image)
            if max(image.size) > MAX_SIDE:
                raise _RefusedError(f"is {width} x {height} pixels; at most {MAX_SIDE} a side")
            stored = _stored(image, as_gray=shape is None or len(shape) == 2)
            if stored.mode not in ("1", "L", "RGB"):
                raise _RefusedError(f"is an image of mode {stored.mode}, not gray (L) or RGB")
            found = (height, width, 3) if stored.mode == "RGB" else (height, width)
            if shape is not None and convert.shape(found) != shape:
                remedy = options(found, shape) if convert.offered else ""
                raise _RefusedError(
                    f"has the shape {found}, not {shape} like the others{f'; {remedy} converts it' if remedy else ''}"
                )
            return np.array(convert.image(stored.convert("L") if stored.mode == "1" else stored), dtype=np.uint8)
    except _RefusedError:
        raise
    except Exception as error:  # Pillow raises almost anything on a damaged file
        raise ValueError(f"is not a readable PNG, JPEG, WebP, BMP, TIFF or GIF ({type(error).__name__})") from error


def _stored(image: Any, *, as_gray: bool) -> Any:
    """The image as other formats would store it: WebP has no gray but three equal channels, GIF nothing but a palette.

    as_gray: whether an image of equal channels is gray. Transparent ones stay as they are.
    """
    if image.format not in ("WEBP", "GIF") or image.mode not in ("RGB", "P") or "transparency" in image.info:
        return image
    image = image.convert("RGB")
    if not as_gray:
        return image
    red, green, blue = image.split()
    return red if red.tobytes() == green.tobytes() == blue.tobytes() else image


class _RefusedError(ValueError):
    """Raised by our own checks, unlike what Pillow raises."""


def is_encoded(data: bytes) -> bool:
    """Whether these are the bytes of an image file of one of FORMATS, by how they begin."""
    if data.startswith(b"BM"):  # raw pixels may begin so, too
        return int.from_bytes(data[2:6], "little") == len(data)
    if data.startswith(b"RIFF"):
        return data[8:12] == b"WEBP"
    return data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"GIF87a", b"GIF89a"))


def in_unit_range(sample: NDArray[Any]) -> bool:
    """Whether float pixels are 0..1 rather than 0..255: of those above 0, fewer than half are above 1.

    Decided once for a whole input, from its first rows, so that all rows are read alike and a few bad ones do not
    matter. A row with other values is bad.
    """
    positive = sample[sample > 0] if sample.dtype.kind == "f" else sample[:0]
    return bool(positive.size and np.count_nonzero(positive > 1) < positive.size / 2)


def to_uint8(pixels: NDArray[Any], unit_range: bool) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Convert (n, …) numbers to uint8. Also returns the reasons of bad rows, which are zero in the result.

    Integers must be 0..255. Floats must be whole numbers 0..255, or with `unit_range` 0..1, which become
    round(255 x): exact for pixels that were divided by 255.

    The reasons are part of the digest of an array input (arrays.py): rewording one changes the digest.
    """
    if pixels.dtype == np.uint8:
        return pixels, {}
    top = 1 if unit_range else 255
    result = np.zeros(pixels.shape, np.uint8)
    reasons: dict[int, str] = {}
    axes = tuple(range(1, pixels.ndim))
    for start in range(0, len(pixels), _ROWS_AT_ONCE):
        part = pixels[start : start + _ROWS_AT_ONCE]
        good = (part >= 0) & (part <= top)  # False for NaN
        if part.dtype.kind == "f" and not unit_range:
            good &= np.rint(part) == part
        rows = good.all(axis=axes)
        kept = part[rows]
        result[start : start + len(part)][rows] = np.rint(kept * np.float64(255)) if unit_range else kept
        for row in np.flatnonzero(~rows):
            value = part[row][~good[row]][0]
            must = "0..1 as in the first rows" if unit_range else "whole numbers 0..255"
            reasons[start + int(row)] = f"has a pixel {value}; pixels must be {must}"
    return result, reasons


def to_labels(values: NDArray[Any]) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Convert (n,) numbers to class numbers. Also returns the reasons of bad rows, which are -1 in the result.

    The reasons are part of the digest of an array input (arrays.py): rewording one changes the digest.
    """
    good = (values >= 0) & (values < MAX_CLASSES)
    if values.dtype.kind == "f":
        good &= np.rint(values) == values
    labels = np.full(len(values), -1, np.int64)
    labels[good] = values[good]
    return labels, {
        int(row): f"has the label {values[row]}; labels must be class numbers 0..{MAX_CLASSES - 1}"
        for row in np.flatnonzero(~good)
    }


def class_names(highest: int) -> tuple[str, ...]:
    """The numbers from "0" to the highest label; () where no label is known (-1)."""
    return tuple(str(label) for label in range(highest + 1))


def in_order(names: Iterable[str]) -> list[str]:
    """Class names in the order that all formats give them: by value where all are numbers, else sorted."""
    names = sorted(set(names))
    if all(name.isascii() and name.isdecimal() for name in names):
        names.sort(key=lambda name: (len(name.lstrip("0")), name.lstrip("0")))  # int() refuses very long ones
    return names


def image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (h, w) or (h, w, 3) of images that are stored with `shape`; (h, w, 1) is gray.

    Raises ValueError for any other shape.
    """
    if len(shape) == 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3) or shape[2:] not in ((), (3,)) or not all(1 <= side <= MAX_SIDE for side in shape):
        raise ValueError(f"images must be (h, w) or (h, w, 3) of at most {MAX_SIDE} a side, not {shape}")
    return shape


def _is_image_shape(shape: tuple[int, ...]) -> bool:
    try:
        return bool(image_shape(shape))
    except ValueError:
        return False


ImageShape = Annotated[
    tuple[int, ...], Rule(f"must be (h, w) or (h, w, 3) of at most {MAX_SIDE} a side", _is_image_shape)
]
"""Of a record."""


def square(size: int) -> tuple[int, int]:
    """The shape (h, w) of a square gray image with `size` pixels. Raises ValueError where no square has so many."""
    side = round(size**0.5)
    if side * side != size or not size:
        raise ValueError(
            f"{size} values are not a square gray image; name the shape in the schema metadata `image_shape`"
        )
    return side, side
