"""Image files of every mode: which gray or RGB image each becomes."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mnist_ray.sources import decoding
from mnist_ray.sources.decoding import decode, has_more_frames
from mnist_ray.sources.pixels import Conversion
from tests.support import data_makers as make

GRAY = make.images(1, (4, 6))[0]
COLOURS = make.images(1, (4, 6, 3))[0]
ALPHA = make.images(1, (4, 6), seed=1)[0]


def file(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def over(pixels: NDArray[np.uint8], alpha: NDArray[np.uint8], background: int) -> NDArray[np.int64]:
    share = alpha / 255
    return np.rint(pixels * share + background * (1 - share)).astype(np.int64)


def palette(image: NDArray[np.uint8]) -> Image.Image:
    """An image of a few colours, as PNG's palettes have."""
    return Image.fromarray(image // 64 * 64).quantize(64) if image.ndim == 3 else Image.fromarray(image).convert("P")


def test_16_bit_gray_keeps_the_high_byte() -> None:
    wide = GRAY.astype(np.uint16) * 256 + 77
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode(file(Image.fromarray(wide), kind)), GRAY)


def test_one_bit_is_black_and_white() -> None:
    np.testing.assert_array_equal(decode(file(Image.fromarray(GRAY > 128))), (GRAY > 128) * 255)


def test_palettes_are_colours_or_gray_where_all_of_theirs_are() -> None:
    np.testing.assert_array_equal(decode(file(palette(GRAY))), GRAY)
    np.testing.assert_array_equal(decode(file(palette(GRAY)), (4, 6, 3)), np.stack([GRAY] * 3, 2))
    few = palette(COLOURS)
    np.testing.assert_array_equal(decode(file(few)), np.asarray(few.convert("RGB")))


@pytest.mark.parametrize(("background", "value"), [((0, 0, 0), 0), ((255, 255, 255), 255)])
def test_transparency_is_laid_over_the_background(background: tuple[int, int, int], value: int) -> None:
    convert = Conversion(background=background)
    for pixels in (GRAY, COLOURS):
        alpha = ALPHA if pixels.ndim == 2 else ALPHA[..., None]
        made = Image.fromarray(np.dstack([pixels, ALPHA]))
        for kind in ("PNG", "TIFF"):
            decoded = decode(file(made, kind), None, convert)
            assert decoded.shape == pixels.shape
            assert np.abs(decoded - over(pixels, alpha, value)).max() <= 1
    clear = file(Image.fromarray(np.dstack([COLOURS, ALPHA])), "WEBP", lossless=True, exact=True)
    assert np.abs(decode(clear, None, convert) - over(COLOURS, ALPHA[..., None], value)).max() <= 1


def test_a_transparent_colour_of_a_palette_or_of_gray_is_the_background() -> None:
    for image in (palette(GRAY), Image.fromarray(GRAY)):
        decoded = decode(file(image, transparency=int(GRAY[1, 1])), None, Conversion(background=(255, 255, 255)))
        np.testing.assert_array_equal(decoded, np.where(GRAY[1, 1] == GRAY, 255, GRAY))


def test_gray_over_colours_is_colours() -> None:
    clear = Image.fromarray(np.dstack([GRAY, np.zeros_like(GRAY)]))
    decoded = decode(file(clear), None, Conversion(background=(255, 128, 0)))
    np.testing.assert_array_equal(decoded, np.full((4, 6, 3), (255, 128, 0)))


def test_equal_channels_are_gray_only_where_the_format_has_no_gray() -> None:
    equal = np.stack([GRAY] * 3, 2)
    assert decode(file(Image.fromarray(equal))).shape == (4, 6, 3)
    assert decode(file(Image.fromarray(np.dstack([equal, ALPHA])))).shape == (4, 6, 3)
    for clear in (equal, np.dstack([equal, ALPHA])):
        assert decode(file(Image.fromarray(clear), "WEBP", lossless=True)).shape == (4, 6)
        assert decode(file(Image.fromarray(clear), "WEBP", lossless=True), (4, 6, 3)).shape == (4, 6, 3)


