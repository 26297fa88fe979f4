"""Pixels as uint8: checked, converted, resized."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
from PIL import Image

from mnist_ray.sources import decoding, pixels
from mnist_ray.sources.base import Reading
from mnist_ray.sources.pixels import Conversion
from tests.support import data_makers as make
from tests.support.data_makers import png
from tests.support.reading import LENIENT, opened, read


def test_pixel_conversion_spans_its_blocks() -> None:
    many = np.tile(np.arange(4, dtype=np.int32), (10_000, 1)).reshape(10_000, 2, 2)
    many[[0, 4095, 4096, 9_999], 0, 0] = 300
    converted, reasons = pixels.to_uint8(many, pixels.BYTES)
    assert sorted(reasons) == [0, 4095, 4096, 9_999]
    good = np.setdiff1d(np.arange(10_000), list(reasons))
    np.testing.assert_array_equal(converted[good], many[good])


# Conversions.


def test_images_are_converted_as_pillow_does(tmp_path: Path) -> None:
    colours = make.images(7, (9, 6, 3))
    convert = Conversion((4, 5), gray=True, offered=True)
    expected = np.stack(
        [np.asarray(Image.fromarray(each).convert("L").resize((5, 4), Image.Resampling.BILINEAR)) for each in colours]
    )
    make.write_parquet(tmp_path / "raw.parquet", shape=(9, 6, 3), named_shape=True)
    make.write_parquet(tmp_path / "png.parquet", image=pa.array([png(each) for each in colours]))
    np.save(tmp_path / "a.npy", colours)
    (tmp_path / "folder").mkdir()
    for row, each in enumerate(colours):
        Image.fromarray(each).save(tmp_path / "folder" / f"{row}.png")
    Image.fromarray(make.images(1, (30, 20))[0]).save(tmp_path / "folder" / "9.png")  # of another size: it fits too
    for name in ("raw.parquet", "png.parquet", "a.npy", "folder"):
        source = opened(tmp_path / name, reading=Reading(convert=convert))
        assert source.image_shape == (4, 5)
        batch = source.read("all", 0, 7)
        np.testing.assert_array_equal(batch.images, expected)
        assert source.identity() != opened(tmp_path / name).identity()
    assert source.read("all", 7, 8).images.shape == (1, 4, 5)


def test_a_misfit_is_told_the_option(tmp_path: Path) -> None:
    make.write_folders(tmp_path, 7, 5, shape=(4, 4))
    Image.fromarray(make.images(1, (8, 8, 3))[0]).save(tmp_path / "test" / "class-1" / "001.png")
    source = opened(tmp_path, reading=replace(LENIENT, convert=Conversion(offered=True)))
    (bad,) = read(source, "test").bad
    assert bad.reason == "has the shape (8, 8, 3), not (4, 4) like the others; --resize 4x4 --gray converts it"
    assert set(source.shapes) == {(4, 4), (8, 8, 3)}


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)])
@pytest.mark.parametrize("kind", decoding.FORMATS)
def test_images_are_read_by_content_whatever_their_name(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    made = make.images(3, shape)
    lossless = {"WEBP": {"lossless": True}}.get(kind, {})
    for row, image in enumerate(made):
        Image.fromarray(image).save(tmp_path / f"{row}.png", kind, **lossless)
    source = opened(tmp_path)
    assert source.image_shape == shape
    batch = read(source)
    if kind not in ("JPEG", "AVIF"):  # which have losses
        np.testing.assert_array_equal(batch.images, made)
    data = [(tmp_path / f"{row}.png").read_bytes() for row in range(3)]
    assert all(map(decoding.is_encoded, data)) == (kind != "PPM")  # raw pixels may begin so
    if kind != "PPM":
        table = make.write_parquet(tmp_path / "in" / "a.parquet", 3, image=pa.array(data, pa.binary()))
        np.testing.assert_array_equal(read(opened(table)).images, batch.images)


def test_a_gray_webp_among_colours_is_a_colour_image(tmp_path: Path) -> None:
    """The format has no gray: only where gray is wanted are three equal channels one."""
    gray = np.repeat(make.images(1, (8, 8))[0][..., None], 3, axis=2)
    Image.fromarray(make.images(1, (8, 8, 3))[0]).save(tmp_path / "0.png")
    Image.fromarray(gray).save(tmp_path / "1.webp", lossless=True)
    batch = read(opened(tmp_path))
    np.testing.assert_array_equal(batch.images[1], gray)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 3)])
def test_gray_and_rgb_are_made_of_each_other(shape: tuple[int, ...], tmp_path: Path) -> None:
    made = make.images(3, shape)
    np.save(tmp_path / "a.npy", made)
    for row, image in enumerate(made):
        (tmp_path / "b").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "b" / f"{row}.png")
    for name in ("a.npy", "b"):
        plain = opened(tmp_path / name)
        for mode, convert in (("RGB", Conversion(rgb=True)), ("L", Conversion(gray=True))):
            source = opened(tmp_path / name, reading=Reading(convert=convert))
            expected = np.stack([np.asarray(Image.fromarray(image).convert(mode)) for image in made])
            assert source.image_shape == expected.shape[1:]
            np.testing.assert_array_equal(read(source).images, expected)
            assert source.identity() != plain.identity()
            assert source.fingerprint() != plain.fingerprint()
            assert source.digest() == plain.digest()


def test_the_options_that_convert_one_shape_to_another() -> None:
    assert pixels.options((4, 5), (4, 5, 3)) == "--rgb"
    assert pixels.options((4, 5, 3), (6, 5)) == "--resize 6x5 --gray"
    assert pixels.options((4, 5), (4, 6, 4)) == pixels.options((4, 5), (4, 5)) == ""


def test_raw_pixels_that_begin_like_an_image_file_are_raw_pixels() -> None:
    assert not decoding.is_encoded(b"BM" + bytes(14))
    assert not decoding.is_encoded(b"RIFF" + bytes(12))


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(each) for each in make.images(3, (8, 8))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    source = opened(tmp_path)
    np.testing.assert_array_equal(read(source).images[0], make.images(3, (8, 8))[0])
    assert source.remarks == (f"{tmp_path}/a.gif has several frames; the first of each such image is read",)


def photo(height: int, width: int) -> Image.Image:
    """Something smooth, as photographs are."""
    corners = np.random.default_rng(2).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("size", "scale"), [((30, 40), 4), ((60, 70), 2), ((100, 100), 1)])
def test_a_jpeg_is_decoded_at_the_scale_that_is_enough(size: tuple[int, int], scale: int) -> None:
    data = io.BytesIO()
    photo(280, 360).save(data, "JPEG", quality=95)
    given = decoding.decode(data.getvalue(), (*size, 3), Conversion(size))
    with Image.open(data) as small:
        small.draft(None, (360 // scale, 280 // scale))
        assert small.size == (360 // scale, 280 // scale)
        expected = np.asarray(small.resize(size[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(given, expected)
    with Image.open(data) as whole:
        exact = np.asarray(whole.resize(size[::-1], Image.Resampling.BILINEAR))
    assert np.abs(given.astype(int) - exact).max() <= 3
    np.testing.assert_array_equal(
        decoding.decode(data.getvalue(), (*size, 3), Conversion(size, scales_jpeg=False)), exact
    )


def test_a_large_photo_is_read_small() -> None:
    data = io.BytesIO()
    photo(4000, 6000).save(data, "JPEG", quality=50)
    assert decoding.decode(data.getvalue(), (224, 224, 3), Conversion((224, 224))).shape == (224, 224, 3)
    with pytest.raises(ValueError, match="is 6000 x 4000 pixels; at most 4096 a side"):
        decoding.decode(data.getvalue())


@pytest.mark.parametrize("text", ["nan", "NaN", "<NA>", "-1", "-1.0", ""])
def test_a_gap_is_no_label(text: str) -> None:
    assert pixels.by_value(text) == ""


@pytest.mark.parametrize("text", ["nano", "None", "NA", "none", "banana", "-10"])
def test_what_only_looks_like_a_gap_is_a_class(text: str) -> None:
    assert pixels.by_value(text) == text


@pytest.mark.parametrize(
    ("shape", "most", "rows"),
    [((28, 28), 8192, 8192), ((28, 28), 100_000, 16_384), ((224, 224, 3), 8192, 64), ((28, 28), 1000, 512),
     ((4096, 4096, 3), 1024, 1), ((), 1, 1)],
)  # fmt: skip
def test_images_are_read_a_few_megabytes_at_a_time(shape: tuple[int, ...], most: int, rows: int) -> None:
    assert pixels.rows_at_once(shape, most) == rows
