""".npz and .npy: every kind of array that is read, and what is refused."""

from __future__ import annotations

import gzip
import io
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from mnist_ray.errors import InputError, RetryableError
from mnist_ray.sources.base import Reading
from mnist_ray.sources.formats import arrays
from mnist_ray.sources.formats.npz import _load_npy, load_npz
from mnist_ray.sources.open import open_source
from mnist_ray.storage.location import Location
from tests.support import data_makers as make
from tests.support.reading import assert_said, opened, read, read_all
from tests.support.tfrecord_maker import write_tfrecord


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
        (
            {"y_test": np.ones((5, 5))},
            r"y_test has the shape \(5, 5\): an image may have several labels, but",
        ),
        ({"y_test": np.full((5, 5), 2)}, r"y_test has the shape \(5, 5\); labels must be one class number an image"),
        ({"x_test": make.images(5, (3, 4))}, r"images must have one size.* \(4, 4\) and \(3, 4\)"),
        ({"x_test": np.zeros((5, 15), np.uint8)}, r"x_test has the shape \(5, 15\)"),
        ({"x_test": np.array(["a"] * 5)}, "x_test has the type <U1; images must be numbers"),
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


# Arrays.


@pytest.mark.parametrize("name", ["a.npy", "stored.npz", "packed.npz"])
def test_a_store_that_is_away_for_a_moment_is_no_damage(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever read it refuses: the same command may succeed later."""
    np.save(tmp_path / "a.npy", make.images(7))
    np.savez(tmp_path / "stored.npz", x=make.images(7), y=make.labels(7))
    np.savez_compressed(tmp_path / "packed.npz", x=make.images(7), y=make.labels(7))
    file = Location(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), name)  # not a local one
    load = partial(_load_npy if name.endswith(".npy") else load_npz, file, signed=False)

    class Away(io.BytesIO):
        reads_left = 0

        def read(self, size: int | None = -1) -> bytes:
            Away.reads_left -= 1
            if Away.reads_left < 0:
                raise OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 7")
            return super().read(size)

    whole = (tmp_path / name).read_bytes()
    monkeypatch.setattr(Location, "open_file", lambda self: pa.PythonFile(Away(whole), "r"))
    for reads in range(99):
        Away.reads_left = reads
        try:
            found = load()
        except RetryableError as error:
            assert str(error).startswith(f"cannot read {name}: AWS Error NETWORK_CONNECTION")  # noqa: PT017
        else:
            break
    assert reads > 0
    np.testing.assert_array_equal(found["all"].images[:], make.images(7))


def test_an_actors_two_threads_decode_each_input_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One works on the first of two inputs, the other on the second; or both begin with the same one."""
    sources = [opened(make.write_npz(tmp_path / f"{rows}.npz", rows)) for rows in (7, 8)]
    loaded: list[int] = []

    def counted(number: int, load: Any) -> Any:
        time.sleep(0.05)
        loaded.append(number)
        return load()

    first, second = (
        replace(source, load=partial(counted, number, source.load)) for number, source in enumerate(sources)
    )
    arrays._decoded.clear()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda source: source.read("test", 0, 3), [first, first, second, second, first, second] * 5))
    assert sorted(loaded) == [0, 1]


def test_arrays_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", make.images(7))
    np.savez(tmp_path / "b.npz", images=make.images(7), labels=make.labels(7))
    np.savez_compressed(tmp_path / "c.npz", x=np.asfortranarray(make.images(7) / 255))
    for name, labels in (("a.npy", [-1] * 7), ("b.npz", make.labels(7).tolist()), ("c.npz", [-1] * 7)):
        batch = read(opened(tmp_path / name))
        np.testing.assert_array_equal(batch.images, make.images(7))
        assert batch.labels.tolist() == labels
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole.replace(b"(7, 4, 4)", b"(9, 4, 4)"))
    with pytest.raises(
        InputError, match=r"a\.npy is truncated or damaged: its header promises \(9, 4, 4\) of uint8, and 112"
    ):
        opened(tmp_path / "a.npy")