def test_cmyk_is_colours_as_pillow_has_them() -> None:
    made = Image.fromarray(np.dstack([COLOURS, ALPHA]), "CMYK")
    np.testing.assert_array_equal(decode(file(made, "TIFF")), np.asarray(made.convert("RGB")))
    assert decode(file(made, "JPEG")).shape == (4, 6, 3)


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_modes_without_a_rule_are_named(mode: str) -> None:
    with pytest.raises(ValueError, match=f"^is an image of mode {mode}, which is neither gray nor colours; save it as"):
        decode(file(Image.new(mode, (6, 4)), "TIFF"))


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_a_lossy_image_of_gray_is_gray_where_gray_is_wanted(kind: str) -> None:
    smooth = np.add.outer(np.arange(28), np.arange(28)).astype(np.uint8) * 4
    data = file(Image.fromarray(smooth).convert("RGB"), kind, quality=80)
    spread = np.ptp(np.asarray(Image.open(io.BytesIO(data))), axis=2)
    assert spread.max() <= 2
    assert np.abs(decode(data, (28, 28)).astype(int) - smooth).mean() < 5
    assert decode(data, (28, 28, 3)).shape == (28, 28, 3)
    assert decode(file(Image.fromarray(COLOURS), kind), None).shape == (4, 6, 3)


TURNED = {
    1: GRAY, 2: GRAY[:, ::-1], 3: GRAY[::-1, ::-1], 4: GRAY[::-1], 5: GRAY.T, 6: GRAY.T[:, ::-1],
    7: GRAY[::-1, ::-1].T, 8: GRAY.T[::-1],
}  # fmt: skip
"""What is upright, for each orientation of Exif."""


def test_avif_is_known_by_any_of_its_brands() -> None:
    data = file(Image.fromarray(GRAY), "AVIF")
    assert (data[4:12], data[16:20]) == (b"ftypavif", b"avif")
    for brand, other in ((b"avif", b"mif1"), (b"mif1", b"avif"), (b"avis", b"msf1")):
        assert decoding.is_encoded(data[:8] + brand + data[12:16] + other + data[20:])
    short = data[:8] + b"mif1" + data[12:16] + b"heic" + data[20:]
    assert not decoding.is_encoded(short.replace(b"avif", b"heic", 2))
    assert not decoding.is_encoded(bytes(8) + b"avif" + bytes(40))


LOSSLESS: dict[str, Any] = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_upright(orientation: int, kind: str) -> None:
    note = Image.Exif()
    note[0x0112] = orientation
    data = file(Image.fromarray(GRAY), kind, exif=note, **LOSSLESS.get(kind, {}))
    expected = TURNED[orientation]
    np.testing.assert_array_equal(decode(data, expected.shape), expected)
    ignoring = Conversion(applies_exif=False)
    np.testing.assert_array_equal(decode(data, GRAY.shape, ignoring), GRAY)
    np.testing.assert_array_equal(
        decode(data, (2, 5), Conversion((2, 5))),
        np.asarray(Image.fromarray(np.ascontiguousarray(expected)).resize((5, 2), Image.Resampling.BILINEAR)),
    )


