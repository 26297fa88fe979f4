"""ZIP archives, read in place: of folders as people pack them, of WebDataset samples; odd members, traps and damage."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.errors import InputError
from mnist_ray.sources.base import Reading
from tests.support import data_makers as make
from tests.support.data_makers import png, webdataset, write_tar, write_zip
from tests.support.reading import opened, read

PNGS = [png(image) for image in make.images(20)]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_archives_of_samples(tmp_path: Path, method: int) -> None:
    write_zip(tmp_path / "b.zip", webdataset(3, 4), method)
    write_zip(tmp_path / "a.zip", webdataset(4), method)
    source = opened(tmp_path)
    assert (source.splits, source.classes, source.units("all")) == ({"all": 7}, ("0", "1", "2"), [(0, 4), (4, 7)])
    batch = read(source)
    assert batch.ids.tolist() == [f"{'ab'[row > 3]}.zip/{row:04d}.png" for row in range(7)]
    assert batch.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    np.testing.assert_array_equal(batch.images, make.images(20)[:7])
    assert opened(f"{tmp_path}/*.zip").splits == {"all": 7}
    assert source.digest() == opened(tmp_path).digest() != opened(tmp_path / "b.zip").digest()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.zip", "b.zip"]  # nothing is extracted


def members_of_folders() -> dict[str, bytes]:
    return {f"photos/{split}/{row % 3}/{row}.png": PNGS[row] for row, split in enumerate(["Training", "testing"] * 5)}


def test_folders_in_an_archive_are_splits_and_classes_below_the_one_that_holds_all(tmp_path: Path) -> None:
    others = {"photos/logo.png": PNGS[19], "__MACOSX/photos/._0.png": b"", "photos/.DS_Store": b""}
    members = {"photos/readme.txt": b"", **members_of_folders(), **others}
    for archive in (write_zip(tmp_path / "a.zip", members), write_tar(tmp_path / "a.tar", dict(members))):
        source = opened(archive)
        assert source.splits == {"train": 5, "test": 5}
        assert (source.classes, source.labels) == (("0", "1", "2"), "auto")
        assert source.passed_over == {".png": 1, ".txt": 1, "hidden": 2}
        for first, split in enumerate(("train", "test")):
            batch = read(source, split)
            assert batch.images[:, 0, 0].tolist() == [first, first + 2, first + 4, first + 6, first + 8]
            assert batch.labels.tolist() == [row % 3 for row in range(first, 10, 2)]
            assert source.units(split) == [(0, 5)]


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        (("cat", "dog"), ("cat", "dog")),
        (("a/cat", "a/dog"), ("cat", "dog")),
        (("cat/x", "cat"), ("cat",)),
        (("", ""), ()),
    ],
)
def test_the_folder_that_holds_all_is_no_class(tmp_path: Path, folders: tuple[str, ...], classes: tuple[str]) -> None:
    members = {f"{folder}/{row}.png".lstrip("/"): PNGS[row] for row, folder in enumerate(folders)}
    source = opened(write_zip(tmp_path / "a.zip", members))
    assert (source.splits, source.classes) == ({"all": 2}, classes)
    assert read(source).labels.tolist() == ([0, len(classes) - 1] if classes else [-1, -1])


@pytest.mark.parametrize("leftover", ["a.zip", "a.csv"])
def test_what_lies_beside_class_folders_or_images_is_passed_over(leftover: str, tmp_path: Path) -> None:
    for folder in (tmp_path / "folders" / "cat", tmp_path / "loose"):
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(PNGS[0])
    for folder in (tmp_path / "folders", tmp_path / "loose"):
        if leftover == "a.zip":
            write_zip(folder / leftover, {"x.png": PNGS[1]})
        else:
            np.savetxt(folder / leftover, make.images(7).reshape(7, 16), "%d", delimiter=",")
        source = opened(folder)
        assert (source.splits, source.passed_over) == ({"all": 1}, {leftover[1:]: 1})


def test_odd_members_are_named(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("cat/link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.mkdir("cat")
        for name in ("cat/0.png", "/etc/1.png", "../../2.png", "dog\\3.png"):
            archive.writestr(name, PNGS[0])
        archive.writestr(link, "/etc/passwd")
        archive.writestr("cat/4.png", PNGS[0], zipfile.ZIP_LZMA)
        archive.writestr("cat/5.png", b"")
    batch = read(opened(tmp_path / "a.zip"))
    assert batch.ids.tolist() == [f"a.zip/{name}" for name in ("cat/0.png", "/etc/1.png", "../../2.png", "dog/3.png")]
    assert [(bad.row, bad.reason) for bad in batch.bad] == [
        (4, "is a link or a device, not a file"),
        (5, "is compressed by method 14, which is not read; pack it again by deflate"),
        (6, "is an empty file"),
    ]


def patched(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def test_an_archive_that_lies(tmp_path: Path) -> None:
    """Sizes, checksums and places that the directory tells, and encryption; each is the trouble of one image."""
    whole = write_zip(tmp_path / "a.zip", {f"{row}.png": PNGS[row] for row in range(3)}).read_bytes()
    second = whole.index(b"PK\1\2", whole.index(b"PK\1\2") + 1)  # in the directory
    for offset, value, reason in (
        (8, b"\1\0", "is encrypted"),
        (16, b"\0\0\0\0", "is damaged within its archive: its size or checksum is another than the directory's"),
        (24, struct.pack("<I", 5), "is damaged within its archive: its size or checksum"),
        (24, struct.pack("<I", 1 << 30), "is larger than 64 MiB"),
        (20, struct.pack("<I", 5), "is damaged within its archive"),
        (42, struct.pack("<I", 7), "is not where the archive's directory says; copy the archive again"),
    ):
        (tmp_path / "a.zip").write_bytes(patched(whole, second + offset, value))
        batch = read(opened(tmp_path / "a.zip"))
        assert batch.ids.tolist() == ["a.zip/0.png", "a.zip/2.png"]
        assert [bad.row for bad in batch.bad] == [1]
        assert batch.bad[0].reason.startswith(reason)


def test_a_member_that_unpacks_to_more_than_it_says_is_not_unpacked(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", {"0.png": PNGS[0], "1.png": bytes(1 << 26)})
    whole = (tmp_path / "a.zip").read_bytes()
    second = whole.index(b"PK\1\2", whole.index(b"PK\1\2") + 1)
    (tmp_path / "a.zip").write_bytes(patched(whole, second + 24, struct.pack("<I", 1000)))
    batch = read(opened(tmp_path / "a.zip"))
    assert [(bad.row, bad.reason[:30]) for bad in batch.bad] == [(1, "is damaged within its archive:")]


def test_an_archive_without_members_is_empty_not_damaged(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no image that can be read: .*a\.zip holds no image$"):
        opened(write_zip(tmp_path / "a.zip", {}))


def test_archives_that_are_none(tmp_path: Path) -> None:
    whole = write_zip(tmp_path / "a.zip", {"0.png": PNGS[0]}).read_bytes()
    (tmp_path / "a.zip").write_bytes(whole[:-30])
    with pytest.raises(
        InputError, match=r"a\.zip holds no image that can be read: .*is not a ZIP archive or is damaged"
    ):
        opened(tmp_path / "a.zip")
    write_zip(tmp_path / "b.zip", {"0.png": PNGS[0]})
    batch = read(opened(tmp_path))  # of several, a damaged one counts as one image
    assert (batch.ids.tolist(), [bad.row for bad in batch.bad]) == (["b.zip/0.png"], [0])
    write_zip(tmp_path / "a.zip", {"x.txt": b""})
    with pytest.raises(InputError, match=r"a\.zip holds no image"):
        opened(tmp_path / "a.zip")
    packed = io.BytesIO()
    np.savez(packed, x=make.images(3))
    (tmp_path / "c.arrays").write_bytes(packed.getvalue())
    assert opened(tmp_path / "c.arrays").splits == {"all": 3}  # arrays, whatever their name


def imagefolder(folder: str = "") -> dict[str, bytes]:
    """As Hugging Face's ImageFolder has it: a table in the folder of each split."""
    members = {}
    for split, rows in (("train", range(5)), ("test", range(5, 9))):
        table = "".join(f"june/{row}.png,{'cow' if row % 2 else 'ant'}\n" for row in rows)
        members[f"{folder}{split}/metadata.csv"] = f"file_name,label\n{table}".encode()
        members |= {f"{folder}{split}/june/{row}.png": PNGS[row] for row in rows}
    return members


