"""Tar archives: of files, of class folders, of WebDataset samples; odd members and damage."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.errors import InputError
from mnist_ray.sources.base import Reading
from tests.support import data_makers as make
from tests.support.data_makers import png, webdataset, write_tar
from tests.support.reading import opened, read

# Tar archives.


@pytest.mark.parametrize("options", [{"format": tarfile.PAX_FORMAT}, {"format": tarfile.GNU_FORMAT}])
def test_archives_of_images(tmp_path: Path, options: dict[str, Any]) -> None:
    write_tar(tmp_path / "b.tar", webdataset(3, 4), **options)
    write_tar(tmp_path / "a.tar", webdataset(4), **options)
    source = opened(tmp_path)
    assert (source.splits, source.classes, source.units("all")) == ({"all": 7}, ("0", "1", "2"), [(0, 4), (4, 7)])
    batch = read(source)
    assert batch.ids.tolist() == [f"{'ab'[row > 3]}.tar/{row:04d}.png" for row in range(7)]
    assert batch.sources == [f"{tmp_path}/{name}" for name in batch.ids]
    assert batch.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    np.testing.assert_array_equal(batch.images, make.images(20)[:7])
    assert opened(f"{tmp_path}/*.tar").splits == {"all": 7}
    assert opened(tmp_path / "b.tar").read("all", 1, 2).ids.tolist() == ["b.tar/0005.png"]
    assert source.digest() == opened(tmp_path).digest() != opened(tmp_path / "b.tar").digest()


def test_the_image_among_the_fields_of_a_key(tmp_path: Path) -> None:
    """WebDataset: `0000.png` is the image, `0000.seg.png` another field, unless --image-field says otherwise."""
    members: dict[str, bytes | str] = {}
    for row in range(4):
        members |= {f"{row:04d}.{field}": png(make.images(20)[row + more]) for field, more in FIELDS.items()}
        members |= {f"{row:04d}.json": b"{}", f"{row:04d}.cls": str(row).encode()}
    archive = write_tar(tmp_path / "a.tar", members)
    for field, first, passed_over in (
        (None, 4, {".json": 4, ".seg.png": 4}),
        ("png", 4, {".json": 4, ".seg.png": 4}),
        (".SEG.png", 0, {".json": 4, ".png": 4}),
    ):
        source = opened(archive, reading=Reading(image_field=field, lenient=True))
        batch = read(source)
        assert batch.images[:, 0, 0].tolist() == list(range(first, first + 4))
        assert (batch.labels.tolist(), source.passed_over) == ([0, 1, 2, 3], passed_over)
    with pytest.raises(InputError, match=r"a\.tar holds no image called KEY\.jpg"):
        opened(archive, reading=Reading(image_field="jpg"))
    with pytest.raises(InputError, match=r"--image-field png chooses members of archives, and .* is not one"):
        opened(make.write_npz(tmp_path / "a.npz"), reading=Reading(image_field="png"))


def test_names_with_dots_are_images_where_no_key_has_a_plain_one(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", {f"v1.{row}.png": png(make.images(20)[row]) for row in range(3)})
    source = opened(archive)
    assert (read(source).ids.tolist(), source.passed_over) == ([f"a.tar/v1.{row}.png" for row in range(3)], {})


def test_folders_are_labels_only_without_cls_members(tmp_path: Path) -> None:
    image = png(make.images(1)[0])
    write_tar(tmp_path / "a.tar", {"cat/1.png": image, "dog/2.png": image})
    source = opened(tmp_path / "a.tar")
    assert (source.labels, source.classes, read(source).labels.tolist()) == ("auto", ("cat", "dog"), [0, 1])
    write_tar(tmp_path / "b.tar", {"cat/1.png": image, "cat/1.cls": b"3", "dog/2.png": image})
    source = opened(tmp_path / "b.tar")
    assert (source.labels, source.classes, read(source).labels.tolist()) == ("column", tuple("0123"), [3, -1])


def test_labels_in_json_members(tmp_path: Path) -> None:
    image = png(make.images(1)[0])
    labels = (b'{"label": 2}', b'{"cls": "1", "caption": "x"}', b'{"caption": "x"}', b"0", b"[", b'{"label": [1]}')
    members: dict[str, bytes | str] = {}
    for row, label in enumerate(labels):
        members |= {f"{row}.json": label, f"{row}.png": image}
    source = opened(write_tar(tmp_path / "a.tar", members))
    assert (source.classes, read(source).labels.tolist()) == (("0", "1", "2"), [2, 1, -1, 0, -1, -1])
    assert source.passed_over == {".json": 2}
    named = write_tar(tmp_path / "b.tar", {"0.json": b'{"label": "cat"}', "0.png": image, "1.png": image})
    assert opened(named).classes == ("cat",)


FIELDS = {"seg.png": 0, "png": 4}  # and which of the images above each is


def test_archive_of_class_folders_and_of_odd_members(tmp_path: Path) -> None:
    image, long = png(make.images(1)[0]), "x" * 300 + ".png"
    members: dict[str, bytes | str] = {
        "cat/1.png": image, "/etc/2.png": image, "../../3.png": image, f"dog/{long}": image, "4.png": "/etc/passwd",
        "cat/notes.txt": b"", "cat/5.jpg": b"", "6.png": image,
    }  # fmt: skip
    source = opened(write_tar(tmp_path / "a.tar", members))
    batch = read(source)
    assert batch.ids.tolist() == [
        f"a.tar/{name}" for name in ("cat/1.png", "/etc/2.png", "../../3.png", f"dog/{long}", "6.png")
    ]
    assert [(bad.row, bad.reason) for bad in batch.bad] == [
        (4, "is a link or a device, not a file"), (5, "is an empty file"),
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


@pytest.mark.parametrize(("keep", "readable"), [(100, 0), (512 * 9 + 10, 4), (512 * 10 + 9, 5), (512 * 12, 6)])
def test_damaged_archive_gives_what_was_readable(keep: int, readable: int, tmp_path: Path) -> None:
    whole = write_tar(
        tmp_path / "b.tar", {f"{row}.png": png(make.images(20)[row]) for row in range(6)}, format=tarfile.USTAR_FORMAT
    )
    whole.write_bytes(whole.read_bytes()[:keep])
    write_tar(tmp_path / "a.tar", webdataset(2))
    batch = read(opened(tmp_path))
    assert batch.ids.tolist()[2:] == [f"b.tar/{row}.png" for row in range(readable)]
    assert [(bad.row, bad.source) for bad in batch.bad] == [(2 + readable, str(whole))]


def test_archives_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no archive" * 1000)
    with pytest.raises(
        InputError, match=r"a\.tar holds no image that can be read: .*is not a tar archive or is damaged"
    ):
        opened(tmp_path / "a.tar")
    write_tar(tmp_path / "a.tar", {"x.txt": b""})
    with pytest.raises(InputError, match=r"a\.tar holds no image"):
        opened(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz"):
        pass
    with pytest.raises(InputError, match=r"b\.tar\.gz is compressed by gzip; decompress it first"):
        opened(tmp_path / "b.tar.gz")
    zeros = write_tar(tmp_path / "c.tar", webdataset(2)).read_bytes()
    (tmp_path / "c.tar").write_bytes(zeros[:1024] + bytes(512) + zeros[1536:])
    with pytest.raises(InputError, match="ends at byte 1,024, but more follows"):
        opened(tmp_path / "c.tar")


def test_forged_headers_of_archives(tmp_path: Path) -> None:
    """A size of 8 EiB, a negative one, and a long name of many gigabytes."""
    for size in (b"\x80" + (2**62).to_bytes(11), b"\xff" + (-600 & (2**88 - 1)).to_bytes(11)):
        for kind in (b"0", b"L", b"x"):
            info = bytearray(tarfile.TarInfo("evil.png").tobuf(tarfile.GNU_FORMAT))
            info[124:136], info[156:157] = size, kind
            info[148:156] = b" " * 8
            info[148:156] = f"{sum(info):06o}\0 ".encode()
            write_tar(tmp_path / "a.tar", webdataset(2))
            whole = (tmp_path / "a.tar").read_bytes()
            (tmp_path / "a.tar").write_bytes(whole[: 512 * 12] + info + whole)
            batch = read(opened(tmp_path / "a.tar"))
            assert len(batch.ids) == 2
            assert len(batch.bad) in (1, 2), (size, kind)