def test_a_large_photo_on_its_side_is_decoded_as_small_as_an_upright_one() -> None:
    note = Image.Exif()
    note[0x0112] = 6
    wide = Image.new("RGB", (800, 400), (200, 100, 50))
    wide.paste((0, 0, 255), (0, 0, 400, 400))  # the left half
    data = file(wide, "JPEG", exif=note)
    small = decode(data, (100, 50, 3), Conversion((100, 50)))
    assert small[[10, 90], 25].tolist() == [[0, 0, 254], [200, 100, 50]]  # the left half is the upper one, upright
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (200, 100))
        assert image.size == (200, 100)
        upright = image.transpose(Image.Transpose.ROTATE_270)
        np.testing.assert_array_equal(small, np.asarray(upright.resize((50, 100), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize("note", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"x" * 50])
def test_a_damaged_note_is_none(note: bytes) -> None:
    np.testing.assert_array_equal(decode(file(Image.fromarray(GRAY), "PNG", exif=note)), GRAY)


def test_a_jpeg_of_a_hundred_megapixels_is_read_small_and_other_large_ones_are_named() -> None:
    huge = file(Image.new("L", (12_000, 9_000)), "JPEG")
    assert decode(huge, (28, 28), Conversion((28, 28))).shape == (28, 28)
    with pytest.raises(
        ValueError, match="is 12000 x 9000 pixels; at most 4096 a side; --resize reads larger ones, too"
    ):
        decode(huge)
    with pytest.raises(ValueError, match=r"is 12000 x 9000 pixels; at most 4096 a side$"):
        decode(file(Image.new("1", (12_000, 9_000))), (28, 28), Conversion((28, 28)))


def test_a_progressive_jpeg_that_would_fill_the_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = file(Image.new("L", (600, 500)), "JPEG", progressive=True)
    assert decode(data, (28, 28), Conversion((28, 28))).shape == (28, 28)
    monkeypatch.setattr(decoding, "_MAX_PROGRESSIVE", 299_999)
    with pytest.raises(ValueError, match="is a progressive JPEG of 600 x 500 pixels, which must be decoded whole"):
        decode(data, (28, 28), Conversion((28, 28)))
    assert decode(file(Image.new("L", (600, 500)), "JPEG")).shape == (500, 600)


def test_frames_are_counted_but_for_the_second_picture_of_a_phone() -> None:
    frames = [Image.fromarray(each) for each in make.images(3, (8, 8))]
    for kind, more in (("GIF", True), ("WEBP", True), ("PNG", True), ("TIFF", True), ("MPO", False)):
        data = file(frames[0], kind, save_all=True, append_images=frames[1:])
        assert has_more_frames(data) == more, kind
        assert decode(data).shape == (8, 8)
    assert not has_more_frames(file(frames[0]))
    whole = file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    for size in range(0, len(whole), 7):  # whatever is damaged, it is no error
        assert has_more_frames(whole[:size]) in (True, False)


# JPEG, by two decoders.


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (17, 31), (100, 133), (1, 1, 3), (17, 31, 3), (100, 133, 3)])
@pytest.mark.parametrize("options", [{}, {"quality": 30}, {"subsampling": 0}, {"progressive": True}], ids=str)
def test_a_jpeg_has_the_pixels_that_pillow_gives(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    data = file(Image.fromarray(make.images(1, shape)[0]), "JPEG", **options)
    assert decoding._jpeg(data, "L" if len(shape) == 2 else "RGB") is not None
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data))))


def test_a_damaged_jpeg_is_what_pillow_makes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = file(Image.fromarray(make.images(1, (40, 56, 3))[0]), "JPEG")
    damaged = [whole[:cut] for cut in range(100, len(whole), 97)]
    damaged += [whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :] for at in range(2, len(whole), 23)]
    damaged.append(whole + b"more")
    ours = [outcome(data) for data in damaged]
    monkeypatch.setattr(decoding, "_jpeg", lambda data, mode: None)
    assert ours == [outcome(data) for data in damaged]
    assert {kind for kind, _ in ours} == {"image", "refused"}


def outcome(data: bytes) -> tuple[str, Any]:
    try:
        image = decode(data)
    except ValueError as error:
        return "refused", str(error)
    return "image", (image.shape, image.tobytes())


def test_a_damaged_image_is_a_reason_not_a_warning() -> None:
    """In a process of its own: pytest has its own mind about warnings."""
    data = file(Image.fromarray(GRAY), "TIFF", compression="tiff_deflate")
    code = f"""
from mnist_ray.sources.decoding import decode
for size in range(60, {len(data)}, 3):
    try:
        decode({data!r}[:size])
    except ValueError:
        print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "refused" in done.stdout
    assert "Warning" not in done.stderr