@pytest.mark.parametrize("folder", ["", "photos/", "./"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_table_among_the_members_has_their_labels(folder: str, is_first: bool, tmp_path: Path) -> None:
    members = sorted(imagefolder(folder).items(), key=lambda each: each[0].endswith(".csv"), reverse=is_first)
    for archive in (write_zip(tmp_path / "a.zip", dict(members)), write_tar(tmp_path / "a.tar", dict(members))):
        source = opened(archive)
        assert (source.splits, source.classes, source.labels) == ({"train": 5, "test": 4}, ("ant", "cow"), "column")
        assert (read(source, "train").labels.tolist(), read(source, "test").labels.tolist()) == (
            [0, 1, 0, 1, 0],
            [1, 0, 1, 0],
        )
        assert (source.passed_over, source.remarks) == ({}, ())
        by_folder = opened(archive, reading=Reading(labels="folders", lenient=True))
        assert (by_folder.classes, by_folder.passed_over) == (("june",), {".csv": 2})


def test_one_table_for_the_whole_archive_and_what_it_does_not_name(tmp_path: Path) -> None:
    images = {f"{split}/{row}.png": PNGS[row] for row, split in enumerate(["train", "test"] * 3)}
    lines = [f'{{"file_name": "{name}", "label": {row % 3}}}' for row, name in enumerate(images)]
    for named in (6, 4):
        members = {"metadata.jsonl": "\n".join(lines[:named]).encode(), **images}
        source = opened(write_zip(tmp_path / "a.zip", members))
        assert source.classes == ("0", "1", "2")
        assert read(source, "test").labels.tolist() == [1, 0, 2 if named == 6 else -1]
    assert source.remarks == (
        "the table of labels in or beside the archive does not name 2 of 6 images: they have no labels",
    )
    table = {"metadata.csv": b"file_name,label\nx.png,1\n", **images}
    with pytest.raises(InputError, match=r"names none of the images, such as train/0\.png; write their paths as"):
        opened(write_zip(tmp_path / "b.zip", table))
    other = {"metadata.csv": b"when,who\nmay,me\n", "labels.csv": b"\xff\xfe\xff", **images}
    assert opened(write_zip(tmp_path / "c.zip", other)).passed_over == {".csv": 2}


def test_labels_beside_the_images_come_before_those_of_a_table(tmp_path: Path) -> None:
    members = webdataset(3) | {"metadata.csv": b"file_name,label\n0000.png,cow\n"}
    assert opened(write_zip(tmp_path / "a.zip", members)).classes == ("0", "1", "2")


@pytest.mark.parametrize("is_upper", [True, False])
def test_labels_that_do_not_lie_beside_their_images(is_upper: bool, tmp_path: Path) -> None:
    """As `tar` packs a folder of images and one of labels, or files in the order of their suffixes."""
    members = webdataset(5)
    del members["0003.cls"]
    members["0003.json"] = b'{"label": 7}'
    for order in (False, True):
        ordered = sorted(members.items(), key=lambda each: each[0].rpartition(".")[2], reverse=order)
        named = {name.upper() if is_upper else name: data for name, data in ordered}
        for archive in (write_zip(tmp_path / "a.zip", named), write_tar(tmp_path / "a.tar", named)):
            source = opened(archive)
            batch = read(source)
            assert [(name[-8:-4], label) for name, label in zip(batch.ids, batch.labels.tolist(), strict=True)] == [
                ("0000", 0), ("0001", 1), ("0002", 2), ("0003", 7), ("0004", 1)
            ]  # fmt: skip
            np.testing.assert_array_equal(batch.images, make.images(20)[:5])
            assert set(read(opened(archive, reading=Reading(labels="none", lenient=True))).labels.tolist()) == {-1}


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_a_table_beside_archives_has_their_labels(write: Any, tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"{number}.{write.__name__[6:]}", {f"p/{number}.png": PNGS[number]})
    digests = []
    for first, second in (("ant", "cow"), ("cow", "ant")):
        (tmp_path / "metadata.csv").write_text(f"file_name,label\np/0.png,{first}\np/1.png,{second}\n")
        source = opened(tmp_path)
        assert (source.classes, source.labels, source.passed_over) == (("ant", "cow"), "column", {})
        assert read(source).labels.tolist() == ([0, 1] if first == "ant" else [1, 0])
        digests.append(source.identity())
    assert digests[0] != digests[1]
