"""Image files to uint8 pixels, gray or RGB, by rules that are the same for all formats and modes.

What cannot be decoded gets a reason, worded to follow the name of its row: "row 3 …".
"""

from __future__ import annotations

import io
import warnings
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.sources import png
from mnist_ray.sources.pixels import MAX_SIDE, NO_CONVERSION, Conversion, options

RULES = 3
"""A new number where the same bytes become other pixels: what was begun by other rules is not continued."""

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "PPM")
"""What is decoded, by Pillow's names."""
_WITHOUT_GRAY = ("WEBP", "AVIF")
_MAX_PROGRESSIVE = 128 << 20  # pixels, of 3 to 6 bytes, however small it is decoded; others need few megabytes
_GRAY = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")
_COLOUR = ("RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "P", "PA")
_ALPHA = ("LA", "La", "RGBA", "RGBa", "PA")
_ORIENTATION = 0x0112  # of Exif
_EXIF = frozenset(("exif", "Raw profile type exif", "xmp"))  # where Pillow finds it, in what an image's header has
_LOSSY_SPREAD = 2  # by which lossy WebP and AVIF move equal channels apart


def decode(data: bytes, shape: tuple[int, ...] | None = None, convert: Conversion = NO_CONVERSION) -> NDArray[np.uint8]:
    """The pixels of an image file, converted: (h, w) for gray, (h, w, 3) for RGB. Of several frames, the first.

    The content tells the format, not the name. Raises ValueError with a reason where it is none of FORMATS, or has
    another shape than `shape`, which is taken from the header and compared before most is decoded.
    """
    if not data:
        raise ValueError("is an empty file")
    if shape is not None and not convert and (pixels := png.decode_plain(data, shape)) is not None:
        return pixels
    try:
        with _pillow().open(io.BytesIO(data), formats=FORMATS) as image:
            turn = _turn(image, applied=convert.applies_exif) if image.info else None
            is_turned = turn in _SWAPPING
            height, width = image.size if is_turned else image.size[::-1]
            convert.draft(image, swapped=is_turned)
            if max(image.size) > MAX_SIDE:
                more = "; --resize reads larger ones, too" if image.format == "JPEG" and not convert.size else ""
                raise _RefusedError(f"is {width} x {height} pixels; at most {MAX_SIDE} a side{more}")
            if width * height > _MAX_PROGRESSIVE and image.info.get("progressive"):
                raise _RefusedError(
                    f"is a progressive JPEG of {width} x {height} pixels, which must be decoded whole; save it as a"
                    " baseline JPEG"
                )
            plain = _plain(image, convert.background, as_gray=shape is None or len(shape) == 2)
            found = (height, width, 3) if plain.mode not in _GRAY else (height, width)
            if shape is not None and convert.shape(found) != shape:
                remedy = options(found, shape) if convert.offered else ""
                raise _RefusedError(
                    f"has the shape {found}, not {shape} like the others{f'; {remedy} converts it' if remedy else ''}"
                )
            is_as_stored = turn is None and not convert
            if is_as_stored and image.format == "JPEG" and (pixels := _jpeg(data, image.mode)) is not None:
                return pixels
            upright = plain if turn is None else plain.transpose(turn)
            return np.array(convert.image(upright.convert("L") if upright.mode == "1" else upright), dtype=np.uint8)
    except _RefusedError:
        raise
    except Exception as error:  # Pillow raises almost anything on a damaged file
        if data[4:8] == b"ftyp" and not _is_avif(data):
            raise ValueError("is HEIC or a video; save it as JPEG") from error
        raise ValueError(
            f"is not a readable PNG, JPEG, WebP, AVIF, BMP, TIFF, GIF or PPM ({type(error).__name__})"
        ) from error


@cache
def _pillow() -> Any:
    """Pillow's Image, without its limit, as the sides are checked once a JPEG is to be decoded small, and without its
    warnings, as an image is either read or has a reason."""
    from PIL import AvifImagePlugin, Image

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each image would start one for each CPU
    Image.MAX_IMAGE_PIXELS = None
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
    return Image


def _jpeg(data: bytes, mode: str) -> NDArray[np.uint8] | None:
    """A JPEG as Pillow decodes it, two to eight times as fast: by the same library, without copies in between.

    None where the mode is another than L or RGB, or the library has any remark: what is damaged, Pillow decides.
    """
    import simplejpeg

    if mode not in ("L", "RGB"):
        return None
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "GRAY" if mode == "L" else "RGB", strict=True)
    except ValueError:
        return None
    return pixels[:, :, 0] if mode == "L" else pixels


