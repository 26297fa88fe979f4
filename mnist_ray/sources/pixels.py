"""Conversion of what files hold (images of other sizes, floats, wide integers) to uint8 pixels and class numbers.

What cannot be converted gets a reason, worded to follow the name of its row: "row 3 …".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnist_ray.storage.records import Rule

MAX_SIDE = 4096  # pixels: far more than a dense model can take; keeps a forged header from filling the memory
MAX_CLASSES = 65_536
SAMPLE_ROWS = 1_000  # rows that decide what float pixels stand for
_MANY_NEGATIVE = 0.25  # of the values
_NEARLY_ALL = 0.99  # of the values
_LEAST_SIGNED = -0.5  # of the darkest pixel; that of x / 255 - 0.5 is not less
_WHOLE, _NONE = re.compile(r"0*([0-9]+)(?:\.0*)?"), re.compile(r"-1(?:\.0*)?|nan|<na>", re.IGNORECASE)
_LEAST_FLOAT = 1e-6  # of a pixel that is not 0; bytes that are no floats nearly always have smaller ones, or negative
_MOST_BYTES_AT_ONCE = 16 << 20  # of images that are read at once; each actor reads two units, and copies some
_ROWS_AT_ONCE = 4096  # limits the temporary arrays of a conversion


def rows_at_once(image_shape: tuple[int, ...], most: int) -> int:
    """How many images of a shape are read at once: a power of two, as the size of a batch is, and at most `most`."""
    fitting = max(1, min(most, _MOST_BYTES_AT_ONCE // math.prod(image_shape)))
    return 1 << (fitting.bit_length() - 1)


@dataclass(frozen=True)
class Conversion:
    """From the images of an input to those that the model takes: the options --resize, --gray and the like.

    Its text is part of the identity of a converted input: if a field were renamed, such a scoring could not resume. So
    the fields that are not in its repr are in its text only where they are set.
    """

    size: tuple[int, int] | None = None
    """(h, w)"""
    gray: bool = False
    scales_jpeg: bool = True
    """Whether a JPEG is decoded at 1/2, 1/4 or 1/8 where that is still twice the size: the pixels differ a little from
    those of a whole decoding, which takes three times as long and up to 64 times the memory."""
    offered: bool = False
    """Whether an error about an image of another shape may suggest these options."""

    rgb: bool = field(default=False, repr=False)
    applies_exif: bool = field(default=True, repr=False)
    """Whether a photo is turned as the camera's note says."""
    background: tuple[int, int, int] = field(default=(0, 0, 0), repr=False)
    """What transparent images are laid over: red, green and blue."""

    def __bool__(self) -> bool:
        return self.size is not None or self.gray or bool(self._more)

    def __str__(self) -> str:
        return repr(self) + self._more

    @property
    def _more(self) -> str:
        """The fields that are not in the repr, where they are set."""
        given = [each for each in fields(self) if not each.repr and getattr(self, each.name) != each.default]
        return "".join(f" {each.name}={getattr(self, each.name)}" for each in given)

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a converted image, from its stored shape."""
        return (*(self.size or stored[:2]), *(() if self.gray else (3,) if self.rgb else stored[2:]))

    def draft(self, image: Any, *, swapped: bool = False) -> None:
        """Have a Pillow image that has not been decoded yet decoded small, if it can be.

        swapped: whether its height and width are so exchanged once it is upright.
        """
        if self.size and self.scales_jpeg and image.format in ("JPEG", "MPO"):
            height, width = self.size[::-1] if swapped else self.size
            image.draft(None, (2 * width, 2 * height))

    def image(self, image: Any) -> Any:
        """Convert a Pillow image of mode L or RGB."""
        from PIL import Image

        if self.gray or self.rgb:
            image = image.convert("L" if self.gray else "RGB")
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
    """The options that convert images of one shape to another; "" where none do."""
    if wanted[2:] not in ((), (3,)):
        return ""
    resize = f"--resize {wanted[0]}x{wanted[1]}" if found[:2] != wanted[:2] else ""
    channels = {1: "--gray", 0: "", -1: "--rgb"}[len(found) - len(wanted)]
    return f"{resize}{' ' if resize and channels else ''}{channels}"


class Span(NamedTuple):
    """What stands for black and for white."""

    low: int
    high: int

    @property
    def is_bytes(self) -> bool:
        return self == BYTES

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"


BYTES, UNIT, SIGNED = Span(0, 255), Span(0, 1), Span(-1, 1)


def span_of(sample: NDArray[Any], *, signed: bool = False) -> Span:
    """What numbers stand for pixels. Floats are 0..1 rather than 0..255 if, of those above 0, fewer than half are above
    1; where many are negative, they are -1..1, if they may be so (`signed`).

    Decided once for a whole input, from its first rows, so that all rows are read alike and a few bad ones do not
    matter. A row with other values is bad. Raises ValueError where so many are negative that all were normalised.
    """
    if sample.size and np.count_nonzero(sample < 0) > _MANY_NEGATIVE * sample.size:
        least, most = np.nanmin(sample), np.nanmax(sample)
        inside = sample[(sample >= -1) & (sample <= 1)] if sample.dtype.kind == "f" else sample[:0]
        can_be_signed = inside.size >= _NEARLY_ALL * sample.size and bool(inside.min() < _LEAST_SIGNED)
        if can_be_signed and signed:
            return SIGNED
        more = "; or, to score them, add --pixels -1-1 if they are x / 127.5 - 1 of it" if can_be_signed else ""
        raise ValueError(
            f"pixels from {least:.3g} to {most:.3g} have been normalised; save the images as they were before, as"
            f" 0..255 or 0..1{more}"
        )
    positive = sample[sample > 0] if sample.dtype.kind == "f" else sample[:0]
    return UNIT if positive.size and np.count_nonzero(positive > 1) < positive.size / 2 else BYTES


def to_uint8(pixels: NDArray[Any], span: Span) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Convert (n, …) numbers to uint8. Also returns the reasons of bad rows, which are zero in the result.

    Integers must be 0..255. Floats must be whole numbers 0..255, or those of another span, of which each becomes the
    nearest of 0..255: exact for pixels that were divided by 255 (or by 127.5, less 1).

    The reasons are part of the digest of an array input (arrays.py): rewording one changes the digest.
    """
    if pixels.dtype == np.uint8:
        return pixels, {}
    scale = np.float64(255 / (span.high - span.low))  # of float32, too, the result is float64
    result = np.zeros(pixels.shape, np.uint8)
    reasons: dict[int, str] = {}
    axes = tuple(range(1, pixels.ndim))
    for start in range(0, len(pixels), _ROWS_AT_ONCE):
        part = pixels[start : start + _ROWS_AT_ONCE]
        good = (part >= span.low) & (part <= span.high)  # False for NaN
        if part.dtype.kind == "f" and span.is_bytes:
            good &= np.rint(part) == part
        rows = good.all(axis=axes)
        kept = part[rows]
        result[start : start + len(part)][rows] = kept if span.is_bytes else np.rint((kept - span.low) * scale)
        for row in np.flatnonzero(~rows):
            value = part[row][~good[row]][0]
            must = "whole numbers 0..255" if span.is_bytes else f"{span} as in the first rows"
            reasons[start + int(row)] = f"has a pixel {value}; pixels must be {must}"
    return result, reasons


