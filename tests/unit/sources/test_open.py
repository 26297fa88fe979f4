"""Every format against arrays that were made beside it; every way in which an input can be wrong, and its message."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import fs

from mnist_ray.config import DATA_FORMATS
from mnist_ray.errors import InputError, RetryableError
from mnist_ray.sources import pixels
from mnist_ray.sources.base import Reading, Source
from mnist_ray.sources.formats import arrays, folders, idx, keras_datasets
from mnist_ray.sources.open import FORMATS, open_source
from mnist_ray.storage.location import Location
from tests.support import data_makers as make


def read_all(source: Source, split: str) -> Any:
    return source.read(split, 0, source.splits[split])


def png(image: Any, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, kind)
    return data.getvalue()


def test_importing_costs_neither_tensorflow_nor_ray_nor_pillow() -> None:
    code = (
        "import sys, mnist_ray.sources.specs\n"
        "print([m for m in ('tensorflow', 'keras', 'ray', 'PIL') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_is_opened_is_what_help_and_messages_name() -> None:
    assert sorted(FORMATS) == sorted(DATA_FORMATS)
    assert all(name in DATA_FORMATS["keras"] for name in keras_datasets._CACHED_AS)


def test_embedded_mnist_is_the_original() -> None:
    source = open_source("embedded")
    assert dict(source.splits) == {"train": 60_000, "test": 10_000}
    assert (source.image_shape, source.classes) == ((28, 28), tuple("0123456789"))
    batch = read_all(source, "test")
    original = gzip.decompress((resources.files("mnist_ray") / "data" / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert batch.images.tobytes() == original[16:]
    assert batch.labels[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    assert batch.ids.tolist() == list(range(10_000))


def writers() -> dict[str, Callable[[Path], Path]]:
    def parquet(folder: Path) -> Path:
        make.write_parquet(folder / "train" / "a.parquet", 7)
        make.write_parquet(folder / "test" / "a.parquet", 5)
        return folder

    return {
        "idx.gz": make.write_idx,
        "idx": lambda folder: make.write_idx(folder, gz=False),
        "npz": lambda folder: make.write_npz(folder.with_suffix(".npz")),
        "parquet": parquet,
    }


@pytest.mark.parametrize("kind", writers())
def test_formats_hold_the_same_rows_in_the_same_order(kind: str, tmp_path: Path) -> None:
    source = open_source(str(writers()[kind](tmp_path / "data")))
    assert (source.image_shape, source.classes, dict(source.splits)) == (
        (4, 4), ("0", "1", "2"), {"train": 7, "test": 5},
    )  # fmt: skip
    source = pickle.loads(pickle.dumps(source))
    arrays._decoded.clear()  # as in another process
    for split, rows in source.splits.items():
        batch = read_all(source, split)
        np.testing.assert_array_equal(batch.images, make.images(rows))
        np.testing.assert_array_equal(batch.labels, make.labels(rows))
        np.testing.assert_array_equal(batch.ids, np.arange(rows))
        for start in range(rows + 1):
            for stop in range(start, rows + 1):
                part = source.read(split, start, stop)
                np.testing.assert_array_equal(part.images, make.images(rows)[start:stop])
                np.testing.assert_array_equal(part.ids, np.arange(start, stop))
                assert (part.images.dtype, part.labels.dtype, part.bad) == (np.uint8, np.int64, ())


def test_digest_is_of_the_content_not_of_path_or_packing(tmp_path: Path) -> None:
    same = [open_source(str(writers()[kind](tmp_path / kind))).digest() for kind in ("idx", "idx.gz", "npz")]
    assert len(set(same)) == 1
    changed = make.images(7)
    changed[3, 1, 1] ^= 1
    assert open_source(str(make.write_npz(tmp_path / "changed.npz", x_train=changed))).digest() != same[0]
    for write in (make.write_folders, writers()["parquet"]):
        first, second = (open_source(str(write(tmp_path / place / write.__name__))).digest() for place in ("a", "b"))
        assert first == second


def test_digests_are_those_of_earlier_releases(tmp_path: Path) -> None:
    """A run that an earlier release has begun is resumed only if they are. The reasons of bad rows are part of them."""
    bad_pixels, bad_labels = make.images(7).astype(np.float32), make.labels(7).astype(np.float64)
    bad_pixels[4, 2, 2], bad_labels[6] = np.nan, 1.5
    plain = str(make.write_npz(tmp_path / "a.npz"))
    sources = {
        "embedded": open_source("embedded"),
        "plain": open_source(plain),
        "bad pixels": open_source(str(make.write_npz(tmp_path / "b.npz", x_train=bad_pixels))),
        "bad labels": open_source(str(make.write_npz(tmp_path / "c.npz", y_train=bad_labels))),
        "converted": open_source(plain, Reading(convert=pixels.Conversion((2, 3), gray=True, offered=True))),
    }
    assert {name: source.identity()[:16] for name, source in sources.items()} == {
        "embedded": "268f3e8995db6646",
        "plain": "8f1b236a27a4fa2b",
        "bad pixels": "91725e14f68d7c26",
        "bad labels": "62434c23b284a528",
        "converted": "99a95d10f1c31dd5",
    }


def test_array_input_that_changes_under_the_run_is_noticed(tmp_path: Path) -> None:
    source = open_source(str(make.write_npz(tmp_path / "data.npz")))
    make.write_npz(tmp_path / "data.npz", y_train=make.labels(7)[::-1])
    arrays._decoded.clear()
    with pytest.raises(InputError, match="has changed since it was opened"):
        source.read("train", 0, 1)


# --- .npz


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("scale", [1, 255])
def test_float_images_give_back_the_exact_bytes(dtype: Any, scale: int, tmp_path: Path) -> None:
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    wide = (every / scale).astype(dtype)
    file = make.write_npz(
        tmp_path / "f.npz", x_train=wide[..., None], y_train=np.array([[1.0]]), x_test=wide[..., None], y_test=[0]
    )
    source = open_source(str(file))
    assert source.image_shape == (16, 16)
    np.testing.assert_array_equal(source.read("train", 0, 1).images, every)
    assert source.read("train", 0, 1).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.nan, "has a pixel nan"),
        (np.inf, "has a pixel inf"),
        (-1, "has a pixel -1"),
        (256, "has a pixel 256"),
        (0.5, "has a pixel 0.5"),
    ],
)
def test_bad_pixels_name_their_row(value: float, said: str, tmp_path: Path) -> None:
    images = make.images(7).astype(np.float32)
    images[4, 2, 2] = value
    source = open_source(str(make.write_npz(tmp_path / "f.npz", x_train=images)))
    with pytest.raises(InputError, match=rf"f\.npz: train row 4 {said}.*pixels must be whole numbers 0\.\.255"):
        read_all(source, "train")
    batch = source.read("train", 2, 7, strict=False)
    assert batch.ids.tolist() == [2, 3, 5, 6]
    np.testing.assert_array_equal(batch.images, make.images(7)[[2, 3, 5, 6]])
    assert [(bad.row, bad.source) for bad in batch.bad] == [(4, None)]
    assert source.read("train", 0, 4).bad == ()


@pytest.mark.parametrize("label", [-1, 65_536, 1.5, np.nan, np.inf])
def test_bad_labels_name_their_row(label: float, tmp_path: Path) -> None:
    labels = make.labels(7).astype(np.float64)
    labels[6] = label
    source = open_source(str(make.write_npz(tmp_path / "f.npz", y_train=labels)))
    assert source.classes == ("0", "1", "2")
    with pytest.raises(InputError, match="train row 6 has the label"):
        read_all(source, "train")
    assert source.read("train", 0, 7, strict=False).ids.tolist() == list(range(6))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"y_test": None}, r"has no array y_test, only x_train, y_train, x_test"),
        ({"y_test": make.labels(4)}, "5 test images but 4 labels"),
        ({"y_test": np.eye(5)}, r"y_test has the shape \(5, 5\)"),
        ({"x_test": make.images(5, (3, 4))}, r"images must have one size.* \(4, 4\) and \(3, 4\)"),
        ({"x_test": np.zeros((5, 16), np.uint8)}, r"x_test has the shape \(5, 16\)"),
        ({"x_test": np.array(["a"] * 5)}, "x_test is of type <U1"),
        ({"x_train": np.array([{}] * 7, dtype=object)}, "x_train is not a plain array"),
        ({"x_test": make.images(0), "y_test": make.labels(0)}, "holds no test images"),
        ({"x_train": make.images(7, (4, 4, 2)), "x_test": make.images(5, (4, 4, 2))}, r"not \(4, 4, 2\)"),
    ],
)
def test_npz_errors(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert_said(str(make.write_npz(tmp_path / "f.npz", **changed)), said)


def test_damaged_npz(tmp_path: Path) -> None:
    file = make.write_npz(tmp_path / "f.npz")
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    assert_said(str(file), "truncated or damaged")
    middle = len(whole) // 8
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    assert_said(str(file), "damaged")


def assert_said(spec: str, said: str, **options: Any) -> None:
    """One line, and the right one."""
    with pytest.raises(InputError, match=said) as raised:
        open_source(spec, Reading(**options))
    assert "\n" not in str(raised.value)


# --- IDX


def _replaced(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("train-images-idx3-ubyte", lambda data: b"", "train-images-idx3-ubyte is empty"),
        ("train-images-idx3-ubyte", lambda data: data[:-1], "truncated: its header promises 112 bytes.*and 111 follow"),
        ("train-images-idx3-ubyte", lambda data: data[:9], "truncated within its header"),
        ("train-images-idx3-ubyte", lambda data: data + b"x", "too long"),
        ("t10k-labels-idx1-ubyte", lambda data: b"\0\0\x0d\x01" + data[4:], "begins with 00000d01, not 00000801"),
        ("t10k-labels-idx1-ubyte", lambda data: make.idx_bytes(make.labels(4)), "5 test images but 4 labels"),
        ("t10k-images-idx3-ubyte", lambda data: make.idx_bytes(make.images(5, (4, 5))), "one size"),
        ("t10k-images-idx3-ubyte", lambda data: gzip.compress(data)[:-5], "truncated or damaged"),
        ("t10k-images-idx3-ubyte", lambda data: gzip.compress(data)[:-8] + b"12345678", "truncated or damaged"),
    ],
)
def test_damaged_idx(name: str, change: Callable[[bytes], bytes], said: str, tmp_path: Path) -> None:
    make.write_idx(tmp_path, gz=False)
    _replaced(tmp_path / name, change)
    assert_said(str(tmp_path), said)


def test_idx_with_a_file_missing_or_no_rows(tmp_path: Path) -> None:
    assert_said(str(make.write_idx(tmp_path / "empty", 0, 0)), "holds no train images")
    (make.write_idx(tmp_path / "less") / "t10k-labels-idx1-ubyte.gz").unlink()
    assert_said(str(tmp_path / "less"), r"t10k-labels-idx1-ubyte\[\.gz\] is missing")


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_damaged_embedded_file_is_named(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(str(resources.files("mnist_ray")))
    (tmp_path / "data").mkdir()
    for name in idx.FILES:
        (tmp_path / "data" / f"{name}.gz").symlink_to(package / "data" / f"{name}.gz")
    broken = tmp_path / "data" / "t10k-labels-idx1-ubyte.gz"
    whole = gzip.decompress(broken.read_bytes())
    broken.unlink()
    if damage == "flipped":
        broken.write_bytes(gzip.compress(whole[:-1] + b"\x05"))
    elif damage == "truncated":
        broken.write_bytes(gzip.compress(whole)[:-3])
    monkeypatch.setattr("mnist_ray.sources.formats.idx.resources.files", lambda package: tmp_path)
    assert_said("embedded", r"t10k-labels-idx1-ubyte\.gz is .*install mnist-ray again|truncated or damaged")


# --- keras:NAME


def test_keras_cache_is_read_without_importing_keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "datasets").mkdir()
    make.write_npz(tmp_path / "datasets" / "mnist.npz")
    make.write_idx(tmp_path / "datasets" / "fashion-mnist", 6, 4)
    assert dict(open_source("keras:mnist").splits) == {"train": 7, "test": 5}
    fashion = open_source("keras:fashion_mnist")
    assert (fashion.name, dict(fashion.splits)) == ("keras:fashion_mnist", {"train": 6, "test": 4})
    assert_said("keras:imagenet", "keras:imagenet is not known; there are keras:mnist, keras:fashion_mnist")


def test_keras_without_network_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that nothing answers at stands for a machine without network."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(RetryableError) as raised:
        open_source("keras:mnist")
    assert re.fullmatch(
        r"keras:mnist is not in Keras' cache and cannot be downloaded \(URL fetch failure on https://.*"
        r"Connection refused.*\); try again with a network, or use --data embedded",
        str(raised.value),
    )


def test_keras_downloads_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "datasets").mkdir()
    made, cached = make.write_npz(tmp_path / "made.npz"), tmp_path / "datasets" / "mnist.npz"
    download = f"import os, shutil; assert os.getpid() != {os.getpid()}; shutil.copy({str(made)!r}, {str(cached)!r})"
    monkeypatch.setattr(keras_datasets, "_DOWNLOAD", download)
    assert dict(open_source("keras:mnist").splits) == {"train": 7, "test": 5}
    cached.unlink()
    monkeypatch.setattr(keras_datasets, "_DOWNLOAD", "")
    monkeypatch.setattr(keras_datasets, "_FALLBACK_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(RetryableError, match=f"not into {tmp_path}; set KERAS_HOME to a writable folder"):
        open_source("keras:mnist")


# --- class folders


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (4, 4, 3)])
def test_class_folders(shape: tuple[int, ...], tmp_path: Path) -> None:
    source = open_source(str(make.write_folders(tmp_path, 7, 5, shape=shape)))
    assert (source.image_shape, source.classes) == (shape, ("class-0", "class-1", "class-2"))
    batch = pickle.loads(pickle.dumps(source)).read("train", 0, 7)
    order = [0, 3, 6, 1, 4, 2, 5]  # class by class
    np.testing.assert_array_equal(batch.images, make.images(7, shape)[order])
    assert batch.labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert batch.ids.tolist() == [f"train/class-{row % 3}/{row:03d}.png" for row in order]
    assert batch.sources == [str(tmp_path / name) for name in batch.ids]
    assert source.read("train", 2, 4).ids.tolist() == batch.ids[2:4].tolist()
    assert source.read("train", 3, 3).images.shape == (0, *shape)


def test_class_folders_in_an_object_store(tmp_path: Path) -> None:
    """Files are fetched many at a time there, and still come in order; a sub-tree filesystem stands for the store."""
    local = open_source(str(make.write_folders(tmp_path, 7, 5)))
    store = Location(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "", "store://")
    assert isinstance(local, folders.FolderSource)
    remote = replace(local, folder=store)
    assert remote.read("train", 1, 6).ids.tolist() == local.read("train", 1, 6).ids.tolist()
    np.testing.assert_array_equal(remote.read("train", 0, 7).images, local.read("train", 0, 7).images)
    assert remote.digest() == local.digest()


def test_jpeg_and_images_beside_the_class_folders(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.fromarray(make.images(1, (8, 8))[0]).save(tmp_path / "cat" / "a.JPG", "JPEG")
    Image.fromarray(make.images(1, (8, 8))[0]).save(tmp_path / "loose.png")
    (tmp_path / "notes.txt").write_text("not read")
    (tmp_path / ".DS_Store").write_text("not read")
    source = open_source(str(tmp_path))
    assert (dict(source.splits), source.choose_split("test")) == ({"all": 2}, "all")
    batch = source.read("all", 0, 2)
    assert (batch.ids.tolist(), batch.labels.tolist()) == (["cat/a.JPG", "loose.png"], [0, -1])
    assert source.classes == ("cat",)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is an empty file"),
        (b"GIF89a", "is not a readable PNG or JPEG"),
        (png(make.images(1)[0])[:-25], "is not a readable PNG or JPEG"),
        (png(make.images(1, (4, 5))[0]), r"has the shape \(4, 5\), not \(4, 4\)"),
        (png(make.images(1, (4, 4, 3))[0]), r"has the shape \(4, 4, 3\), not \(4, 4\)"),
        (png(make.images(1, (4, 4, 4))[0]), "is an image of mode RGBA"),
        (png(np.zeros((5000, 1), np.uint8)), "is 1 x 5000 pixels; at most 4096 a side"),
    ],
)
def test_bad_image_file_is_named(data: bytes, said: str, tmp_path: Path) -> None:
    make.write_folders(tmp_path, 7, 5)
    (tmp_path / "train" / "class-1" / "002.png").write_bytes(data)
    source = open_source(str(tmp_path))
    with pytest.raises(InputError, match=rf"class-1/002\.png: train row 4 {said}") as raised:
        read_all(source, "train")
    assert "\n" not in str(raised.value)
    batch = source.read("train", 0, 8, strict=False)
    assert len(batch.ids) == len(batch.images) == len(batch.labels) == 7
    assert [(bad.row, bad.source) for bad in batch.bad] == [(4, str(tmp_path / "train/class-1/002.png"))]


def test_folders_without_a_readable_image(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("hello")
    assert_said(str(tmp_path), r"holds no image that can be read: .*a/x\.txt is not a readable PNG or JPEG")


# --- Parquet


def as_lists(kind: Any, nested: bool, scale: float = 1) -> Any:
    values = (make.images(7) / scale).reshape(7, 4, 4) if nested else (make.images(7) / scale).reshape(7, 16)
    return pa.array(values.tolist(), pa.list_(pa.list_(kind)) if nested else pa.list_(kind))


IMAGE_COLUMNS = {
    "fixed_size_binary": lambda: pa.array([image.tobytes() for image in make.images(7)], pa.binary(16)),
    "binary": lambda: pa.array([image.tobytes() for image in make.images(7)], pa.binary()),
    "large_binary": lambda: pa.array([image.tobytes() for image in make.images(7)], pa.large_binary()),
    "png": lambda: pa.array([png(image) for image in make.images(7)]),
    "hugging face": lambda: pa.array([{"bytes": png(image), "path": None} for image in make.images(7)]),
    "flat uint8": lambda: as_lists(pa.uint8(), False),
    "nested int64": lambda: as_lists(pa.int64(), True),
    "nested float 0..255": lambda: as_lists(pa.float32(), True),
    "nested float 0..1": lambda: as_lists(pa.float32(), True, 255),
    "fixed size lists": lambda: pa.array(
        make.images(7).tolist(), pa.list_(pa.list_(pa.uint8(), 4), 4)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", IMAGE_COLUMNS)
@pytest.mark.parametrize("row_group_size", [1, 3, 100])
def test_parquet_image_columns(kind: str, row_group_size: int, tmp_path: Path) -> None:
    file = make.write_parquet(tmp_path / "a.parquet", image=IMAGE_COLUMNS[kind](), row_group_size=row_group_size)
    source = open_source(str(file))
    assert (source.image_shape, source.classes, dict(source.splits)) == ((4, 4), ("0", "1", "2"), {"all": 7})
    for start, stop in [(0, 7), (2, 5), (6, 7), (4, 4)]:
        batch = source.read("all", start, stop)
        np.testing.assert_array_equal(batch.images, make.images(7)[start:stop])
        np.testing.assert_array_equal(batch.labels, make.labels(7)[start:stop])


@pytest.mark.parametrize("kind", IMAGE_COLUMNS)
def test_parquet_bad_rows(kind: str, tmp_path: Path) -> None:
    """A null image, a null and a wrong label, in every kind of column; the other rows are untouched."""
    column = IMAGE_COLUMNS[kind]()
    values = column.to_pylist()
    values[1] = None
    file = make.write_parquet(
        tmp_path / "a.parquet", image=pa.array(values, column.type), label=pa.array([0, 1, None, 0, -5, 2, 0])
    )
    source = open_source(str(file))
    assert source.classes == ("0", "1", "2")
    batch = source.read("all", 0, 7, strict=False)
    np.testing.assert_array_equal(batch.images, make.images(7)[[0, 2, 3, 5, 6]])
    assert (batch.ids.tolist(), batch.labels.tolist()) == ([0, 2, 3, 5, 6], [0, -1, 0, 2, 0])
    assert [bad.row for bad in batch.bad] == [1, 4]
    assert batch.bad[0].reason == "has no image"
    assert batch.bad[1].reason.startswith("has the label -5")
    with pytest.raises(InputError, match=r"a\.parquet: all row 1 has no image \(and 1 more\)"):
        source.read("all", 0, 7)


@pytest.mark.parametrize("size", [2, 3, 17, 64])
def test_parquet_rows_of_other_sizes_are_found_by_halving(size: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(size)
    bad = set(np.flatnonzero(rng.random(size) < 0.3)) - {0}
    raw = [image.tobytes()[: 5 if row in bad else 16] for row, image in enumerate(make.images(size))]
    nested = [[list(part) for part in (value[i : i + 4] for i in range(0, len(value), 4))] for value in raw]
    for column in (pa.array(raw, pa.binary()), pa.array(nested, pa.list_(pa.list_(pa.float64())))):
        source = open_source(str(make.write_parquet(tmp_path / "a.parquet", size, image=column, row_group_size=50)))
        batch = source.read("all", 0, size, strict=False)
        assert [each.row for each in batch.bad] == sorted(bad)
        kept = [row for row in range(size) if row not in bad]
        assert batch.ids.tolist() == kept
        np.testing.assert_array_equal(batch.images, make.images(size)[kept])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1.5])
def test_parquet_bad_float_names_its_row(value: float, tmp_path: Path) -> None:
    numbers = (make.images(7) / 255).reshape(7, 16)
    numbers[5, 3] = value
    file = make.write_parquet(tmp_path / "a.parquet", image=pa.array(numbers.tolist()))
    source = open_source(str(file))
    with pytest.raises(InputError, match=r"all row 5 has a pixel .*; pixels must be 0\.\.1 as in the first rows"):
        source.read("all", 3, 7)
    kept = source.read("all", 0, 7, strict=False)
    assert kept.ids.tolist() == [0, 1, 2, 3, 4, 6]
    np.testing.assert_array_equal(kept.images, make.images(7)[[0, 1, 2, 3, 4, 6]])


def test_parquet_directory_ids_units_and_shape(tmp_path: Path) -> None:
    for name, rows in (("b", 5), ("a", 3), ("c", 0), ("d", 1)):
        image = [image.tobytes() for image in make.images(rows, (2, 8))]
        make.write_parquet(
            tmp_path / f"{name}.parquet", rows, shape=(2, 8), named_shape=True, label=None,
            image=pa.array(image, pa.binary(16)), id=pa.array([f"{name}{row}" for row in range(rows)], pa.string()),
            number=pa.array(range(100, 100 + rows), pa.int32()),
        )  # fmt: skip
    source = open_source(str(tmp_path))
    assert (source.image_shape, source.classes, dict(source.splits)) == ((2, 8), (), {"all": 9})
    assert source.units("all") == [(0, 3), (3, 8), (8, 9)]
    batch = source.read("all", 1, 9)
    assert batch.ids.tolist() == ["a1", "a2", "b0", "b1", "b2", "b3", "b4", "d0"]
    assert batch.labels.tolist() == [-1] * 8
    np.testing.assert_array_equal(batch.images[2:7], make.images(5, (2, 8)))
    numbered = open_source(str(tmp_path), Reading(id_column="number"))
    assert numbered.read("all", 2, 5).ids.tolist() == [102, 100, 101]
    assert numbered.digest() != source.digest()
    assert_said(str(tmp_path), "has no column `key` for --id-column", id_column="key")
    with pytest.raises(InputError, match="has no train and no test images"):
        source.require_training()


def test_parquet_in_another_filesystem(tmp_path: Path) -> None:
    make.write_parquet(tmp_path / "train" / "a.parquet")
    make.write_parquet(tmp_path / "test" / "a.parquet", 2)
    source = pickle.loads(pickle.dumps(open_source(f"file://{tmp_path}")))
    assert dict(source.splits) == {"train": 7, "test": 2}
    np.testing.assert_array_equal(source.read("train", 0, 7).images, make.images(7))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"image": None}, "has no column `image`, only label"),
        ({"image": pa.array(["x"] * 7)}, "`image` is string; images must be binary or lists of numbers"),
        ({"image": pa.array([b"12345"] * 7)}, "5 values are not a square gray image"),
        ({"image": pa.nulls(7, pa.binary())}, "without a single image"),
        ({"image": pa.array([[None]] * 7, pa.list_(pa.list_(pa.uint8())))}, "the first image is empty or"),
        ({"image": pa.array([[]] * 7, pa.list_(pa.list_(pa.uint8())))}, "the first image is empty or holds nulls"),
        ({"label": pa.array(["seven"] * 7)}, "`label` is string; labels must be class numbers"),
        ({"id": pa.array([1.5] * 7)}, "`id` is double; ids must be integers or strings"),
    ],
)
def test_parquet_errors(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert_said(str(make.write_parquet(tmp_path / "a.parquet", **changed)), said)


def test_parquet_files_that_differ_or_are_damaged(tmp_path: Path) -> None:
    file = make.write_parquet(tmp_path / "a.parquet", 0)
    assert_said(str(file), "without a single image")
    make.write_parquet(file)
    other = make.write_parquet(tmp_path / "b.parquet", shape=(3, 3))
    threads = threading.active_count()
    with pytest.raises(InputError, match=r"b\.parquet has image fixed_size_binary\[9\].*but .*a\.parquet image fixed"):
        open_source(str(tmp_path))
    assert threading.active_count() == threads  # those that read footers have ended
    other.unlink()
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    assert_said(str(file), r"a\.parquet is not a Parquet file or is damaged")
    file.write_bytes(whole)
    source = open_source(str(file))
    make.write_parquet(file, 8)
    with pytest.raises(InputError, match="has 8 rows, not 7: it has changed"):
        source.read("all", 0, 1)
    file.unlink()
    with pytest.raises(InputError, match=r"a\.parquet does not exist"):
        source.read("all", 0, 1)


# --- what is none of these


def test_specs_that_are_nothing(tmp_path: Path) -> None:
    assert_said("embeded", r"embeded does not exist; --data takes embedded .*, keras:NAME ")
    assert_said(str(tmp_path), "holds no images that mnist-ray can read; --data takes")
    (tmp_path / "x.npz").write_bytes(b"")
    assert_said(str(tmp_path / "x.npz"), r"x\.npz is empty")
    (tmp_path / "x.npz").write_bytes(b"<html>404")
    assert_said(str(tmp_path / "x.npz"), "is not a file that mnist-ray reads")
    assert_said("embedded", "names a Parquet column", id_column="x")
    assert_said("wat://x", "wat")
    with pytest.raises(InputError, match="has no split 'valid'; it has train and test"):
        open_source("embedded").choose_split("valid")


def test_pixel_conversion_spans_its_blocks() -> None:
    many = np.tile(np.arange(4, dtype=np.int32), (10_000, 1)).reshape(10_000, 2, 2)
    many[[0, 4095, 4096, 9_999], 0, 0] = 300
    converted, reasons = pixels.to_uint8(many, False)
    assert sorted(reasons) == [0, 4095, 4096, 9_999]
    good = np.setdiff1d(np.arange(10_000), list(reasons))
    np.testing.assert_array_equal(converted[good], many[good])


def test_checksums_in_the_readme_are_those_that_are_checked() -> None:
    readme = (resources.files("mnist_ray") / "data" / "README.md").read_text()
    assert "CC BY-SA 3.0" in readme
    for name, md5 in idx._MNIST_MD5.items():
        data = gzip.decompress((resources.files("mnist_ray") / "data" / f"{name}.gz").read_bytes())
        assert hashlib.md5(data).hexdigest() == md5
        assert f"| `{name}.gz` | {md5} |" in readme


# --- identity: what a scoring is gone on with by


def test_identity_reads_footers_not_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make.write_parquet(tmp_path / "in" / "a.parquet", 7)
    make.write_parquet(tmp_path / "in" / "b.parquet", 300, row_group_size=1)  # a footer longer than the first look
    monkeypatch.setattr("mnist_ray.sources.formats.parquet_files._TAIL", 1000)
    first = open_source(str(tmp_path / "in"))
    assert (
        first.identity() == open_source(str(tmp_path / "in")).identity() == pickle.loads(pickle.dumps(first)).identity()
    )
    moved = open_source(str((tmp_path / "in").rename(tmp_path / "moved")))
    assert moved.identity() == first.identity()
    for file in moved.name, f"{moved.name}/a.parquet":
        assert open_source(file, Reading(id_column="label")).identity() != open_source(file).identity()
    make.write_parquet(tmp_path / "moved" / "a.parquet", 7, label=pa.array([0, 1, 2, 0, 1, 2, 1]))
    changed = open_source(str(tmp_path / "moved"))
    assert changed.identity() != first.identity()
    for file in changed.files["all"]:  # type: ignore[attr-defined]
        Path(file.location.path).unlink()
    assert changed.identity()  # without another look at the files
