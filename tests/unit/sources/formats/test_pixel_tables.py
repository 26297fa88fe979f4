"""CSV files with a column a pixel, as Kaggle, OpenML and pandas write them; and rows that are damaged."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.errors import InputError
from mnist_ray.sources.base import Reading
from mnist_ray.sources.formats import arrays
from mnist_ray.sources.formats.pixel_tables import is_pixel_table
from mnist_ray.sources.open import open_source
from tests.support import data_makers as make
from tests.support.reading import assert_said, opened, read

IMAGES, LABELS = make.images(7), make.labels(7)
PIXELS = [f"pixel{number}" for number in range(16)]


def write_table(file: Path, header: list[str] | None, *columns: Any, images: Any = IMAGES, end: str = "\n") -> Path:
    """`columns` stand before the pixels; None stands for the labels behind them."""
    flat = images.reshape(len(images), -1).tolist()
    rows = [
        [str(value) for value in (*(column[row] for column in columns if column is not None), *flat[row])]
        + [str(LABELS[row]) for column in columns if column is None]
        for row in range(len(images))
    ]
    file.parent.mkdir(exist_ok=True)
    file.write_text(end.join(",".join(row) for row in ([header] if header else []) + rows) + end)
    return file


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("header", "columns"),
    [
        (["label", *PIXELS], (LABELS,)),  # Kaggle's train.csv
        (["label", *(f"{row}x{column}" for row in range(1, 5) for column in range(1, 5))], (LABELS,)),
        ([*PIXELS, "class"], (None,)),  # OpenML
        (["", *map(str, range(16)), "target"], (range(7), None)),  # pandas, with its index
        (['"label"', *(f'"{name}"' for name in PIXELS)], (LABELS,)),
        (["id", "label", *PIXELS], (range(7), LABELS)),
        (["\ufefflabel", *PIXELS], (LABELS,)),
        (None, (LABELS,)),  # mnist_train.csv
    ],
)
def test_tables_of_pixels_and_labels(tmp_path: Path, header: list[str] | None, columns: tuple[Any], end: str) -> None:
    source = opened(write_table(tmp_path / "a.csv", header, *columns, end=end))
    assert (source.splits, source.image_shape, source.classes) == ({"all": 7}, (4, 4), ("0", "1", "2"))
    batch = read(source)
    np.testing.assert_array_equal(batch.images, IMAGES)
    assert batch.labels.tolist() == LABELS.tolist()
    np.savez(tmp_path / "a.npz", x=IMAGES, y=LABELS)
    assert source.digest() == opened(tmp_path / "a.npz").digest()


@pytest.mark.parametrize("header", [PIXELS, None, list(map(str, range(16)))])
def test_tables_without_labels(tmp_path: Path, header: list[str] | None) -> None:
    batch = read(opened(write_table(tmp_path / "a.csv", header)))
    np.testing.assert_array_equal(batch.images, IMAGES)
    assert set(batch.labels.tolist()) == {-1}


def test_floats_are_0_to_1(tmp_path: Path) -> None:
    batch = read(opened(write_table(tmp_path / "a.csv", ["label", *PIXELS], LABELS, images=IMAGES / 255)))
    np.testing.assert_array_equal(batch.images, IMAGES)
    assert batch.labels.tolist() == LABELS.tolist()


def test_a_folder_of_tables_has_the_splits_that_their_names_tell(tmp_path: Path) -> None:
    write_table(tmp_path / "k" / "mnist_train.csv", ["label", *PIXELS], LABELS)
    write_table(tmp_path / "k" / "mnist_test.csv", None, LABELS, images=IMAGES[:3])
    (tmp_path / "k" / "readme.md").write_text("")
    source = open_source(str(tmp_path / "k"))
    source.require_training()
    assert (source.splits, source.passed_over) == ({"train": 7, "test": 3}, {".md": 1})
    write_table(tmp_path / "parts" / "a.csv", ["label", *PIXELS], LABELS)
    write_table(tmp_path / "parts" / "b.csv", ["label", *PIXELS], LABELS, images=IMAGES[:3])
    np.testing.assert_array_equal(read(opened(tmp_path / "parts")).images, np.concatenate([IMAGES, IMAGES[:3]]))


def test_bad_rows_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    file = write_table(tmp_path / "a.csv", ["label", *PIXELS], LABELS)
    lines = file.read_text().splitlines()
    lines[2] = lines[2].rpartition(",")[0]
    lines[3] = lines[3].rpartition(",")[0] + ",x"
    lines[4] = lines[4].rpartition(",")[0] + ",256"
    lines[5] = lines[5].rpartition(",")[0] + ","
    lines[7] = "-3" + lines[7][1:]
    file.write_text("\n".join(lines))
    batch = read(opened(file))
    assert batch.ids.tolist() == [0, 5]
    np.testing.assert_array_equal(batch.images, IMAGES[[0, 5]])
    assert [(bad.row, bad.reason) for bad in batch.bad] == [
        (1, "has 16 columns, not 17 like the first line"),
        (2, "holds what is not a number ('x')"),
        (3, "has a pixel 256.0; pixels must be whole numbers 0..255"),
        (4, "holds what is not a number ('')"),
        (6, "has the label -3.0; labels must be class numbers 0..65535"),
    ]
    assert [bad.row for bad in read(opened(file, reading=Reading(labels="none", lenient=True))).bad] == [1, 2, 3, 4]


def test_columns_by_name_and_tables_that_are_none(tmp_path: Path) -> None:
    file = write_table(tmp_path / "a.csv", ["pixel99", *PIXELS], LABELS)
    assert read(opened(file, reading=Reading(label_column="Pixel99"))).labels.tolist() == LABELS.tolist()
    assert_said(str(file), r"a\.csv has no column `x` for --label-column", label_column="x")
    write_table(tmp_path / "b.csv", ["label", *PIXELS[:-1]], LABELS, images=IMAGES.reshape(7, 16)[:, 1:])
    assert_said(str(tmp_path / "b.csv"), r"b\.csv has 15 columns of pixels, which are no square gray image")
    (tmp_path / "c.csv").write_text("label,a,b\n1,2,3\n")
    assert_said(
        str(tmp_path / "c.csv"), r"c\.csv: it is no table of pixels; a table of paths and labels is for `score`"
    )
    with pytest.raises(InputError, match=r"c\.csv has no column of paths, only label, a, b; name it `path`"):
        opened(tmp_path / "c.csv")
    (tmp_path / "d.csv").write_text(",".join(["label", *PIXELS]))
    assert_said(str(tmp_path / "d.csv"), "holds no images")
    assert not is_pixel_table(b"file,label,0,1,2,3,4,5,6,7,8,9\n")
    assert_said(str(file), r"--id-column id names a column, and .*a\.csv has none such", id_column="id")


def test_without_a_header_labels_at_the_end_are_not_taken_for_pixels(tmp_path: Path) -> None:
    dark = IMAGES.copy()
    dark[:, 0, 0] = 0  # as in the corner of any digit
    file = write_table(tmp_path / "a.csv", None, None, images=dark)
    assert_said(
        str(file), r"a\.csv has no header, so its first column is taken for the label, but that is 0 in every row"
    )
    dark[:, -1, -1] = 0
    one_class = write_table(tmp_path / "b.csv", None, [2] * 7, images=dark)
    assert read(opened(one_class)).labels.tolist() == [2] * 7


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz"])
@pytest.mark.parametrize("header", [["label", *PIXELS], None])
def test_tables_of_any_delimiter_compressed_or_not(
    delimiter: str, suffix: str, header: list[str] | None, tmp_path: Path
) -> None:
    text = write_table(tmp_path / "plain", header, LABELS).read_text().replace(",", delimiter)
    text = text.replace(f"{delimiter}255", f"{delimiter}255.0", 1)  # read row by row
    (tmp_path / "plain").unlink()
    data = text.encode()
    (tmp_path / f"train{suffix}").write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    for spec in (tmp_path, tmp_path / f"train{suffix}"):
        source = opened(spec)
        assert (source.splits, source.classes) == ({"all": 7}, ("0", "1", "2"))
        np.testing.assert_array_equal(read(source).images, IMAGES)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("header", [["label", *PIXELS], None])
def test_tables_in_the_encodings_of_spreadsheets(encoding: str, header: list[str] | None, tmp_path: Path) -> None:
    text = write_table(tmp_path / "a.csv", header, LABELS).read_text()
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "a.csv").write_bytes((mark + text.replace("\n", "\r\n")).encode(encoding))
    for spec in (tmp_path, tmp_path / "a.csv"):
        source = opened(spec)
        assert source.classes == ("0", "1", "2")
        np.testing.assert_array_equal(read(source).images, IMAGES)


def test_a_damaged_gzip_and_one_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = gzip.compress(write_table(tmp_path / "plain", ["label", *PIXELS], LABELS).read_bytes())
    file = tmp_path / "a.csv.gz"
    file.write_bytes(data[:-20])
    assert_said(str(file), r"a\.csv\.gz is truncated or damaged \(.*\); copy it again")
    monkeypatch.setattr(arrays, "_BOMB_BYTES", 1 << 20)
    line = ",".join(["0"] * 17) + "\n"
    file.write_bytes(gzip.compress((line * 100_000).encode()))
    assert_said(str(file), r"a\.csv\.gz decompresses to more than 100 times its size")
