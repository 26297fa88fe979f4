"""Many inputs as one, globs, lists, tar archives, listings, conversions, and what damaged ones cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mnist_ray.errors import InputError
from mnist_ray.sources.base import Reading
from mnist_ray.sources.joined import JoinedSource
from mnist_ray.sources.open import open_source
from tests.support import data_makers as make
from tests.support.data_makers import png, webdataset, write_tar
from tests.support.reading import opened, read


def test_parquet_files_of_a_glob_are_one_input(tmp_path: Path) -> None:
    for name in ("b", "a", ".c", "d/e"):
        make.write_parquet(tmp_path / f"{name}.parquet", 3)
    source = opened(f"{tmp_path}/*.parquet")
    assert not isinstance(source, JoinedSource)
    assert source.units("all") == [(0, 3), (3, 6)]
    assert opened(f"{tmp_path}/**/*.parquet").splits == {"all": 9}
    assert opened(f"file://{tmp_path}/[a]*").splits == {"all": 3}
    (tmp_path / "f[1].parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    assert opened(tmp_path / "f[1].parquet").splits == {"all": 3}  # it is there: no pattern
    with pytest.raises(InputError, match=r"\*\.png matches nothing"):
        opened(f"{tmp_path}/*.png")


@pytest.mark.parametrize("name", ["a.tar", "a.parquet", "a.png", "a.npz", "a"])
def test_what_does_not_exist(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{name} does not exist"):
        opened(tmp_path / name)
    (tmp_path / "list.txt").write_text(f"{name}\n")
    with pytest.raises(InputError, match=rf"{name} does not exist"):
        opened(tmp_path / "list.txt")


def test_folders_may_be_called_as_files(tmp_path: Path) -> None:
    make.write_parquet(tmp_path / "a.parquet" / "part-0.parquet", 3)
    make.write_parquet(tmp_path / "b.parquet", 4)
    source = opened(f"{tmp_path}/*.parquet")
    assert source.splits == {"all": 7}
    assert source.units("all") == [(0, 3), (3, 7)]


def test_globs_of_images_have_the_classes_of_the_folder(tmp_path: Path) -> None:
    make.write_folders(tmp_path, 7, 5)
    whole = open_source(str(tmp_path)).read("test", 0, 5)
    source = opened(f"{tmp_path}/test/**/*.png")
    batch = read(source)
    assert source.classes == ("class-0", "class-1", "class-2")
    assert [f"test/{name}" for name in batch.ids] == whole.ids.tolist()
    assert batch.labels.tolist() == whole.labels.tolist()
    assert batch.sources == whole.sources
    np.testing.assert_array_equal(batch.images, whole.images)


def test_lists_of_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make.write_folders(tmp_path / "in", 7, 5)
    lines = [
        "# some of them",
        "",
        "in/test/class-1/001.png",
        f"  {tmp_path}/in/test/class-0/000.png\r",
        "in/train/class-2/*",
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    monkeypatch.chdir("/")
    source = opened(tmp_path / "list.txt")
    batch = read(source)
    assert batch.ids.tolist() == [
        "in/test/class-1/001.png",
        f"{tmp_path}/in/test/class-0/000.png"[1:],
        "002.png",
        "005.png",
    ]
    assert batch.labels.tolist() == [-1] * 4
    np.testing.assert_array_equal(batch.images[2:], make.images(7)[[2, 5]])
    (tmp_path / "list.txt").write_text("# nothing\n\n")
    with pytest.raises(InputError, match=r"list\.txt names no input"):
        opened(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"x" * 10_000)
    with pytest.raises(InputError, match=r"list\.txt is not a list of paths"):
        opened(tmp_path / "list.txt")
    with pytest.raises(InputError, match=r"none\.txt does not exist"):
        opened(tmp_path / "none.txt")


@pytest.mark.parametrize("name", ["list.txt", "LIST.TXT"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_lists_as_other_programs_write_them(name: str, encoding: str, end: str, quote: str, tmp_path: Path) -> None:
    make.write_folders(tmp_path / "für", 7, 5)
    paths = ["für/test/class-1/001.png", "für/test/class-0/000.png"]
    text = end.join(["# a list", "", *(f"{quote}{path}{quote}" for path in paths)])
    is_marked = encoding.endswith("-bom")
    data = f"\ufeff{text}".encode(encoding.removesuffix("-bom")) if is_marked else text.encode(encoding)
    (tmp_path / name).write_bytes(data)
    assert read(opened(tmp_path / name)).ids.tolist() == paths


def test_a_list_in_pieces_and_in_an_unknown_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mnist_ray.sources.lists._BLOCK", 3)  # a letter of two bytes is cut in half
    make.write_folders(tmp_path / "fü\u20acr", 7, 5)
    (tmp_path / "list.txt").write_text("fü\u20acr/test/class-1/001.png\nfü\u20acr/test/class-0/000.png")
    assert len(read(opened(tmp_path / "list.txt")).ids) == 2
    for data in (b"caf\xe9.png", b"a.png\ncaf\xc3", b"a.png\0"):
        (tmp_path / "list.txt").write_bytes(data)
        with pytest.raises(InputError, match=r"list\.txt is not a list of paths: "):
            opened(tmp_path / "list.txt")


@pytest.mark.parametrize("kind", ["folder", "parquet folder", "file", "archive", "image", "glob", "list"])
def test_a_file_uri_is_the_path(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "of them"
    make.write_folders(root / "folder", 7, 5)
    make.write_parquet(root / "parquet folder" / "a.parquet", 3)
    make.write_npz(root / "file.npz")
    write_tar(root / "archive", webdataset(3))
    (root / "image.png").write_bytes((root / "folder/test/class-0/000.png").read_bytes())
    name = {"file": "file.npz", "image": "image.png", "glob": "folder/test/*/*.png", "list": "list.txt"}.get(kind, kind)
    plain, quoted = f"{root}/{name}", f"file://{root}/{name}".replace("of them", "of%20them")
    (root / "list.txt").write_text("folder/test/class-0/000.png\n")
    for uri in (f"file://{plain}", quoted):
        split = "test" if kind in ("folder", "file") else "all"
        assert read(opened(uri), split).ids.tolist() == read(opened(plain), split).ids.tolist()
        assert opened(uri).identity() == opened(plain).identity()
        assert opened(uri).name == opened(plain).name


# Tables of paths and labels.


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("path,label", "{path},{label}"), ("id;label;filename", "0;{label};{path}"), ("", "{path},{label}"),
        ("label\tfile_name", "{label}\t./{path}"), ('"Image","Class"', '"{path}","{label}"'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_of_paths_and_labels(header: str, row: str, encoding: str, tmp_path: Path) -> None:
    make.write_folders(tmp_path / "in", 7, 5)
    files = [("in/test/class-1/001.png", "cow"), ("in/test/class-0/000.png", "ant"), ("in/test/class-2/002.png", "")]
    lines = [row.format(path=path, label=label) for path, label in files]
    (tmp_path / "a.csv").write_bytes("\r\n".join([header, *lines] if header else lines).encode(encoding))
    source = opened(tmp_path / "a.csv")
    batch = read(source)
    assert [name.removeprefix("./") for name in batch.ids] == [path for path, _ in files]
    assert (source.labels, source.classes, batch.labels.tolist()) == ("column", ("ant", "cow"), [1, 0, -1])
    assert read(opened(tmp_path / "a.csv", reading=Reading(labels="none"))).labels.tolist() == [-1, -1, -1]
    if "\t" in header:
        (tmp_path / "a.csv").rename(tmp_path / "B.TSV")
        assert read(opened(tmp_path / "B.TSV")).ids.tolist() == batch.ids.tolist()


def test_json_lines_of_paths_and_labels(tmp_path: Path) -> None:
    make.write_folders(tmp_path / "in", 7, 5)
    rows = [("in/test/class-1/001.png", "cow"), ("in/test/class-0/000.png", "ant")]
    lines = [json.dumps({"file_name": path, "label": label}) for path, label in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    batch = read(opened(tmp_path / "a.jsonl"))
    assert (batch.ids.tolist(), batch.labels.tolist()) == ([path for path, _ in rows], [1, 0])
    (tmp_path / "latin.csv").write_bytes("path,label\nin/test/class-1/001.png,k\u00fche\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"it is neither UTF-8 nor UTF-16; save it as UTF-8$"):
        opened(tmp_path / "latin.csv")


def test_tables_with_other_columns_and_without_labels(tmp_path: Path) -> None:
    make.write_folders(tmp_path / "in", 7, 5)
    (tmp_path / "a.csv").write_text("name,kind\nin/test/class-1/001.png,2\n")
    with pytest.raises(
        InputError, match=r"a\.csv has no column of paths, only name, kind; name it `path`, or give --im"
    ):
        opened(tmp_path / "a.csv")
    reading = Reading(image_column="name", label_column="kind")
    assert read(opened(tmp_path / "a.csv", reading=reading)).labels.tolist() == [2]
    assert read(opened(tmp_path / "a.csv", reading=Reading(image_column="name"))).labels.tolist() == [-1]
    with pytest.raises(InputError, match=r"a\.csv has no column `x` for --label-column, only name, kind"):
        opened(tmp_path / "a.csv", reading=replace(reading, label_column="x"))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_labels_in_a_table_beside_the_images(name: str, tmp_path: Path) -> None:
    """As Hugging Face's ImageFolder has them."""
    make.write_folders(tmp_path, 7, 5)
    for split, row in (("train", 1), ("test", 1)):
        rows = {f"class-1/00{row}.png": "cow", "class-0/000.png": "ant"}
        text = "".join(f'{{"file_name": "{path}", "label": "{label}"}}\n' for path, label in rows.items())
        if name.endswith(".csv"):
            text = "".join(f"{path},{label}\n" for path, label in {"file_name": "label", **rows}.items())
        (tmp_path / split / name).write_text(text)
    source = open_source(str(tmp_path))
    assert (source.labels, source.classes, source.passed_over) == ("column", ("ant", "cow"), {})
    batch = read(source, "test")
    labels = dict(zip(batch.ids, batch.labels.tolist(), strict=True))
    assert labels.pop("test/class-1/001.png") == 1
    assert labels.pop("test/class-0/000.png") == 0
    assert set(labels.values()) == {-1}
    (tmp_path / "test" / name).write_text(text.replace("cow", "emu"))
    other = open_source(str(tmp_path))
    assert other.identity() != source.identity()
    assert other.fingerprint() != source.fingerprint()
    assert open_source(str(tmp_path), Reading(labels="folders")).classes == ("class-0", "class-1", "class-2")


