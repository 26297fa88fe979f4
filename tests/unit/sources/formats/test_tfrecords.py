"""TFRecord files of tf.train.Example, without TensorFlow; and what is damaged or no Example."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.errors import InputError
from mnist_ray.sources.base import Reading
from mnist_ray.sources.formats import encoded
from mnist_ray.sources.open import open_source
from mnist_ray.sources.pixels import Conversion
from mnist_ray.storage.location import Location
from tests.support import data_makers as make
from tests.support.data_makers import png
from tests.support.reading import LENIENT, opened, read
from tests.support.tfrecord_maker import masked, record, write_tfrecord

IMAGES = make.images(7)
PNGS = [{"image": png(image), "label": row % 3} for row, image in enumerate(IMAGES)]


def test_files_of_image_files_and_labels(tmp_path: Path) -> None:
    write_tfrecord(tmp_path / "b.tfrecord", PNGS[4:])
    write_tfrecord(tmp_path / "a.tfrecords", PNGS[:4])
    (tmp_path / "features.json").write_text("{}")
    source = opened(tmp_path)
    assert (source.splits, source.classes, source.labels) == ({"all": 7}, ("0", "1", "2"), "column")
    assert (source.units("all"), source.passed_over) == ([(0, 4), (4, 7)], {".json": 1})
    batch = read(source)
    assert batch.ids.tolist() == [f"{'ab'[row > 3]}.tfrecord{'s'[row > 3 :]}/{row % 4}" for row in range(7)]
    assert batch.sources == [f"{tmp_path}/{name}" for name in batch.ids]
    np.testing.assert_array_equal(batch.images, IMAGES)
    assert batch.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    together = opened(f"{tmp_path}/*.tfrecord*")
    assert (type(together), together.units("all")) == (type(source), [(0, 4), (4, 7)])
    assert source.digest() == opened(tmp_path).digest() != opened(tmp_path / "b.tfrecord").digest()
    assert read(opened(tmp_path, reading=Reading(labels="none"))).labels.tolist() == [-1] * 7


@pytest.mark.parametrize("names", ["mnist-{}.tfrecord-00000-of-00001", "{}-00000-of-00001", "{}/x.tfrec"])
def test_splits_by_the_names_of_files_and_folders(names: str, tmp_path: Path) -> None:
    write_tfrecord(tmp_path / names.format("train"), PNGS[:4])
    write_tfrecord(tmp_path / names.format("test"), PNGS[4:])
    source = open_source(str(tmp_path))
    source.require_training()
    assert source.splits == {"train": 4, "test": 3}


@pytest.mark.parametrize(
    ("features", "shape"),
    [
        (lambda image: {"image_raw": image.tobytes()}, (4, 4)),
        (lambda image: {"image": image.ravel().tolist()}, (4, 4)),
        (lambda image: {"x": (image.ravel() / 255).tolist()}, (4, 4)),
        (lambda image: {"x": image.ravel().astype(float).tolist()}, (4, 4)),
        (lambda image: {"image_raw": image.tobytes(), "height": 4, "width": 6, "depth": 1}, (4, 6)),
        (lambda image: {"image/encoded": png(image), "image/height": 4, "image/width": 6}, (4, 6, 3)),
        (lambda image: {"image": image.tobytes(), "image/height": 4, "image/width": 6}, (4, 6, 3)),
    ],
)
def test_images_of_every_kind(features: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    made = make.images(5, shape)
    source = opened(write_tfrecord(tmp_path / "a.bin", map(features, made)))  # known by its content
    assert source.image_shape == shape
    np.testing.assert_array_equal(read(source).images, made)
    half = opened(tmp_path / "a.bin", reading=Reading(convert=Conversion((2, 2), gray=True)))
    assert read(half).images.shape == (5, 2, 2)


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["cow", "ant", "cow"], ("ant", "cow"), [1, 0, 1]),
        ([2, -1, 0], ("0", "1", "2"), [2, -1, 0]),
        ([-1, -1, -1], (), [-1, -1, -1]),
        ([1.0, 0.0, 1.0], ("0", "1"), [1, 0, 1]),
        ([[1, 2], 1, 0], ("0", "1"), [-1, 1, 0]),
    ],
)
def test_labels_of_every_kind(labels: list[Any], classes: tuple[str], numbers: list[int], tmp_path: Path) -> None:
    examples = [{"image": png(image), "image/class/label": label} for image, label in zip(IMAGES, labels, strict=False)]
    source = opened(write_tfrecord(tmp_path / "a.tfrecord", examples))
    assert (source.classes, read(source).labels.tolist()) == (classes, numbers)


def test_features_by_name(tmp_path: Path) -> None:
    file = write_tfrecord(tmp_path / "a.tfrecord", [{**each, "photo": png(IMAGES[6]), "kind": 1} for each in PNGS])
    reading = Reading(image_column="photo", label_column="kind", lenient=True)
    batch = read(opened(file, reading=reading))
    assert (batch.images[:, 0, 0].tolist(), batch.labels.tolist()) == ([6] * 7, [1] * 7)
    assert opened(file, reading=reading).identity() != opened(file).identity()
    assert opened(file, reading=reading).fingerprint() != opened(file).fingerprint()
    with pytest.raises(InputError, match=r"a\.tfrecord/0 has no image, only image, label, photo, kind"):
        opened(file, reading=Reading(image_column="x", lenient=True))


def test_damage_costs_a_record_or_the_rest(tmp_path: Path) -> None:
    whole = write_tfrecord(tmp_path / "a.tfrecord", PNGS).read_bytes()
    third = sum(len(record_) for record_ in _records(whole)[:2])
    for data, bad in (
        (_patched(whole, third + 40), [(2, "is damaged: its checksum is not that of its bytes")]),
        (_patched(whole, third + 3), [(2, f"is damaged from byte {third:,} on; the rest is lost")]),
        (whole[:-1], [(6, "is truncated within record 6, with which the rest is lost")]),
        (whole + b"abc", [(7, f"is damaged from byte {len(whole):,} on; the rest is lost")]),
        (whole + record(b"\xff\xff"), [(7, "is not a tf.train.Example")]),
        (whole + record(b""), [(7, "has no image, only nothing")]),
    ):
        (tmp_path / "a.tfrecord").write_bytes(data)
        batch = read(opened(tmp_path / "a.tfrecord"))
        assert [(each.row, each.reason) for each in batch.bad] == bad
        rest = [2] if "checksum" in bad[0][1] else range(bad[0][0], 8)
        assert batch.images[:, 0, 0].tolist() == [row for row in range(7) if row not in rest]


def test_lengths_that_lie(tmp_path: Path) -> None:
    """With a right checksum: of 8 EiB, and of more than an image may have."""
    for size, reason in ((1 << 63, "is truncated within record 1,"), (65 << 20, "is larger than 64 MiB")):
        length = struct.pack("<Q", size)
        file = write_tfrecord(tmp_path / "a.tfrecord", PNGS[:1])
        with file.open("ab") as more:
            more.write(length + masked(length))
            more.truncate(more.tell() + min(size, 65 << 20) + (4 if size < 1 << 63 else 0))
        assert [(bad.row, bad.reason[: len(reason)]) for bad in read(opened(file)).bad] == [(1, reason)]


def test_raw_pixels_of_other_sizes_are_named(tmp_path: Path) -> None:
    examples = [
        {"image": bytes(16)}, {"image": bytes(15)}, {"image": bytes(16), "height": 3, "width": 5}, {"image": bytes(25)},
        {"image": [300] * 16},
    ]  # fmt: skip
    batch = read(opened(write_tfrecord(tmp_path / "a.tfrecord", examples)))
    assert [(bad.row, bad.reason) for bad in batch.bad] == [
        (1, "has 15 pixels, which are no square gray image, and names no `height` and `width`"),
        (2, "has 16 pixels, which are no image of 3 x 5"),
        (3, "has the shape (5, 5), not (4, 4) like the others"),
        (4, "has a pixel 300; pixels must be whole numbers 0..255"),
    ]


@pytest.mark.parametrize("top", [1, 255])
def test_floats_stored_as_bytes_are_no_pixels(top: int, tmp_path: Path) -> None:
    """Four bytes a pixel: 4 x 4 of them would be a square of 8 x 8."""
    floats = (IMAGES[0] / np.float32(255 / top)).astype("<f4")
    file = write_tfrecord(tmp_path / "a.tfrecord", [{"image_raw": floats.tobytes()}])
    with pytest.raises(InputError, match="has 64 bytes that are 16 floats of 32 bits; store pixels as bytes"):
        opened(file)
    pq.write_table(pa.table({"image": [floats.tobytes()]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="16 floats of 32 bits"):
        opened(tmp_path / "a.parquet")


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.tfrecord").write_bytes(b"no record" * 10)
    with pytest.raises(
        InputError, match=r"a\.tfrecord holds no image that can be read: .* is not a TFRecord file or is"
    ):
        opened(tmp_path / "a.tfrecord")
    write_tfrecord(tmp_path / "b.tfrecord", PNGS)
    assert [bad.row for bad in read(opened(tmp_path, reading=LENIENT)).bad] == [0]
    with pytest.raises(InputError, match="all row 0 is not a TFRecord"):
        opened(tmp_path).read("all", 0, 7)


@pytest.mark.tensorflow
def test_what_tensorflow_writes(tmp_path: Path) -> None:
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        for image, label in zip(IMAGES, make.labels(7), strict=True):
            features = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[png(image)])),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    batch = read(opened(tmp_path / "a.tfrecord"))
    np.testing.assert_array_equal(batch.images, IMAGES)
    assert batch.labels.tolist() == make.labels(7).tolist()
    ours = write_tfrecord(tmp_path / "b.tfrecord", PNGS)
    assert sum(1 for _ in tf.data.TFRecordDataset(str(ours))) == 7


def test_labels_keep_their_digits_and_options_name_what_is_there(tmp_path: Path) -> None:
    file = write_tfrecord(
        tmp_path / "a.tfrecord", [{**each, "label": 2084071 + row % 2} for row, each in enumerate(PNGS)]
    )
    source = opened(file)
    assert (source.classes, read(source).labels.tolist()) == (("2084071", "2084072"), [0, 1, 0, 1, 0, 1, 0])
    with pytest.raises(InputError, match="no record has a label in `kind`, which --label-column names"):
        opened(file, reading=Reading(label_column="kind"))
    with pytest.raises(InputError, match=r"--id-column id names a column, and .*a\.tfrecord has none such"):
        opened(file, reading=Reading(id_column="id"))


def _records(data: bytes) -> list[bytes]:
    found = []
    while data:
        size = struct.unpack("<Q", data[:8])[0] + 16
        found.append(data[:size])
        data = data[size:]
    return found


def _patched(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("of", [int, float])
def test_one_hot_labels_are_the_number_of_their_1_and_other_lists_are_told(of: Any, tmp_path: Path) -> None:
    hot = [[of(label == row % 3) for label in range(3)] for row in range(7)]
    made = [{"image": png(image), "label": label} for image, label in zip(IMAGES, hot, strict=True)]
    source = opened(write_tfrecord(tmp_path / "a.tfrecord", made))
    assert (source.classes, read(source).labels.tolist()) == (("0", "1", "2"), [0, 1, 2, 0, 1, 2, 0])
    assert source.remarks == (f"{tmp_path}/a.tfrecord: labels are one-hot; each is the number of its 1",)
    made[0]["label"], made[4]["label"] = [of(1), of(1), of(0)], [of(0), of(2), of(0)]
    source = opened(write_tfrecord(tmp_path / "a.tfrecord", made))
    assert read(source).labels.tolist() == [-1, 1, 2, 0, -1, 2, 0]
    lists = "2 labels are lists that are not one-hot; their images have no label"
    assert source.remarks[1] == f"{tmp_path}/a.tfrecord: {lists}"


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
@pytest.mark.parametrize(
    "name", ["a.tfrecord.gz", "a.tfrecord", "x/a.tfrecord-00000-of-00001", "x/part-00000", "a.bin"]
)
def test_what_is_compressed_as_a_whole(compress: Any, name: str, tmp_path: Path) -> None:
    file = tmp_path / "in" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(compress(write_tfrecord(tmp_path / "plain", PNGS).read_bytes()))
    for spec in (file, *([tmp_path / "in"] if "." in name[1:] and not name.endswith("bin") else [])):
        source = opened(spec)
        batch = read(source)
        np.testing.assert_array_equal(batch.images, IMAGES)
        assert (source.classes, batch.labels.tolist(), batch.bad) == (("0", "1", "2"), [0, 1, 2, 0, 1, 2, 0], ())
        assert batch.ids.tolist() == [f"{file.name}/{row}" for row in range(7)]
        assert read(opened(spec, reading=Reading(labels="none", lenient=True))).ids.tolist() == batch.ids.tolist()


def test_a_compressed_file_that_is_cut_off(tmp_path: Path) -> None:
    """Within a record, and behind the last one: that something is missing is known then, too."""
    data = write_tfrecord(tmp_path / "plain", PNGS).read_bytes()
    for kept, rows, reason in (
        (data[:-9], 6, "is truncated within record 6, with which the rest is lost"),
        (data, 7, f"is damaged from byte {len(data):,} on; the rest is lost"),
    ):
        packer = zlib.compressobj(wbits=31)
        (tmp_path / "a.tfrecord").write_bytes(packer.compress(kept) + packer.flush(zlib.Z_SYNC_FLUSH))
        batch = read(opened(tmp_path / "a.tfrecord"))
        assert (len(batch.ids), [(bad.row, bad.reason) for bad in batch.bad]) == (rows, [(rows, reason)])


def test_a_file_is_opened_once_for_all_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compressed would be read from its beginning for each batch."""
    source = opened(write_tfrecord(tmp_path / "a.tfrecord", PNGS))
    monkeypatch.setattr(encoded, "_ROWS_AT_ONCE", 2)
    opens: list[str] = []
    plain = Location.open_file
    monkeypatch.setattr(Location, "open_file", lambda file: opens.append(file.name) or plain(file))
    assert [len(batch.ids) for batch in source.stream("all", 0, 7)] == [2, 2, 2, 1]
    assert opens == ["a.tfrecord"]