def has_more_frames(data: bytes) -> bool:
    """Whether an image that can be decoded is an animation, or has several pages. A phone's second picture, in a JPEG,
    does not count."""
    try:
        with _pillow().open(io.BytesIO(data), formats=FORMATS) as image:
            return image.format != "MPO" and getattr(image, "n_frames", 1) > 1
    except Exception:  # the others are damaged, if there are any
        return False


def _turn(image: Any, *, applied: bool) -> Any:
    """What the camera's note asks for, so that the image is upright: Pillow's number of a transposition, or None.

    Pillow itself turns a TIFF. Where the note is not applied, that is turned back.
    """
    is_tiff = image.format == "TIFF"
    if is_tiff == applied or (not is_tiff and _EXIF.isdisjoint(image.info)):
        return None
    try:
        orientation = image.getexif().get(_ORIENTATION)
        return (_BACK if is_tiff else _TURNS).get(orientation)
    except Exception:  # a damaged note is none
        return None


_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""Pillow's `Transpose` for each orientation of Exif."""
_BACK = _TURNS | {6: 2, 8: 4}
"""The inverse: a quarter turn the other way; the others are their own inverses."""
_SWAPPING = (2, 4, 5, 6)
"""The transpositions that change height and width."""


def _plain(image: Any, background: tuple[int, int, int], *, as_gray: bool) -> Any:
    """The image in mode 1, L or RGB: alpha over the background, the high byte of 16-bit gray, palettes as RGB.

    as_gray: whether an image is gray whose three channels are equal, where the format has no gray: WebP, AVIF, and a
    palette.
    """
    if image.mode in ("L", "RGB") and image.format not in _WITHOUT_GRAY and "transparency" not in image.info:
        return image  # nearly always
    from PIL import Image

    if image.mode not in (*_GRAY, *_COLOUR):
        raise _RefusedError(f"is an image of mode {image.mode}, which is neither gray nor colours; save it as PNG")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "1":
        return image
    is_lossy = image.format in _WITHOUT_GRAY
    can_be_gray = as_gray and (is_lossy or image.mode in ("P", "PA"))
    if image.mode in _ALPHA or "transparency" in image.info:
        is_gray = image.mode in _GRAY and len(set(background)) == 1
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image.convert("RGBA"))
        if is_gray:
            return image.getchannel(0)
    return _gray_or_rgb(image.convert("RGB"), as_gray=can_be_gray, spread=_LOSSY_SPREAD if is_lossy else 0)


def _gray_or_rgb(image: Any, *, as_gray: bool, spread: int = 0) -> Any:
    """An RGB image; as gray where that is wanted and its channels differ by at most `spread`."""
    if not as_gray:
        return image
    channels = np.asarray(image)
    difference = channels.max(axis=2) - channels.min(axis=2)
    return image.convert("L") if difference.max(initial=0) <= spread else image


class _RefusedError(ValueError):
    """Raised by our own checks, unlike what Pillow raises."""


def is_encoded(data: bytes) -> bool:
    """Whether these are the bytes of an image file of one of FORMATS, by how they begin; but PPM, of which two letters
    say too little of bytes that may be raw pixels."""
    if data.startswith(b"BM"):  # raw pixels may begin so, too
        return int.from_bytes(data[2:6], "little") == len(data)
    if data.startswith(b"RIFF"):
        return data[8:12] == b"WEBP"
    return _is_avif(data) or data.startswith(
        (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"GIF87a", b"GIF89a")
    )


def _is_avif(data: bytes) -> bool:
    """By the brands of the container, which it shares with HEIC and videos: four letters each, behind the first a
    number."""
    brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    return data[4:8] == b"ftyp" and any(brands[at : at + 4] in (b"avif", b"avis") for at in range(0, len(brands), 4))
