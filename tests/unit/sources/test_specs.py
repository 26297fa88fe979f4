"""Many inputs as one, globs, lists, tar archives, listings, conversions, and what damaged ones cost."""

from __future__ import annotations

import contextlib
import gzip
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnist_ray.errors import InputError
from mnist_ray.sources import listing
from mnist_ray.sources.base import Batch, Reading, Source
from mnist_ray.sources.joined import JoinedSource
from mnist_ray.sources.listing import Listing
from mnist_ray.sources.open import open_source
from mnist_ray.sources.pixels import Conversion
from mnist_ray.sources.specs import open_inputs
from mnist_ray.storage.location import Location
from tests.support import data_makers as make
from tests.support.data_makers import png, webdataset, write_tar

LENIENT = Reading(lenient=True)


def opened(*specs: Path | str, reading: Reading = LENIENT) -> Source:
    source, split = open_inputs([str(spec) for spec in specs], "test", reading)
    assert split in source.splits
    return pickle.loads(pickle.dumps(source))  # as an actor gets it


def read(source: Source, split: str = "all") -> Batch:
    """All of a split; and every other range gives the same rows."""
    rows = source.splits[split]
    whole = source.read(split, 0, rows, strict=False)
    for start, stop in ((0, 1), (1, rows), (rows // 2, rows)):
        part = list(source.stream(split, start, stop, strict=False))
        expected = [(i, each) for i, each in enumerate(_rows(whole, rows)) if start <= i < stop]
        assert [name for batch in part for name in batch.ids] == [each for _, each in expected if each is not None]
        assert [bad.row for batch in part for bad in batch.bad] == [i for i, each in expected if each is None]
    return whole


def _rows(batch: Batch, rows: int) -> list[Any]:
    bad, ids = {each.row for each in batch.bad}, iter(batch.ids)
    return [None if row in bad else next(ids) for row in range(rows)]


# Many inputs.


def test_inputs_follow_each_other_as_one(tmp_path: Path) -> None:
    first = make.write_npz(tmp_path / "a.npz", 7, 5)
    second = make.write_parquet(tmp_path / "b.parquet", 4, label=pa.array([0, 5, None, 1]))
    third = make.write_parquet(tmp_path / "c" / "d.parquet", 3, label=None)
    source = opened(first, second, third.parent)
    assert isinstance(source, JoinedSource)
    assert (source.splits, source.classes, source.image_shape) == ({"all": 12}, tuple("012345"), (4, 4))
    assert source.units("all") == [(0, 5), (5, 9), (9, 12)]
    batch = read(source)
    assert batch.ids.tolist() == list(range(12))
    assert batch.labels.tolist() == [0, 1, 2, 0, 1, 0, 5, -1, 1, -1, -1, -1]
    np.testing.assert_array_equal(batch.images, np.concatenate([make.images(n) for n in (5, 4, 3)]))
    assert batch.sources == [str(first)] * 5 + [str(second)] * 4 + [str(third.parent)] * 3
    assert (
        source.identity() == opened(first, second, third.parent).identity() != opened(second, first, third).identity()
    )


def test_classes_of_inputs_are_matched_by_name(tmp_path: Path) -> None:
    for place, names in (("one", "bd"), ("two", "ab")):
        for name in names:
            (tmp_path / place / name).mkdir(parents=True)
            Image.fromarray(make.images(1)[0]).save(tmp_path / place / name / "x.png")
    source = opened(tmp_path / "one", tmp_path / "two")
    assert source.classes == ("a", "b", "d")
    assert read(source).labels.tolist() == [1, 2, 0, 1]


def test_inputs_that_do_not_go_together(tmp_path: Path) -> None:
    first, other = (
        make.write_parquet(tmp_path / "a.parquet"),
        make.write_npz(tmp_path / "b.npz", x_test=make.images(5, (3, 4)), x_train=make.images(7, (3, 4))),
    )
    with pytest.raises(InputError, match=r"a\.parquet has images of \(4, 4\), but .*b\.npz of \(3, 4\)"):
        opened(first, other)
    make.write_folders(tmp_path / "c")
    with pytest.raises(
        InputError, match=r"ids of .*a\.parquet are row numbers, but those of .*/c text; score them separately"
    ):
        opened(first, tmp_path / "c")


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


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "BATCH_ROWS", 3)
    monkeypatch.setattr(listing, "LONG", 4)
    monkeypatch.setattr(listing, "_NOTIFY_SECONDS", 0)


def test_a_long_listing_is_made_once(tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    make.write_folders(tmp_path / "in", 7, 5)
    told: list[str] = []
    file = Location.parse(tmp_path / "out" / "_files.arrow")
    reading = replace(LENIENT, list_file=file, notify=told.append)
    plain, first = opened(tmp_path / "in"), opened(tmp_path / "in", reading=reading)
    assert told[0] == f"listing {tmp_path}/in/train/class-0: 0 files …"
    assert told[-1] == f"listing {tmp_path}/in/test/class-2: 11 files …"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["_files.arrow"]
    assert first.identity() == plain.identity()
    with monkeypatch.context() as patch:
        patch.setattr("mnist_ray.sources.listing.children", lambda folder: pytest.fail("listed again"))
        again = opened(tmp_path / "in", reading=replace(reading, reuse_listing=True))
    for split in ("train", "test"):
        for source in (first, again):
            assert read(source, split).ids.tolist() == read(plain, split).ids.tolist()
            np.testing.assert_array_equal(read(source, split).images, read(plain, split).images)
    assert (again.identity(), again.classes, again.splits) == (plain.identity(), plain.classes, plain.splits)
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    assert Listing.load(file, f"{tmp_path}/in") is None  # half of it is none
    file.write_bytes(whole)
    assert Listing.load(file, "of something else") is None


def test_a_glob_of_images_is_gone_through_once(tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    make.write_folders(tmp_path / "in", 7, 5)
    pattern, file = f"{tmp_path}/in/train/**/*.png", Location.parse(tmp_path / "_files.arrow")
    first = opened(pattern, reading=replace(LENIENT, list_file=file))
    resumed = replace(LENIENT, list_file=file, reuse_listing=True)
    with monkeypatch.context() as patch:
        patch.setattr("mnist_ray.sources.listing.children", lambda folder: pytest.fail("listed again"))
        again = opened(pattern, reading=resumed)
    assert (again.identity(), again.classes) == (first.identity(), ("class-0", "class-1", "class-2"))
    assert read(again).ids.tolist() == read(first).ids.tolist()
    whole = file.read_bytes()
    assert opened(tmp_path / "in", reading=resumed).splits == {"train": 7, "test": 5}
    assert file.read_bytes() == whole  # a scoring goes by it
    opened(tmp_path / "in", reading=replace(resumed, reuse_listing=False))
    with pytest.raises(InputError, match=r"_files\.arrow now lists another input"):
        again.read("all", 0, 1)


def test_a_changed_file_is_another_input(tmp_path: Path) -> None:
    make.write_folders(tmp_path, 7, 5)
    first = opened(tmp_path).identity()
    assert opened(tmp_path).identity() == first
    os.utime(tmp_path / "test" / "class-0" / "000.png", ns=(1, 1))
    assert opened(tmp_path).identity() != first


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
    with pytest.raises(InputError, match="holds no PNG or JPEG member"):
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
    with pytest.raises(InputError, match="--label-column x names a Parquet column, and embedded is not Parquet"):
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


# Arrays.


def test_arrays_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", make.images(7))
    np.savez(tmp_path / "b.npz", images=make.images(7), labels=make.labels(7))
    np.savez_compressed(tmp_path / "c.npz", x=np.asfortranarray(make.images(7) / 255))
    for name, labels in (("a.npy", [-1] * 7), ("b.npz", make.labels(7).tolist()), ("c.npz", [-1] * 7)):
        batch = read(opened(tmp_path / name))
        np.testing.assert_array_equal(batch.images, make.images(7))
        assert batch.labels.tolist() == labels
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole.replace(b"(7, 4, 4)", b"(9, 4, 4)"))
    with pytest.raises(
        InputError, match=r"a\.npy is truncated or damaged: its header promises \(9, 4, 4\) of uint8, and 112"
    ):
        opened(tmp_path / "a.npy")


@pytest.mark.parametrize("name", ["a.npy", "b.npz", "c.parquet", "d.tar"])
def test_damage_anywhere_is_one_line_or_set_aside(name: str, tmp_path: Path) -> None:
    """Every 11th byte turned over, one at a time; a footer's damage must not end the process."""
    np.save(tmp_path / "a.npy", make.images(7))
    np.savez_compressed(tmp_path / "b.npz", x=make.images(7), y=make.labels(7))
    make.write_parquet(tmp_path / "c.parquet", image=pa.array(make.images(7).reshape(7, 16).tolist()))
    write_tar(tmp_path / "d.tar", webdataset(2))
    file = tmp_path / name
    whole = file.read_bytes()
    for place in [*range(0, min(len(whole), 3000), 11), *range(max(len(whole) - 1000, 0), len(whole), 11)]:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with contextlib.suppress(InputError):
            source = opened(file)
            rows = min(source.splits["all"], 1000)
            batch = source.read("all", 0, rows, strict=False)
            assert len(batch.ids) + len(batch.bad) == rows


def test_bombs_are_refused_before_they_go_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a few hundred kilobytes; what they would fill is taken for large here."""
    monkeypatch.setattr("mnist_ray.sources.formats.arrays._BOMB_BYTES", 8 << 20)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((1000, 100, 100), np.uint8))
    with pytest.raises(InputError, match=r"a\.npz: x decompresses to more than 100 times its size"):
        opened(tmp_path / "a.npz")
    make.write_idx(tmp_path / "idx")
    header = make.idx_bytes(make.images(1))[:4] + b"\x7f\xff\xff\xff" + b"\0\0\x1c\0" * 2  # 2^31 - 1 rows
    bomb = tmp_path / "idx" / "train-images-idx3-ubyte.gz"
    bomb.write_bytes(gzip.compress(header + bytes(64 << 20)))
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz decompresses to more than 100 times its size"):
        opened(tmp_path / "idx")
    bomb.write_bytes(gzip.compress(make.idx_bytes(make.images(7)) + bytes(64 << 20)))  # no more is unpacked than said
    with pytest.raises(InputError, match="is too long: its header promises 112 bytes of images, and 113 follow"):
        opened(tmp_path / "idx")


def test_uncompressed_arrays_are_mapped(tmp_path: Path) -> None:
    from mnist_ray.sources.formats import arrays

    np.save(tmp_path / "a.npy", make.images(7))
    make.write_npz(tmp_path / "b.npz")
    for name, split in (("a.npy", "all"), ("b.npz", "train")):
        source = opened(tmp_path / name)
        images = source.read(split, 0, 7).images
        while not isinstance(images, np.memmap) and images.base is not None:
            images = images.base
        assert isinstance(images, np.memmap), name
    assert arrays._decoded


# Conversions.


def test_images_are_converted_as_pillow_does(tmp_path: Path) -> None:
    colours = make.images(7, (9, 6, 3))
    convert = Conversion((4, 5), gray=True, offered=True)
    expected = np.stack(
        [np.asarray(Image.fromarray(each).convert("L").resize((5, 4), Image.Resampling.BILINEAR)) for each in colours]
    )
    make.write_parquet(tmp_path / "raw.parquet", shape=(9, 6, 3), named_shape=True)
    make.write_parquet(tmp_path / "png.parquet", image=pa.array([png(each) for each in colours]))
    np.save(tmp_path / "a.npy", colours)
    (tmp_path / "folder").mkdir()
    for row, each in enumerate(colours):
        Image.fromarray(each).save(tmp_path / "folder" / f"{row}.png")
    Image.fromarray(make.images(1, (30, 20))[0]).save(tmp_path / "folder" / "9.png")  # of another size: it fits too
    for name in ("raw.parquet", "png.parquet", "a.npy", "folder"):
        source = opened(tmp_path / name, reading=Reading(convert=convert))
        assert source.image_shape == (4, 5)
        batch = source.read("all", 0, 7)
        np.testing.assert_array_equal(batch.images, expected)
        assert source.identity() != opened(tmp_path / name).identity()
    assert source.read("all", 7, 8).images.shape == (1, 4, 5)


def test_a_misfit_is_told_the_option(tmp_path: Path) -> None:
    make.write_folders(tmp_path, 7, 5, shape=(4, 4))
    Image.fromarray(make.images(1, (8, 8, 3))[0]).save(tmp_path / "test" / "class-1" / "001.png")
    source = opened(tmp_path, reading=replace(LENIENT, convert=Conversion(offered=True)))
    (bad,) = read(source, "test").bad
    assert bad.reason == "has the shape (8, 8, 3), not (4, 4) like the others; --resize 4x4 --gray converts it"
    assert set(source.shapes) == {(4, 4), (8, 8, 3)}
