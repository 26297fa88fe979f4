"""Parquet: every kind of image column, bad rows, damaged files, identity."""

from __future__ import annotations

import errno
import pickle
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from mnist_ray.errors import InputError, RetryableError
from mnist_ray.sources.base import Reading
from mnist_ray.sources.open import open_source
from tests.support import data_makers as make
from tests.support.data_makers import png
from tests.support.reading import assert_said, opened, read

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


def test_a_column_whose_name_is_not_utf8_is_damage(tmp_path: Path) -> None:
    file = make.write_parquet(tmp_path / "a.parquet")
    file.write_bytes(file.read_bytes().replace(b"label", b"\xecabel"))
    assert_said(str(file), r"a\.parquet is not a Parquet file or is damaged \('utf-8' codec")


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


HUB = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"image": None}, "has no column `image`, only label"),
        (
            {"image": pa.array(["x"] * 7)},
            "`image` is text, which is not the base64 of image files; images must be binary or lists",
        ),
        ({"image": pa.array(["a/1.PNG"] * 7)}, "`image` holds paths, not images; write paths and labels into a CSV"),
        ({"image": pa.array([{"bytes": None, "path": "1.png"}] * 7, HUB)}, "a single image, only paths; write paths"),
        ({"image": pa.array([b"12345"] * 7)}, "5 values are not a square gray image"),
        ({"image": pa.nulls(7, pa.binary())}, "without a single image"),
        ({"image": pa.array([[None]] * 7, pa.list_(pa.list_(pa.uint8())))}, "the first image is empty or"),
        ({"image": pa.array([[]] * 7, pa.list_(pa.list_(pa.uint8())))}, "the first image is empty or holds nulls"),
        ({"label": pa.array([[1]] * 7)}, "`label` is list<element: int64>; labels must be class numbers or text"),
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


# Parquet's columns, and its damage.


def test_columns_by_name_among_others(tmp_path: Path) -> None:
    pixels = pa.array([image.tobytes() for image in make.images(7)], pa.binary(16))
    make.write_parquet(
        tmp_path / "a.parquet", image=pa.array(["not pixels"] * 7), label=pa.array(["no number"] * 7),
        thumb=pixels, digit=pa.array([1] * 7), key=pa.array([f"k{row}" for row in range(7)]),
        more=pa.array([{"a": [1]}] * 7),
    )  # fmt: skip
    reading = Reading(image_column="thumb", label_column="digit", id_column="key")
    batch = read(opened(tmp_path, reading=reading))
    assert (batch.ids.tolist(), batch.labels.tolist()) == ([f"k{row}" for row in range(7)], [1] * 7)
    np.testing.assert_array_equal(batch.images, make.images(7))
    with pytest.raises(InputError, match="has no column `digits` for --label-column"):
        opened(tmp_path, reading=replace(reading, label_column="digits"))
    with pytest.raises(InputError, match="--label-column x names a column, and embedded has none"):
        opened("embedded", reading=Reading(label_column="x"))


def damaged_row_group(file: Path, group: int) -> None:
    place = pq.read_metadata(file).row_group(group).column(0).data_page_offset
    data = bytearray(file.read_bytes())
    data[place : place + 12] = b"\xff" * 12
    file.write_bytes(data)


def test_unreadable_files_among_others_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not at all PAR1")
    make.write_parquet(tmp_path / "b.parquet", 8)
    damaged_row_group(make.write_parquet(tmp_path / "c.parquet", 8), 1)
    with pytest.raises(InputError, match=r"a\.parquet is not a Parquet file or is damaged"):
        open_source(str(tmp_path))
    source = opened(tmp_path)
    assert (source.splits, source.units("all")) == ({"all": 17}, [(0, 1), (1, 9), (9, 17)])
    batch = read(source)
    assert [(bad.row, Path(bad.source or "").name) for bad in batch.bad] == [
        (0, "a.parquet"), (12, "c.parquet"), (13, "c.parquet"), (14, "c.parquet"),
    ]  # fmt: skip
    assert batch.bad[0].reason.startswith("is not a Parquet file or is damaged")
    np.testing.assert_array_equal(batch.images, np.concatenate([make.images(8), make.images(8)[[0, 1, 2, 6, 7]]]))
    with pytest.raises(InputError, match=r"c\.parquet is not a Parquet file or is damaged"):
        source.read("all", 9, 17)


def test_ids_that_are_no_text_are_set_aside(tmp_path: Path) -> None:
    ids = pa.array([b"a", b"\xe2", b"c"], pa.binary())
    text = pa.StringArray.from_buffers(3, *ids.buffers()[1:])
    batch = read(opened(make.write_parquet(tmp_path / "a.parquet", 3, id=text)))
    assert batch.ids.tolist() == ["a", "c"]
    assert [(bad.row, bad.reason) for bad in batch.bad] == [(1, "has an id that is not UTF-8")]


def test_a_damaged_first_row_group_is_not_all_that_a_file_has(tmp_path: Path) -> None:
    damaged_row_group(make.write_parquet(tmp_path / "a.parquet", 8), 0)
    batch = read(opened(tmp_path / "a.parquet"))
    assert [bad.row for bad in batch.bad] == [0, 1, 2]
    np.testing.assert_array_equal(batch.images, make.images(8)[3:])


def test_a_disk_that_cannot_be_read_for_a_moment_is_no_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network disk that is away: all images of the unit are set aside, where those of folders are tried again."""
    make.write_parquet(tmp_path / "a.parquet", 7)
    source = opened(tmp_path / "a.parquet")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Error reading bytes from file. Detail: [errno 5] Input/output error")  # as pyarrow

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)
    with pytest.raises(RetryableError, match=r"cannot read .*a\.parquet"):
        source.read("all", 0, 7, strict=False)
