"""Folders of PNG and JPEG files."""

from __future__ import annotations

import os
import pickle
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import fs

from mnist_ray.errors import InputError
from mnist_ray.sources.formats import folders
from mnist_ray.sources.open import open_source
from mnist_ray.storage.location import Location
from tests.support import data_makers as make
from tests.support.data_makers import png
from tests.support.reading import assert_said, opened, read, read_all

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
        (b"GIF89a", "is not a readable PNG, JPEG, WebP, AVIF"),
        (png(make.images(1)[0])[:-25], "is not a readable PNG, JPEG, WebP, AVIF"),
        (png(make.images(1, (4, 5))[0]), r"has the shape \(4, 5\), not \(4, 4\)"),
        (png(make.images(1, (4, 4, 3))[0]), r"has the shape \(4, 4, 3\), not \(4, 4\)"),
        (png(make.images(1, (4, 4, 4))[0]), r"has the shape \(4, 4, 3\), not \(4, 4\)"),
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
    (tmp_path / "a" / "x").write_text("hello")
    assert_said(str(tmp_path), r"holds no image that can be read: .*a/x is not a readable PNG, JPEG, WebP, AVIF")


# Folders.


def test_folders_are_read_to_any_depth(tmp_path: Path) -> None:
    names = ["b/1.png", "b/x/y/2.png", "b/x/0.png", "a/deep/3.png", "4.png", ".hidden/5.png", "b/.6.png"]
    for row, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make.images(7)[row]).save(tmp_path / name)
    source = opened(tmp_path)
    batch = read(source)
    assert batch.ids.tolist() == ["a/deep/3.png", "b/1.png", "b/x/0.png", "b/x/y/2.png", "4.png"]
    assert [source.classes[label] if label >= 0 else None for label in batch.labels] == ["a", "b", "b", "b", None]
    assert batch.images[:, 0, 0].tolist() == [3, 0, 2, 1, 4]


@pytest.mark.parametrize("pattern", ["", "/**/*.png"])
def test_a_link_that_leads_back_is_refused(pattern: str, tmp_path: Path) -> None:
    """Its images would be scored over and over, until the links are too many for the system."""
    images, beside = make.write_folders(tmp_path / "images"), tmp_path / "beside"
    beside.mkdir()
    (images / "test" / "elsewhere").symlink_to(beside)
    assert opened(f"{images}{pattern}").splits
    (beside / "back").symlink_to(images / "test")
    with pytest.raises(InputError, match=r"elsewhere/back is a link to a folder that contains it; remove it"):
        opened(f"{images}{pattern}")


def test_what_is_no_file_is_set_aside(tmp_path: Path) -> None:
    make.write_folders(tmp_path, 1, 7)
    os.mkfifo(tmp_path / "test" / "class-0" / "pipe.png")
    with (tmp_path / "test" / "class-2" / "huge.png").open("wb") as huge:
        huge.truncate(1 << 40)
    source = opened(tmp_path)
    (tmp_path / "test" / "class-2" / "002.png").unlink()
    batch = read(source, "test")
    assert {(Path(bad.source or "").name, bad.reason) for bad in batch.bad} == {
        ("pipe.png", "is not a regular file"), ("002.png", "does not exist"),
        ("huge.png", "is larger than 64 MiB"),
    }  # fmt: skip
    assert len(batch.ids) == 6


