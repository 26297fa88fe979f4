"""Several labels an image: each format against one truth written by hand, and the rule that tells lists apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.errors import InputError
from mnist_ray.sources import labels
from mnist_ray.sources.base import Reading
from tests.support import data_makers as make
from tests.support.reading import LENIENT, assert_said, opened, read
from tests.support.tfrecord_maker import write_tfrecord

NAMES = ("ape", "bee", "cat", "dog")
TRUTH: list[list[int] | None] = [[0, 2], [], [3], None, [1, 2, 3], [0], [2, 0]]
"""Class numbers; None where they are unknown."""
ROWS = np.array([[1, 0, 1, 0], [0] * 4, [0, 0, 0, 1], [-1] * 4, [0, 1, 1, 1], [1, 0, 0, 0], [1, 0, 1, 0]])
HOT = [None if row[0] < 0 else row.tolist() for row in ROWS]
NAMED = [None if each is None else [NAMES[number] for number in each] for each in TRUTH]
SEVERAL = Reading(lenient=True, takes_several=True)
PNGS = [make.png(image) for image in make.images(len(TRUTH))]

Made = tuple[Path, tuple[str, ...]]
NUMBERED = ("0", "1", "2", "3")


def parquet(folder: Path, column: pa.Array) -> Path:
    return make.write_parquet(folder / "a.parquet", label=column)


def npz(folder: Path, values: Any) -> Path:
    np.savez(folder / "a.npz", x=make.images(len(TRUTH)), y=values)
    return folder / "a.npz"


def tfrecord(folder: Path, lists: list[Any]) -> Path:
    labelled: list[dict[str, Any]] = [{} if each is None else {"label": each} for each in lists]
    examples = [{"image": image, **label} for image, label in zip(PNGS, labelled, strict=True)]
    return write_tfrecord(folder / "a.tfrecord", examples)


def table(lists: list[Any]) -> bytes:
    named = [{"file_name": f"{row}.png", "label": each} for row, each in enumerate(lists)]
    return "\n".join(map(json.dumps, named)).encode()


def images_in(folder: Path, **files: bytes) -> Path:
    members = {f"{row}.png": data for row, data in enumerate(PNGS)} | files
    for name, data in members.items():
        (folder / name).write_bytes(data)
    return folder


def webdataset(folder: Path, lists: list[Any]) -> Path:
    members: dict[str, bytes | str] = {}
    for row, each in enumerate(lists):
        members |= {f"{row}.png": PNGS[row], f"{row}.json": json.dumps({"label": each}).encode()}
    return make.write_tar(folder / "a.tar", members)


def a_row_a_label(folder: Path) -> Path:
    """What has no label at all is not in such a table."""
    rows = [f"{row}.png,{name}" for row, names in enumerate(NAMED) for name in names or ()]
    return images_in(folder, **{"metadata.csv": "\n".join(["file_name,label", *rows]).encode()})


FORMATS: dict[str, Callable[[Path], Path]] = {
    "list<int64>": lambda folder: parquet(folder, pa.array(TRUTH, pa.list_(pa.int64()))),
    "large_list<uint8>": lambda folder: parquet(folder, pa.array(TRUTH, pa.large_list(pa.uint8()))),
    "list<double>": lambda folder: parquet(folder, pa.array(TRUTH, pa.list_(pa.float64()))),
    "list<string> of names": lambda folder: parquet(folder, pa.array(NAMED, pa.list_(pa.string()))),
    "multi-hot list": lambda folder: parquet(folder, pa.array(HOT, pa.list_(pa.int32()))),
    "multi-hot fixed-size list": lambda folder: parquet(folder, pa.array(HOT, pa.list_(pa.uint8(), 4))),
    "multi-hot list<bool>": lambda folder: parquet(
        folder, pa.array([each and list(map(bool, each)) for each in HOT], pa.list_(pa.bool_()))
    ),
    "multi-hot npz of integers": lambda folder: npz(folder, ROWS),
    "multi-hot npz of floats": lambda folder: npz(folder, np.where(ROWS < 0, np.nan, ROWS)),
    "TFRecord of numbers": lambda folder: tfrecord(folder, TRUTH),
    "TFRecord of names": lambda folder: tfrecord(folder, NAMED),
    "TFRecord, multi-hot": lambda folder: tfrecord(folder, HOT),
    "TFRecord, multi-hot floats": lambda folder: tfrecord(folder, [each and list(map(float, each)) for each in HOT]),
    "metadata.jsonl of numbers": lambda folder: images_in(folder, **{"metadata.jsonl": table(TRUTH)}),
    "metadata.jsonl of names": lambda folder: images_in(folder, **{"metadata.jsonl": table(NAMED)}),
    "metadata.jsonl, multi-hot": lambda folder: images_in(folder, **{"metadata.jsonl": table(HOT)}),
    "metadata.jsonl of names in a ZIP archive": lambda folder: make.write_zip(
        folder / "a.zip", {"metadata.jsonl": table(NAMED), **{f"{row}.png": data for row, data in enumerate(PNGS)}}
    ),
    "WebDataset": lambda folder: webdataset(folder, TRUTH),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    source = opened(FORMATS[kind](tmp_path), reading=SEVERAL)
    batch = read(source)
    assert source.classes == (NAMES if "of names" in kind else NUMBERED)
    assert source.several == ("hot" if "multi-hot" in kind else "listed")
    assert batch.labels.dtype == np.int8
    np.testing.assert_array_equal(batch.labels, ROWS)
    assert (batch.bad, source.absent) == ((), {})


@pytest.mark.parametrize("kind", FORMATS)
def test_where_an_image_must_have_one_it_is_refused_unless_labels_are_not_wanted(kind: str, tmp_path: Path) -> None:
    file = FORMATS[kind](tmp_path)
    with pytest.raises(InputError, match="an image may have several labels, but training needs one, and so") as raised:
        opened(file)
    assert str(file) in str(raised.value)
    for reading in (Reading(labels="none"), Reading(labels="none", takes_several=True)):
        assert read(opened(file, reading=reading)).labels.tolist() == [-1] * len(TRUTH)


def test_a_table_with_a_row_for_each_label(tmp_path: Path) -> None:
    source = opened(a_row_a_label(tmp_path), reading=SEVERAL)
    assert source.classes == NAMES
    unnamed = np.where(ROWS.any(axis=1, keepdims=True), ROWS, -1)
    np.testing.assert_array_equal(read(source).labels, unnamed)
    assert_said(str(tmp_path), r"metadata\.csv gives 0\.png two labels, ape and cat; leave one")


def test_a_list_of_paths_with_lists_of_labels(tmp_path: Path) -> None:
    images_in(tmp_path, **{"list.jsonl": table(NAMED)})
    source = opened(tmp_path / "list.jsonl", reading=SEVERAL)
    assert (source.classes, source.several) == (NAMES, "listed")
    np.testing.assert_array_equal(read(source).labels, ROWS)
    with pytest.raises(InputError, match="labels are lists: an image may have several labels"):
        opened(tmp_path / "list.jsonl")


def test_a_table_with_a_column_for_each_label_is_refused_where_it_would_be_read(tmp_path: Path) -> None:
    rows = [",".join(map(str, [f"{row}.png", *each])) for row, each in enumerate(ROWS)]
    images_in(tmp_path, **{"metadata.csv": "\n".join(["file_name,ape,bee,cat,dog", *rows]).encode()})
    said = r"metadata\.csv has a column of 0 and 1 for each label; write a row for each label of an image, with the"
    assert_said(str(tmp_path), said, takes_several=True)
    for reading in (LENIENT, Reading(labels="none", takes_several=True)):
        assert read(opened(tmp_path, reading=reading)).labels.tolist() == [-1] * 7
    (tmp_path / "metadata.csv").write_text("file_name,width,height\n0.png,4,4\n")
    assert read(opened(tmp_path, reading=SEVERAL)).labels.tolist() == [-1] * 7


def test_one_label_an_image_stays_a_class_number(tmp_path: Path) -> None:
    """Also for a model of labels: only lists and rows of 0 and 1 are of several."""
    for place, file in (
        ("a", make.write_parquet(tmp_path / "a.parquet")),
        ("b", tfrecord(tmp_path, [0, 1, 2, 0, 1, 2, None])),
        ("c", npz(tmp_path, make.labels(7)[:, None])),
    ):
        one, several = opened(file), opened(file, reading=SEVERAL)
        assert (several.several, several.classes, several.identity()) == ("", one.classes, one.identity()), place
        np.testing.assert_array_equal(read(several).labels, read(one).labels)
        assert read(several).labels.dtype == np.int64


def test_one_hot_rows_are_class_numbers_only_where_an_image_must_have_one(tmp_path: Path) -> None:
    file = npz(tmp_path, np.eye(3)[make.labels(7)])
    assert read(opened(file)).labels.tolist() == make.labels(7).tolist()
    np.testing.assert_array_equal(read(opened(file, reading=SEVERAL)).labels, np.eye(3)[make.labels(7)])


# The rule.

RULE: list[tuple[list[Any], str, tuple[str, ...]]] = [
    ([[0, 1, 1], [1, 0, 0]], "hot", ("0", "1", "2")),
    ([[0, 0], [1, 1]], "hot", ("0", "1")),
    ([[0, 1], [1, 0]], "hot", ("0", "1")),  # what could as well be both classes each time
    ([["0", "1", "0"], [1.0, 0.0, True]], "hot", ("0", "1", "2")),
    ([[0, 1], [1]], "listed", ("0", "1")),
    ([[0, 1], 1], "listed", ("0", "1")),
    ([[0, 1], []], "listed", ("0", "1")),
    ([[0], [1]], "listed", ("0", "1")),
    ([[0, 1, 2], [1, 0, 3]], "listed", ("0", "1", "2", "3")),
    ([["07", 7], [2]], "listed", tuple("01234567")),
    ([["b", "a"], []], "listed", ("a", "b")),
    ([[], []], "", ()),
    ([3, "", 1], "", ("0", "1", "2", "3")),
]


def seen(lists: list[Any]) -> Iterator[str]:
    texts = (labels.list_text(each) if isinstance(each, list) else str(each) for each in lists)
    return (each for text in texts for each in labels.seen_in(text))


@pytest.mark.parametrize(("lists", "several", "classes"), RULE)
def test_the_rule(lists: list[Any], several: str, classes: tuple[str, ...]) -> None:
    assert labels.classes_of(seen(lists), "x", takes_several=True) == (classes, several)


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        (
            [[0, 1, 1], [1, 0]],
            "x: labels are lists of 0 and 1, but of several lengths, such as 2 and 3; write a 0 or 1",
        ),
        ([[0.5, 0.2], [0.1, 0.9]], "x: labels are lists of neither class numbers nor names; add --labels none"),
        ([[None], [[1, 2]]], "x: labels are lists of neither class numbers nor names"),
    ],
)
def test_what_is_neither_is_refused(lists: list[Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        labels.classes_of(seen(lists), "x", takes_several=True)


def test_a_list_among_labels_that_stand_alone_is_none_where_an_image_must_have_one() -> None:
    assert labels.classes_of(seen(["cat", ["cat", "dog"], ""]), "x", takes_several=False) == (("cat",), "")


NEITHER = "has a label that is neither a class number nor a name"
NOT_HOT = "has labels that are not 4 times 0 or 1, like those of the others"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [([1, 1], "has the same label twice"), ([-1], NEITHER), ([2, None], NEITHER), ([70_000], NEITHER)],
)
def test_a_bad_list_is_a_bad_row(bad: list[Any], reason: str, tmp_path: Path) -> None:
    lists = [*TRUTH[:6], bad]
    for file in (
        parquet(tmp_path, pa.array(lists, pa.list_(pa.int64()))),
        images_in(tmp_path / "b" if (tmp_path / "b").mkdir() is None else tmp_path, **{"metadata.jsonl": table(lists)}),
    ):
        if bad == [70_000] and file.is_dir():
            continue  # a name like any other, where numbers are text
        batch = read(opened(file, reading=SEVERAL))
        assert [(each.row, each.reason) for each in batch.bad] == [(6, reason)]
        np.testing.assert_array_equal(batch.labels, ROWS[:6])


@pytest.mark.parametrize("bad", [[0, 1, -1, 0], [0, 1, None, 1]])
def test_a_bad_row_of_0_and_1(bad: list[Any], tmp_path: Path) -> None:
    lists = [*HOT[:6], bad]
    batch = read(opened(parquet(tmp_path, pa.array(lists, pa.list_(pa.int64()))), reading=SEVERAL))
    assert [(each.row, each.reason) for each in batch.bad] == [(6, NOT_HOT)]
    values = ROWS.astype(float)
    values[6] = [np.nan if each is None else each for each in bad]
    batch = read(opened(npz(tmp_path, values), reading=SEVERAL))
    assert [(each.row, each.reason) for each in batch.bad] == [
        (6, "has labels that are not 0 or 1, like those of the others")
    ]


def test_names_of_a_list_of_numbers_from_the_hub(tmp_path: Path) -> None:
    for feature in ({"feature": {"names": NAMES, "_type": "ClassLabel"}, "_type": "List"}, [{"names": NAMES}]):
        file = parquet(tmp_path, pa.array(TRUTH, pa.list_(pa.int64())))
        metadata = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
        pq.write_table(pq.read_table(file).replace_schema_metadata(metadata), file)
        source = opened(file, reading=SEVERAL)
        assert (source.classes, source.numbered) == (NAMES, True)
        np.testing.assert_array_equal(read(source).labels, ROWS)


def test_files_and_splits_of_lists_become_one(tmp_path: Path) -> None:
    """One file has nothing but nulls, which has a type of its own; in another, all are empty."""
    for name, lists, kind in (
        ("a", TRUTH, pa.list_(pa.int64())), ("b", [None] * 7, pa.null()), ("c", [[]] * 7, pa.list_(pa.int32())),
    ):  # fmt: skip
        make.write_parquet(tmp_path / "in" / f"{name}.parquet", label=pa.array(lists, kind))
    found = read(opened(tmp_path / "in", reading=SEVERAL)).labels
    np.testing.assert_array_equal(found, np.concatenate([ROWS, np.full((7, 4), -1), np.zeros((7, 4))]))
    empty = make.write_parquet(tmp_path / "d.parquet", label=pa.array([[]] * 6 + [None], pa.list_(pa.int64())))
    source = opened(empty, reading=SEVERAL)
    assert (source.classes, source.several, read(source).labels.tolist()) == ((), "", [-1] * 7)
    arrays = {"x_train": make.images(3), "y_train": ROWS[:3], "x_test": make.images(2), "y_test": ROWS[3:5]}
    np.savez(tmp_path / "e.npz", **arrays)
    np.testing.assert_array_equal(read(opened(tmp_path / "e.npz", reading=SEVERAL), "test").labels, ROWS[3:5])
    np.savez(tmp_path / "f.npz", **arrays | {"y_test": np.array([0, 1])})
    with pytest.raises(InputError, match=r"f\.npz: labels must have one shape, but train and test have others"):
        opened(tmp_path / "f.npz", reading=SEVERAL)


def test_inputs_of_both_kinds_are_joined(tmp_path: Path) -> None:
    listed = parquet(tmp_path, pa.array(NAMED, pa.list_(pa.string())))
    alone = tmp_path / "b.npz"
    np.savez(alone, x=make.images(3), y=np.array(["dog", "", "ant"]))
    without = make.write_parquet(tmp_path / "c.parquet", 2, label=None)
    source = opened(listed, alone, without, reading=SEVERAL)
    assert (source.classes, source.several) == (("ant", *NAMES), "listed")
    expected = np.zeros((12, 5), np.int8)
    expected[:7, 1:] = ROWS
    expected[7, 4], expected[9, 0] = 1, 1
    expected[[3, 8, 10, 11]] = -1
    np.testing.assert_array_equal(read(source).labels, expected)
    hot, wider = npz(tmp_path, ROWS), tmp_path / "wide.npz"
    np.savez(wider, x=make.images(2), y=np.array([[0, 1, 1, 0, 0]] * 2))
    assert opened(hot, hot, reading=SEVERAL).several == "hot"
    with pytest.raises(
        InputError, match=r"a\.npz has labels of 4 classes, but .*wide\.npz of 5; score them separately"
    ):
        opened(hot, wider, reading=SEVERAL)


# Rows.


@pytest.mark.parametrize("rows", [0, 1, 7, 40])
def test_other_numbers_against_a_plain_loop(rows: int) -> None:
    generator = np.random.default_rng(rows)
    has = generator.integers(0, 2, (rows, 5)).astype(np.int8)
    has[generator.random(rows) < 0.2] = -1
    table = np.array([2, -1, 0, 5, 1])
    expected = np.zeros((rows, 6), np.int8)
    for row, each in enumerate(has.tolist()):
        numbers = [int(table[number]) for number, value in enumerate(each) if value == 1]
        expected[row, [number for number in numbers if number >= 0]] = 1
        if each[0] < 0 or -1 in numbers:
            expected[row] = -1
    np.testing.assert_array_equal(labels.renumbered(has, table, 6), expected)
    alone = generator.integers(-1, 7, rows)
    found = labels.renumbered(alone, table, 6)
    assert found.tolist() == [int(table[each]) if 0 <= each < 5 else -1 for each in alone]
    as_rows = labels.as_rows(found, 6)
    assert [np.flatnonzero(row == 1).tolist() for row in as_rows] == [[each] if each >= 0 else [] for each in found]
    np.testing.assert_array_equal(labels.is_known(as_rows), found >= 0)
