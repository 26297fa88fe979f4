"""Every format against arrays that were made beside it; every way in which an input can be wrong, and its message."""

from __future__ import annotations

import contextlib
import gzip
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest

from mnist_ray.config import DATA_FORMATS
from mnist_ray.errors import InputError, SetupError
from mnist_ray.sources import base, pixels
from mnist_ray.sources.base import Reading
from mnist_ray.sources.formats import arrays, keras_datasets
from mnist_ray.sources.open import FORMATS, open_source
from tests.support import data_makers as make
from tests.support.data_makers import png, webdataset, write_tar, write_zip
from tests.support.reading import assert_said, opened, read_all
from tests.support.tfrecord_maker import write_tfrecord


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


# --- what is none of these


def test_specs_that_are_nothing(tmp_path: Path) -> None:
    assert_said("embeded", r"embeded does not exist; accepted are embedded .*, keras:NAME ")
    assert_said(str(tmp_path), "holds no images that mnist-ray can read; accepted are")
    (tmp_path / "a.heic").write_bytes(b"")
    assert_said(str(tmp_path), r"holds no images that mnist-ray can read, only 1 \.heic; accepted are")
    (tmp_path / "photos.7Z").write_bytes(b"PK")
    assert_said(str(tmp_path), r"only 1 \.7z, 1 \.heic; unpack photos\.7Z$")
    (tmp_path / "x.npz").write_bytes(b"")
    assert_said(str(tmp_path / "x.npz"), r"x\.npz is empty")
    (tmp_path / "x.npz").write_bytes(b"<html>404")
    assert_said(str(tmp_path / "x.npz"), "is not a file that mnist-ray reads")
    assert_said("embedded", "names a column, and embedded has none", id_column="x")
    assert_said("wat://x", "wat")
    with pytest.raises(InputError, match="has no split 'valid'; it has train and test"):
        open_source("embedded").choose_split("valid")


def test_files_that_are_refused_by_what_they_are(tmp_path: Path) -> None:
    for protocol in (2, 4, 5):
        pickled = pickle.dumps([make.images(7)], protocol)
        for name, data in (("mnist.pkl", pickled), ("mnist.pkl.gz", gzip.compress(pickled)), ("mnist", pickled)):
            (tmp_path / name).write_bytes(data)
            assert_said(str(tmp_path / name), "is a Python pickle, which may run any code .* numpy.savez")
    np.savez(tmp_path / "many.npz", **{f"array_{number}": np.zeros(1) for number in range(2000)})
    assert_said(str(tmp_path / "many.npz"), r"only array_0, array_1, array_2, array_3, \.\.\.; it needs")


def test_what_a_folder_or_archive_holds_instead_of_images(tmp_path: Path) -> None:
    table = {"train.csv": b"label,pixel0\n", "test.csv": b"pixel0\n", "inner.zip": b"PK"}
    assert_said(
        str(write_zip(tmp_path / "a.zip", table)),
        r"a\.zip holds no image, only 2 \.csv, 1 \.zip; if these are .* unpack it$",
    )
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "data-00000-of-00001.arrow").write_bytes(b"\xff\xff\xff\xff")
    (tmp_path / "hub" / "state.json").write_text("{}")
    for spec in (tmp_path / "hub", tmp_path / "hub" / "data-00000-of-00001.arrow"):
        assert_said(
            str(spec), r"Arrow files are not read; write Parquet: .*load_from_disk\(FOLDER\)\.to_parquet\(FILE\)$"
        )
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "data_batch_1").write_bytes(pickle.dumps({"data": [1]}))
    assert_said(str(tmp_path / "cifar"), "data_batch_1 is a Python pickle, which may run any code .* numpy.savez")


@pytest.mark.parametrize(
    ("magic", "packer"),
    [
        (b"\x1f\x8b", "gzip"),
        (b"BZh91AY&SY", "bzip2"),
        (b"\xfd7zXZ", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"7z\xbc\xaf", "7-Zip"),
    ],
)
def test_what_is_compressed_is_refused_by_what_it_is(magic: bytes, packer: str, tmp_path: Path) -> None:
    for name in ("a.tar", "a.tar.xz", "a.tsv", "a"):
        (tmp_path / name).write_bytes(magic + bytes(600))
        assert_said(str(tmp_path / name), rf"{name} is compressed by {packer}; decompress it first")
    with pytest.raises(InputError, match=rf"a\.tar is compressed by {packer}; decompress it first"):
        opened(tmp_path / "a.tar")