def to_labels(values: NDArray[Any]) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Convert (n,) numbers to class numbers. Also returns the reasons of bad rows, which are -1 in the result.

    The reasons are part of the digest of an array input (arrays.py): rewording one changes the digest.
    """
    labels = class_numbers(values)
    return labels, {
        int(row): f"has the label {values[row]}; labels must be class numbers 0..{MAX_CLASSES - 1}"
        for row in np.flatnonzero(labels < 0)
    }


def class_numbers(values: NDArray[Any]) -> NDArray[np.int64]:
    """(n,) numbers as class numbers, -1 for those that are none."""
    good = (values >= 0) & (values < MAX_CLASSES)
    if values.dtype.kind == "f":
        good &= np.rint(values) == values
    labels = np.full(len(values), -1, np.int64)
    labels[good] = values[good]
    return labels


def by_value(label: str) -> str:
    """A label as text: `07` is 7, and so is `7.0`, as pandas writes it where a column has gaps. The gaps, `nan` and
    `<NA>`, are no label, and neither is `-1`."""
    if number := _WHOLE.fullmatch(label):
        return number[1]
    return "" if _NONE.fullmatch(label) else label


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


def channels_last(shape: tuple[int, ...]) -> tuple[tuple[int, ...], bool]:
    """The shape (h, w) or (h, w, 3) of images that are stored with `shape`, and whether three channels come first.

    Raises ValueError for any other shape.
    """
    is_first = len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3)
    return image_shape((*shape[1:], shape[0]) if is_first else shape), is_first and shape[0] == 3


def _is_image_shape(shape: tuple[int, ...]) -> bool:
    try:
        return bool(image_shape(shape))
    except ValueError:
        return False


ImageShape = Annotated[
    tuple[int, ...], Rule(f"must be (h, w) or (h, w, 3) of at most {MAX_SIDE} a side", _is_image_shape)
]
"""Of a record."""


def is_square(size: int) -> bool:
    """Whether a square has so many pixels."""
    return size > 0 and round(size**0.5) ** 2 == size


def square(size: int) -> tuple[int, int]:
    """The shape (h, w) of a square gray image with `size` pixels. Raises ValueError where no square has so many."""
    if not is_square(size):
        raise ValueError(
            f"{size} values are not a square gray image; name the shape in the schema metadata `image_shape`"
        )
    return round(size**0.5), round(size**0.5)


def require_bytes(data: bytes) -> None:
    """Raises ValueError where raw pixels are floats of 32 bits, four bytes a pixel: 28 x 28 of them are no 56 x 56."""
    if len(data) % 4:
        return
    values = np.frombuffer(data, "<f4")
    plausible = (values == 0) | ((values > _LEAST_FLOAT) & (values <= 255))  # False for NaN
    if data.strip(b"\0") and plausible.all():
        raise ValueError(
            f"has {len(data)} bytes that are {values.size} floats of 32 bits; store pixels as bytes of 0..255, or"
            " floats as lists of numbers"
        )