def test_a_table_of_something_else_beside_the_images_is_passed_over(tmp_path: Path) -> None:
    make.write_folders(tmp_path, 7, 5)
    (tmp_path / "train" / "labels.csv").write_bytes(b"")
    (tmp_path / "test" / "metadata.csv").write_bytes(b"camera,lens\n\xff,2\n")
    source = open_source(str(tmp_path))
    assert (source.labels, source.passed_over) == ("auto", {".csv": 2})


def _beside(tmp_path: Path, table: str) -> Path:
    """Three images in a folder, beside a table."""
    for row, name in enumerate(("0/a.png", "0/b.png", "1/c.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(make.images(3)[row]))
    (tmp_path / "labels.csv").write_text(table)
    return tmp_path


def test_a_caption_may_span_lines_and_paths_may_be_of_windows(tmp_path: Path) -> None:
    rows = "".join(f'0\\{name}.png,"two, or\n\n""more"" lines",{label}\n' for name, label in (("a", 3), ("b", 5)))
    source = opened(_beside(tmp_path, "path,text,label\n" + rows + "./1/c.png,short,4\n"))
    assert read(source).labels.tolist() == [3, 5, 4]
    assert source.remarks == ()


def test_images_that_a_table_does_not_name_are_told(tmp_path: Path) -> None:
    source = opened(_beside(tmp_path, "path,label\n0/a.png,3\n0/b.png,\n9/x.png,2\n"))
    assert read(source).labels.tolist() == [3, -1, -1]
    assert source.remarks == ("labels.csv does not name 1 of 3 images: they have no labels",)
    assert opened(tmp_path, reading=Reading(labels="folders")).remarks == ()


@pytest.mark.parametrize(
    ("table", "error"),
    [
        ("path,label\nin/0/a.png,3\n", r"labels\.csv names none of the images, such as .*\.png; write their paths"),
        ("path,label\n0/a.png,3\n./0/a.png,4\n", r"labels\.csv gives \./0/a\.png two labels, 3 and 4"),
    ],
)
def test_a_table_that_cannot_be_right(table: str, error: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=error):
        opened(_beside(tmp_path, table))
    assert read(opened(tmp_path, reading=Reading(labels="folders"))).labels.tolist() == [0, 0, 1]


def test_a_quote_without_an_end_swallows_no_rows(tmp_path: Path) -> None:
    _beside(tmp_path, "")
    (tmp_path / "list.csv").write_text('path,label\n0/a.png,"3\n0/b.png,4\n')
    with pytest.raises(InputError, match=r"list\.csv is not a table at line 2: unexpected end of data"):
        opened(tmp_path / "list.csv")


def test_columns_of_a_table_beside_the_images_may_be_named(tmp_path: Path) -> None:
    _beside(tmp_path, "photo,digit\n0/a.png,3\n0/b.png,4\n1/c.png,5\n")
    assert read(opened(tmp_path)).labels.tolist() == [0, 0, 1]
    reading = Reading(image_column="photo", label_column="digit")
    assert read(opened(tmp_path, reading=reading)).labels.tolist() == [3, 4, 5]
    with pytest.raises(InputError, match=r"labels\.csv has no column `x` for --label-column, only photo, digit"):
        opened(tmp_path, reading=replace(reading, label_column="x"))
    (tmp_path / "labels.csv").unlink()
    with pytest.raises(InputError, match=r"--label-column digit names a column, and .* has none; leave the option out"):
        opened(tmp_path, reading=reading)