def files(folder: Path, *names: str) -> Path:
    """Files with these paths; those called .png are images."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNG if name.endswith(".png") else b"no image")
    return folder


PNG = png(make.images(1)[0])


def test_links_to_nothing_are_accounted_for(tmp_path: Path) -> None:
    """As git-annex, DVC and a cleaned cache leave them."""
    files(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "fox").mkdir()
    for name in ("cat/0.png", "fox/9.png", "3.png", "readme"):
        (tmp_path / name).symlink_to("/nowhere/else")
    (tmp_path / "cat" / "self").symlink_to("self")
    source = opened(tmp_path)
    batch = read(source)
    assert (batch.ids.tolist(), source.passed_over) == (["cat/1.png", "dog/2.png"], {"no suffix": 1})
    assert [(bad.source, bad.reason) for bad in batch.bad] == [
        (f"{tmp_path}/{name}", "is a link to a file that does not exist")
        for name in ("cat/0.png", "cat/self", "fox/9.png", "3.png")
    ]


def test_what_systems_leave_is_no_image_at_any_depth(tmp_path: Path) -> None:
    """Thumbnails of a NAS, what a disk has of its own, and notes of where a file came from."""
    left = [
        "cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.png", "@eaDir/a.png", "$RECYCLE.BIN/b.png", "lost+found/c.png",
        "System Volume Information/d", "cat/x/Thumbs.db", "cat/1.png:Zone.Identifier", "dog/Icon\r", "Icon\r",
    ]  # fmt: skip
    source = opened(files(tmp_path / "in", "cat/1.png", "dog/2.png", *left))
    assert (source.classes, read(source).ids.tolist()) == (("cat", "dog"), ["cat/1.png", "dog/2.png"])
    assert sum(source.passed_over.values()) == len(left)
    assert opened(f"{tmp_path}/in/**/*.png").splits == {"all": 2}


def test_texts_about_images_are_passed_over_in_class_folders_too(tmp_path: Path) -> None:
    """Of YOLO, Pascal VOC, COCO, Tiny ImageNet; an archive of them holds the same images."""
    names = [
        "images/1.png", "images/2.png", "labels/1.txt", "labels/2.TXT", "annotations/a.json", "annotations/b.xml",
        "images/classes.csv", "images/data.yaml", "images/sub/README.md",
    ]  # fmt: skip
    source = opened(files(tmp_path / "in", *names))
    assert (source.classes, source.splits, source.absent) == (("images",), {"all": 2}, {"all": ()})
    assert source.passed_over == {".csv": 1, ".json": 1, ".md": 1, ".txt": 2, ".xml": 1, ".yaml": 1}
    archive = opened(
        make.write_zip(tmp_path / "a.zip", {name: (tmp_path / "in" / name).read_bytes() for name in names})
    )
    assert (archive.splits, archive.passed_over) == (source.splits, source.passed_over)
    only = files(tmp_path / "texts", "a/1.txt")
    assert_said(str(only), r"holds no images that mnist-ray can read, only 1 a/; accepted are")


def test_a_table_names_files_in_another_form_of_unicode(tmp_path: Path) -> None:
    """macOS takes letters apart; spreadsheets do not."""
    apart, whole = (unicodedata.normalize(form, "caf\u00e9.png") for form in ("NFD", "NFC"))
    for on_disk, in_table in ((apart, whole), (whole, apart)):
        folder = files(tmp_path / str(len(on_disk)), on_disk, "b.png")
        table = f"file_name,label\n{in_table},cat\nb.png,dog\n".encode()
        (folder / "metadata.csv").write_bytes(table)
        content = {on_disk: PNG, "b.png": PNG, "metadata.csv": table}
        for source in (opened(folder), opened(make.write_tar(tmp_path / "a.tar", content))):
            assert (source.classes, source.remarks) == (("cat", "dog"), ())
            assert sorted(read(source).labels.tolist()) == [0, 1]


def test_a_cache_of_the_hub_is_refused_by_what_it_is(tmp_path: Path) -> None:
    """Its blobs are the same images under other names, without their classes."""
    files(tmp_path, "blobs/ab12.png", "refs/main", "snapshots/f00d/cat/1.png")
    assert_said(
        str(tmp_path), r"is a cache of the Hugging Face Hub; give the folder of a version in it: .*/snapshots/f00d"
    )
    assert opened(tmp_path / "snapshots" / "f00d").classes == ("cat",)


@pytest.mark.parametrize("kind", [b"heic", b"mif1", b"mp42"])
def test_files_of_phones_are_refused_by_what_they_are(kind: bytes, tmp_path: Path) -> None:
    files(tmp_path, "1.png")
    (tmp_path / "2.jpg").write_bytes(b"\0\0\0\x18ftyp" + kind + bytes(99))
    assert [bad.reason for bad in read(opened(tmp_path)).bad] == ["is HEIC or a video; save it as JPEG"]