def test_bombs_are_refused_before_they_go_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a few hundred kilobytes; what they would fill is taken for large here."""
    monkeypatch.setattr("mnist_ray.sources.formats.arrays._BOMB_BYTES", 8 << 20)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((1000, 100, 100), np.uint8))
    with pytest.raises(InputError, match=r"a\.npz: x decompresses to more than 100 times its size"):
        opened(tmp_path / "a.npz")
    make.write_idx(tmp_path / "idx")
    header = make.idx_bytes(make.images(1))[:4] + b"\x7f\xff\xff\xff" + b"\0\0\x1c\0" * 2  # 2^31 - 1 rows
    bomb = tmp_path / "idx" / "train-images-idx3-ubyte.gz"
    bomb.write_bytes(gzip.compress(header + bytes(64 << 20)))
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz decompresses to more than 100 times its size"):
        opened(tmp_path / "idx")
    bomb.write_bytes(gzip.compress(make.idx_bytes(make.images(7)) + bytes(64 << 20)))  # no more is unpacked than said
    with pytest.raises(InputError, match="is too long: its header promises 112 bytes of images, and 113 follow"):
        opened(tmp_path / "idx")


def test_uncompressed_arrays_are_mapped(tmp_path: Path) -> None:
    from mnist_ray.sources.formats import arrays

    np.save(tmp_path / "a.npy", make.images(7))
    make.write_npz(tmp_path / "b.npz")
    for name, split in (("a.npy", "all"), ("b.npz", "train")):
        source = opened(tmp_path / name)
        images = source.read(split, 0, 7).images
        while not isinstance(images, np.memmap) and images.base is not None:
            images = images.base
        assert isinstance(images, np.memmap), name
    assert arrays._decoded


# Arrays in other forms.


@pytest.mark.parametrize(
    ("stored", "expected", "told"),
    [
        (make.images(7).reshape(7, 16), make.images(7), "16 pixels an image; they are read as (4, 4)"),
        (make.images(7)[:, None], make.images(7), "the shape (7, 1, 4, 4); it is read as (7, 4, 4, 1)"),
        (
            make.images(7, (4, 6, 3)).transpose(0, 3, 1, 2), make.images(7, (4, 6, 3)),
            "the shape (7, 3, 4, 6); it is read as (7, 4, 6, 3)",
        ),
        (make.images(7) > 100, (make.images(7) > 100) * 255, None),
        (make.images(7).reshape(7, 16) / 255, make.images(7), "16 pixels an image; they are read as (4, 4)"),
    ],
)  # fmt: skip
def test_images_in_other_forms(stored: Any, expected: Any, told: str | None, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", stored)
    source = opened(tmp_path / "a.npy")
    np.testing.assert_array_equal(read(source).images, expected)
    assert source.remarks == ((f"{tmp_path}/a.npy: the images have {told}",) if told else ())
    np.savez(tmp_path / "a.npz", x=stored, y=make.labels(7))
    np.testing.assert_array_equal(read(opened(tmp_path / "a.npz")).images, expected)


HOT = np.eye(3)[[2, 0, 1, 2, 0, 1, 2]]
"""Labels of seven images."""


@pytest.mark.parametrize(
    ("stored", "classes", "numbers"),
    [
        (HOT, "012", [2, 0, 1, 2, 0, 1, 2]),
        (HOT.astype(np.uint8), "012", [2, 0, 1, 2, 0, 1, 2]),
        (np.array(["cow", "ant", "", "cow", "ant", "dog", "cow"]), ("ant", "cow", "dog"), [1, 0, -1, 1, 0, 2, 1]),
        (np.array([b"cow", b"ant"] * 3 + [b"cow"]), ("ant", "cow"), [1, 0, 1, 0, 1, 0, 1]),
        (np.array([["2"], ["0"], ["1"], ["2"], ["0"], ["01"], ["2"]]), "012", [2, 0, 1, 2, 0, 1, 2]),
        (np.array([True, False] * 3 + [True]), "01", [1, 0, 1, 0, 1, 0, 1]),
    ],
)
def test_labels_in_other_forms(stored: Any, classes: Any, numbers: list[int], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=make.images(7), y=stored)
    source = opened(tmp_path / "a.npz")
    assert (source.classes, read(source).labels.tolist()) == (tuple(classes), numbers)
    assert source.absent == {"all": ()}
    is_hot = stored.ndim == 2 and stored.shape[1] == 3
    assert source.remarks == ((f"{tmp_path}/a.npz: labels are one-hot; each is the number of its 1",) if is_hot else ())


def test_text_labels_of_splits_share_their_numbers(tmp_path: Path) -> None:
    names = np.array(["dog", "ant", "cow", "dog", "ant", "cow", "dog"])
    file = make.write_npz(tmp_path / "a.npz", y_train=names, y_test=names[:5][::-1])
    source = open_source(str(file))
    assert (source.classes, source.absent) == (("ant", "cow", "dog"), {"train": (), "test": ()})
    assert read(source, "test").labels.tolist() == [0, 2, 1, 0, 2]
    other = make.write_npz(tmp_path / "b.npz", y_train=np.char.upper(names), y_test=np.char.upper(names[:5][::-1]))
    assert open_source(str(other)).digest() != source.digest()


def test_a_label_that_is_not_one_hot_like_the_others_is_bad(tmp_path: Path) -> None:
    labels = HOT.copy()
    labels[3], labels[5] = [1, 1, 0], [0, 0, 0]
    np.savez(tmp_path / "a.npz", x=make.images(7), y=labels)
    batch = read(opened(tmp_path / "a.npz"))
    assert batch.labels.tolist() == [2, 0, 1, 0, 2]
    assert [(bad.row, bad.reason) for bad in batch.bad] == [
        (row, "has a label that is not one-hot like the others") for row in (3, 5)
    ]


KINDS = ["npy", "npz", "csv", "parquet", "tfrecord"]


def write_floats(file: Path, kind: str, images: Any) -> Path:
    if kind == "npy":
        np.save(file, images)
    elif kind == "npz":
        np.savez(file, x=images)
    elif kind == "csv":
        np.savetxt(file, images.reshape(-1, 16), delimiter=",")
    elif kind == "parquet":
        make.write_parquet(file, image=pa.array(images.reshape(-1, 16).tolist()), label=None)
    else:
        write_tfrecord(file, [{"image": image.ravel().tolist()} for image in images])
    return file


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("normalise", "low", "more"),
    [
        (lambda x: x / 127.5 - 1, "-1", r"; or, to score them, add --pixels -1-1 if they are x / 127\.5 - 1 of it$"),
        (lambda x: x / 255 - 0.5, r"-0\.5", "$"),
        (lambda x: (x - 33.3) / 78.6, r"-0\.424", "$"),
    ],
)
def test_normalised_pixels_are_refused_by_name(normalise: Any, low: str, more: str, kind: str, tmp_path: Path) -> None:
    """-1 to 1, or by mean and deviation: nobody can know what they were."""
    images = make.images(40) // 3 * (np.arange(40) > 0)[:, None, None]  # dark ones, and one that is black
    images[5, 0, 0] = 255
    file = write_floats(tmp_path / f"a.{kind}", kind, normalise(images).astype(np.float32))
    said = rf"pixels from {low} to .* have been normalised; save the images .*, as 0\.\.255 or 0\.\.1{more}"
    assert_said(str(file), said)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_of_minus_one_to_one_are_read_where_the_user_says_so(kind: str, tmp_path: Path) -> None:
    images = np.arange(20 * 16, dtype=np.int64).reshape(20, 4, 4) % 256  # every byte
    normalised = (images / 127.5 - 1).astype(np.float32)
    normalised[3, 0, 0] = 1.5
    file = write_floats(tmp_path / f"a.{kind}", kind, normalised)
    source = opened(file, reading=Reading(signed=True))
    batch = source.read("all", 0, 20, strict=False)
    np.testing.assert_array_equal(batch.images, np.delete(images, 3, axis=0))
    assert [(bad.row, bad.reason) for bad in batch.bad] == [
        (3, "has a pixel 1.5; pixels must be -1..1 as in the first rows")
    ]
    for scale in (1, 255):  # what is not so is read as ever
        file = write_floats(tmp_path / f"b.{kind}", kind, images / scale)
        np.testing.assert_array_equal(read(opened(file, reading=Reading(signed=True))).images, images)
