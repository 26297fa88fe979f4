"""Splits, labels and partitions that names of files and folders tell, and what is passed over."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from mnist_ray.errors import InputError
from mnist_ray.sources.base import Reading, Source
from mnist_ray.sources.listing import count_kinds
from mnist_ray.sources.open import open_source
from tests.support import data_makers as make
from tests.support.data_makers import png, webdataset, write_tar
from tests.support.reading import opened, read
from tests.support.tfrecord_maker import write_tfrecord

# Splits from the names of files.

HUB = ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001-ab12.parquet")


@pytest.mark.parametrize("inside", ["", "data", "mnist"])
def test_a_clone_of_the_hub_has_the_splits_of_its_file_names(inside: str, tmp_path: Path) -> None:
    for number, name in enumerate(HUB):
        make.write_parquet(tmp_path / inside / name, 3 + number)
    (tmp_path / "README.md").write_text("# MNIST")
    source = open_source(str(tmp_path))
    assert dict(source.splits) == {"train": 7, "test": 5}
    assert dict(source.passed_over) == {".md": 1}
    source.require_training()
    assert opened(tmp_path).read("test", 0, 5).labels.tolist() == make.labels(5).tolist()


@pytest.mark.parametrize(
    ("names", "splits", "passed_over"),
    [
        (["train.parquet", "validation.parquet"], {"train": 1, "test": 2}, {}),
        (["train-0.parquet", "test-0.parquet", "validation-0.parquet", "x.parquet"], {"train": 1, "test": 2}, 2),
        (["train-0.parquet", "train-1.parquet"], {"all": 3}, {}),  # nothing to keep apart
        (["test-0.parquet", "b.parquet"], {"all": 3}, {}),
        (["trainer.parquet", "latest.parquet"], {"all": 3}, {}),
        (["mnist_train_0.parquet", "mnist_test_0.parquet"], {"train": 1, "test": 2}, {}),
    ],
)
def test_splits_of_file_names(names: list[str], splits: dict[str, int], passed_over: Any, tmp_path: Path) -> None:
    for number, name in enumerate(names):
        make.write_parquet(tmp_path / name, 1 + number)
    source = open_source(str(tmp_path))
    assert dict(source.splits) == splits
    assert dict(source.passed_over) == ({".parquet": passed_over} if passed_over else {})


def test_archives_have_the_splits_of_their_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "mnist-train-000000.tar", webdataset(4))
    write_tar(tmp_path / "mnist-test-000000.tar", webdataset(3))
    assert dict(open_source(str(tmp_path)).splits) == {"train": 4, "test": 3}


# Hive.


def test_names_of_classes_in_partitions(tmp_path: Path) -> None:
    """By the rule for all labels that are text: sorted, or by value where all are numbers."""
    for label, rows in (("dog", 2), ("cat", 3), ("a%20cow", 1)):
        make.write_parquet(tmp_path / f"label={label}" / "part-0.parquet", rows, label=None)
    assert opened(tmp_path).classes == ("a cow", "cat", "dog")
    assert read(opened(tmp_path)).labels.tolist() == [0, 1, 1, 1, 2, 2]
    make.write_parquet(tmp_path / "label=7" / "part-0.parquet", 1, label=None)
    assert opened(tmp_path).classes == ("7", "a cow", "cat", "dog")


def test_numbers_in_partitions_count_by_value(tmp_path: Path) -> None:
    for label in ("002", "10", "0"):
        make.write_parquet(tmp_path / f"label={label}" / "part-0.parquet", 1, label=None)
    assert opened(tmp_path).classes == tuple(map(str, range(11)))
    assert read(opened(tmp_path)).labels.tolist() == [0, 2, 10]


def test_columns_of_partitions(tmp_path: Path) -> None:
    for label, rows in (("0", 2), ("2", 3), ("__HIVE_DEFAULT_PARTITION__", 1)):
        make.write_parquet(tmp_path / "dt=2024-01-01" / f"label={label}" / "part-0.parquet", rows, label=None)
    (tmp_path / "_SUCCESS").write_text("")
    source = opened(tmp_path)
    assert (source.splits, source.classes) == ({"all": 6}, ("0", "1", "2"))
    assert read(source).labels.tolist() == [0, 0, 2, 2, 2, -1]
    assert source.passed_over == {"no suffix": 1}
    assert read(opened(f"{tmp_path}/*/label=2/*.parquet")).labels.tolist() == [2, 2, 2]
    assert read(opened(tmp_path, reading=Reading(labels="none"))).labels.tolist() == [-1] * 6
    before = source.identity()
    (tmp_path / "dt=2024-01-01" / "label=0").rename(tmp_path / "dt=2024-01-01" / "label=1")
    assert opened(tmp_path).identity() != before


def test_a_column_of_a_file_comes_before_its_partition_and_may_be_named(tmp_path: Path) -> None:
    make.write_parquet(tmp_path / "a" / "label=2" / "x.parquet", 3)
    assert read(opened(tmp_path / "a")).labels.tolist() == [0, 1, 2]
    make.write_parquet(tmp_path / "b" / "digit=2" / "x.parquet", 3, label=None)
    assert read(opened(tmp_path / "b", reading=Reading(label_column="digit"))).labels.tolist() == [2, 2, 2]


# Labels: --labels, order, and -1.


def folders(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        (root / name / "a.png").write_bytes(png(make.images(20)[number]))
    return root


def test_numbers_count_by_value_in_every_format(tmp_path: Path) -> None:
    names = [str(number) for number in range(12)]
    root = folders(tmp_path / "in", *names)
    archive = write_tar(tmp_path / "t.tar", {f"{name}/a.png": png(make.images(20)[int(name)]) for name in names})
    for source in (opened(root), opened(archive), opened(f"{root}/*/*.png"), opened(root, archive)):
        assert source.classes == tuple(names)
        batch = source.read("all", 0, 12, strict=False)
        assert batch.images[:, 0, 0].tolist() == batch.labels.tolist()
        assert source.labels == "auto"


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        (["07", "002", "0", "10"], [7, 2, 0, 10]),
        (["7.0", "2.0", "-1.0", "10.0"], [7, 2, -1, 10]),  # as pandas writes a column with gaps
        (["7", "-1", "", "10"], [7, -1, -1, 10]),
    ],
)
def test_labels_that_are_text_count_by_value_in_every_format(
    texts: list[str], labels: list[int], tmp_path: Path
) -> None:
    pngs = [png(image) for image in make.images(4)]
    (tmp_path / "in").mkdir()
    for row, data in enumerate(pngs):
        (tmp_path / "in" / f"{row}.png").write_bytes(data)
    (tmp_path / "in" / "metadata.csv").write_text(_table("", texts))
    (tmp_path / "list.csv").write_text(_table("in/", texts))
    tars = [
        write_tar(
            tmp_path / f"{kind}.tar",
            {
                f"{row}.{suffix}": data
                for row in range(4)
                for suffix, data in (("png", pngs[row]), (kind, text.format(texts[row]).encode()))
            },
        )
        for kind, text in (("cls", "{}"), ("json", '{{"label": "{}"}}'))
    ]
    records = [{"image": data, "label": text} for data, text in zip(pngs, texts, strict=True)]
    column = {"image": pa.array(pngs), "label": pa.array(texts)}
    pa.parquet.write_table(pa.table(column), tmp_path / "a.parquet")
    for source in (
        opened(tmp_path / "in"), opened(tmp_path / "list.csv"), opened(tmp_path / "a.parquet"),
        *map(opened, tars),
        opened(write_tfrecord(tmp_path / "a.tfrecord", records)),
    ):  # fmt: skip
        assert source.classes == tuple(map(str, range(11))), source.name
        assert read(source).labels.tolist() == labels, source.name


def _table(folder: str, texts: list[str]) -> str:
    return "path,label\n" + "".join(f"{folder}{row}.png,{text}\n" for row, text in enumerate(texts))


def test_where_labels_come_from(tmp_path: Path) -> None:
    root = folders(tmp_path / "in", "day-1", "day-2")
    wds = write_tar(tmp_path / "a.tar", {f"day-1/{name}": data for name, data in webdataset(3).items()})
    table = make.write_parquet(tmp_path / "a.parquet", 3, label=[0, -5, 1])
    array = make.write_npz(tmp_path / "a.npz", y_test=np.array([0, 1, 2, 9.5, 1]))
    shown = {
        (path.name, labels): (source.labels, source.classes)
        for path in (root, wds, table, array)
        for labels in ("auto", "folders", "column", "none")
        if (source := _opened_with(path, labels)) is not None
    }
    numbers = ("0", "1", "2")
    assert shown == {
        ("in", "auto"): ("auto", ("day-1", "day-2")), ("in", "folders"): ("folders", ("day-1", "day-2")),
        ("in", "none"): ("none", ()),
        ("a.tar", "auto"): ("column", numbers), ("a.tar", "folders"): ("folders", ("day-1",)),
        ("a.tar", "column"): ("column", numbers), ("a.tar", "none"): ("none", ()),
        ("a.parquet", "auto"): ("column", ("0", "1")), ("a.parquet", "column"): ("column", ("0", "1")),
        ("a.parquet", "none"): ("none", ()),
        ("a.npz", "auto"): ("column", numbers), ("a.npz", "column"): ("column", numbers),
        ("a.npz", "none"): ("none", ()),
    }  # fmt: skip
    for path in (root, wds, table, array):  # a label that is not wanted is not a bad one
        source = opened(path, reading=Reading(labels="none"))
        split = source.choose_split("test")
        batch = source.read(split, 0, source.splits[split], strict=False)
        assert (batch.labels.tolist(), batch.bad) == ([-1] * source.splits[split], ())
        assert source.identity() != opened(path).identity()  # another job


def _opened_with(path: Path, labels: str) -> Source | None:
    try:
        return opened(path, reading=Reading(labels=labels, lenient=True))
    except InputError as error:
        said = str(error)
    assert f"--labels {labels}: {path} has no" in said
    return None


def test_minus_one_everywhere_is_unknown_and_elsewhere_bad(tmp_path: Path) -> None:
    npz = make.write_npz(tmp_path / "a.npz", y_test=np.full(5, -1))
    make.write_parquet(tmp_path / "hub" / "train-0.parquet", 7)
    for part in "ab":
        make.write_parquet(tmp_path / "hub" / f"test-{part}.parquet", 5, label=pa.array([-1, -1, None, -1, -1]))
    for source in (opened(npz), opened(tmp_path / "hub")):
        assert source.classes == ("0", "1", "2")
        batch = read(source, "test")
        assert (set(batch.labels.tolist()), batch.bad) == ({-1}, ())
        assert len(read(source, "train").ids) == 7
    make.write_parquet(tmp_path / "hub" / "test-b.parquet", 5, label=pa.array([-1, 0, 1, 2, 0]))
    assert len(read(opened(tmp_path / "hub"), "test").bad) == 5


# Files that are not read, and names that are not UTF-8.


def test_what_is_passed_over_is_counted_by_kind(tmp_path: Path) -> None:
    image = Image.fromarray(make.images(1)[0])
    for suffix in ("png", "JPEG", "jfif", "webp", "avif", "bmp", "tif", "gif"):
        image.save(tmp_path / f"a.{suffix}", "JPEG" if suffix == "jfif" else None)
    for name in ("notes.txt", "MORE.TXT", "LICENSE", ".hidden"):
        (tmp_path / name).write_text("not an image")
    source = opened(tmp_path)
    assert (source.splits, source.passed_over) == ({"all": 8}, {".txt": 2, "no suffix": 1})
    split = make.write_folders(tmp_path / "split", 3, 3)
    (split / "val").mkdir()
    (split / "labels.csv").write_text("")
    assert opened(split).passed_over == {".csv": 1, "val/": 1}
    assert opened(tmp_path / "a.png", split).passed_over == {".csv": 1, "val/": 1}
    assert count_kinds(["b.JSON", "a.json", "Makefile", ".env", "val/"]) == {".json": 2, "no suffix": 2, "val/": 1}


@pytest.fixture
def latin1(tmp_path: Path) -> Path:
    folders(tmp_path, "0", "1")
    name = os.fsdecode(b"caf\xe9")
    try:
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").write_bytes(png(make.images(20)[2]))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    return tmp_path


@pytest.mark.parametrize("glob", ["", "/*/*.png", "/**/*.png"])
def test_names_that_are_not_utf8_are_read_and_shown_escaped(glob: str, latin1: Path) -> None:
    (latin1 / r"plain\xe9").mkdir()
    (latin1 / r"plain\xe9" / "a.png").write_bytes(png(make.images(20)[3]))
    source = opened(f"{latin1}{glob}")
    batch = read(source)
    assert batch.ids.tolist() == ["0/a.png", "1/a.png", r"caf\xe9/caf\xe9.png", r"plain\xe9/a.png"]
    assert batch.images[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert source.classes == ("0", "1", r"caf\xe9", r"plain\xe9")


# Classes without images.


def write_classes(folder: Path, **held: int) -> Path:
    """A number of images for each class folder, `train_cat=2`; 0 makes an empty folder."""
    for name, rows in held.items():
        inside = folder / name.replace("_", "/")
        inside.mkdir(parents=True)
        for row in range(rows):
            (inside / f"{row}.png").write_bytes(png(make.images(1)[0]))
    return folder


@pytest.mark.parametrize("empty", [{}, {"train_emu": 0}])
def test_a_class_folder_in_test_alone_is_refused(empty: dict[str, int], tmp_path: Path) -> None:
    held = {"train_cat": 2, "train_dog": 1, "test_cat": 1, "test_emu": 3}
    source = open_source(str(write_classes(tmp_path, **held, **empty)))
    assert source.classes == ("cat", "dog", "emu")
    with pytest.raises(
        InputError, match=r"train/ has no images of the class emu, but test/ has; .*remove test/emu or rename it"
    ):
        source.require_training()


@pytest.mark.parametrize("empty", [{}, {"test_dog": 0}])
def test_a_class_folder_in_train_alone_is_told(empty: dict[str, int], tmp_path: Path) -> None:
    source = open_source(str(write_classes(tmp_path, train_cat=2, train_dog=1, test_cat=1, **empty)))
    source.require_training()
    assert list(source.notes_on_classes()) == [
        "there are no test images of the class dog, so their accuracy stays unknown"
    ]


def test_an_empty_class_folder_is_no_class_and_told(tmp_path: Path) -> None:
    source = open_source(str(write_classes(tmp_path, train_cat=2, train_dog=0, test_cat=1, test_dog=0, test_emu=0)))
    source.require_training()
    assert source.classes == ("cat",)
    assert list(source.notes_on_classes()) == ["there are no images at all of the classes dog, emu"]


def test_a_class_without_images_in_archives(tmp_path: Path) -> None:
    for split, names in (("train", ["cat", "dog"]), ("test", ["cat", "emu"])):
        (tmp_path / split).mkdir()
        write_tar(tmp_path / split / "0.tar", {f"{name}/0.png": png(make.images(1)[0]) for name in names})
    with pytest.raises(InputError, match="no images of the class emu"):
        open_source(str(tmp_path)).require_training()


def test_a_class_number_without_images_is_told(tmp_path: Path) -> None:
    """Not refused: a small sample of a dataset is a usual thing to try a training with."""
    y_train, y_test = np.array([0, 1, 3, 0, 1, 3, 0]), np.array([0, 4, 1, 0, 0])
    notes = [
        "there are no train images of the class 4, so no model can learn them",
        "there are no test images of the class 3, so their accuracy stays unknown",
        "there are no images at all of the class 2",
    ]
    make.write_npz(tmp_path / "a.npz", y_train=y_train, y_test=y_test)
    make.write_parquet(tmp_path / "b" / "train-0.parquet", 7, label=y_train)
    make.write_parquet(tmp_path / "b" / "test-0.parquet", 5, label=y_test)
    for name in ("a.npz", "b"):
        source = open_source(str(tmp_path / name))
        source.require_training()
        assert list(source.notes_on_classes()) == notes