def test_idx_files_below_folders_of_their_own(tmp_path: Path) -> None:
    """As torchvision keeps them: its root is what people name."""
    make.write_idx(tmp_path / "MNIST" / "raw", gz=True)
    make.write_idx(tmp_path / "MNIST" / "raw", gz=False)
    for spec in (tmp_path, tmp_path / "MNIST", tmp_path / "MNIST" / "raw"):
        assert opened(spec).splits == {"train": 7, "test": 5}


def test_web_addresses_and_what_is_not_installed(tmp_path: Path) -> None:
    secret = "https://me:password@example.com/a/mnist.zip?signature=abc"
    assert_said(secret, r"^https://example\.com/a/mnist\.zip is a web address; download it and give its path$")
    with pytest.raises(SetupError, match=r"cannot open 'hf://datasets/x': Install huggingface_hub .*; or download"):
        open_source("hf://datasets/x")


@pytest.mark.parametrize(
    "name", ["a.npy", "b.npz", "c.parquet", "d.tar", "e.zip", "f.tfrecord", "f.tfrecord.gz", "g.csv"]
)
def test_damage_anywhere_is_one_line_or_set_aside(name: str, tmp_path: Path) -> None:
    """Every 11th byte turned over, one at a time; a footer's damage must not end the process."""
    np.save(tmp_path / "a.npy", make.images(7))
    np.savez_compressed(tmp_path / "b.npz", x=make.images(7), y=make.labels(7))
    make.write_parquet(tmp_path / "c.parquet", image=pa.array(make.images(7).reshape(7, 16).tolist()))
    write_tar(tmp_path / "d.tar", webdataset(2))
    write_zip(tmp_path / "e.zip", webdataset(2))
    write_tfrecord(tmp_path / "f.tfrecord", [{"image": png(image), "label": 1} for image in make.images(3)])
    (tmp_path / "f.tfrecord.gz").write_bytes(gzip.compress((tmp_path / "f.tfrecord").read_bytes()))
    np.savetxt(tmp_path / "g.csv", make.images(7).reshape(7, 16), "%d", delimiter=",")
    file = tmp_path / name
    whole = file.read_bytes()
    for place in [*range(0, min(len(whole), 3000), 11), *range(max(len(whole) - 1000, 0), len(whole), 11)]:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with contextlib.suppress(InputError):
            source = opened(file)
            rows = min(source.splits["all"], 1000)
            batch = source.read("all", 0, rows, strict=False)
            assert len(batch.ids) + len(batch.bad) == rows


def test_what_is_opened_is_what_help_and_messages_name() -> None:
    assert sorted(FORMATS) == sorted(DATA_FORMATS)
    assert all(name in DATA_FORMATS["keras"] for name in keras_datasets._CACHED_AS)


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
        "converted": "d35963273b7a8109",
    }


def test_images_that_other_rules_decode_are_another_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a scoring or a run that an earlier release has begun would have pixels of both, such as photos of which some
    are upright."""
    make.write_parquet(tmp_path / "a.parquet", 3, image=[png(image) for image in make.images(3)])
    write_tar(tmp_path / "a.tar", webdataset(3))
    specs = [make.write_folders(tmp_path / "in"), tmp_path / "a.parquet", tmp_path / "a.tar"]
    plain = make.write_npz(tmp_path / "a.npz")
    before = [(opened(spec).identity(), opened(spec).fingerprint()) for spec in [*specs, plain]]
    monkeypatch.setattr(base, "RULES", 0)
    after = [(opened(spec).identity(), opened(spec).fingerprint()) for spec in [*specs, plain]]
    assert [sum(a == b for a, b in zip(*each, strict=True)) for each in zip(before, after, strict=True)] == [0, 0, 0, 2]
