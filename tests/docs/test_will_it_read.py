"""Each row of docs/will-it-read.md: the input is made and read, and what the row says becomes of it."""

from __future__ import annotations

import base64
import datetime
import gzip
import json
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnist_ray.errors import InputError
from mnist_ray.sources.base import Reading, Source
from mnist_ray.sources.pixels import Conversion
from mnist_ray.sources.specs import open_inputs
from tests.docs.pages import ROOT, Page
from tests.support import data_makers as make
from tests.support.data_makers import png, webdataset, write_tar, write_zip
from tests.support.tfrecord_maker import write_tfrecord

PAGE = Page(ROOT / "docs" / "will-it-read.md")
GRAY, COLOURS, LABELS = make.images(7), make.images(7, (4, 6, 3)), make.labels(7)
PNGS = [png(image) for image in GRAY]
SMALL = Conversion((4, 4), gray=True, offered=True)


def saved(folder: Path, name: str, image: Any, kind: str | None = None, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name, kind, **options)
    return folder


def opened(spec: Path, **options: Any) -> tuple[Source, str]:
    return open_inputs([str(spec)], "test", Reading(lenient=True, **options))


def outcome(spec: Path, **options: Any) -> tuple[int, list[str]]:
    """The number of images that are read, and why the others are not."""
    source, split = opened(spec, **options)
    batch = source.read(split, 0, source.splits[split], strict=False)
    return len(batch.ids), [bad.reason for bad in batch.bad]


def labels(spec: Path, **options: Any) -> tuple[tuple[str, ...], list[int]]:
    source, split = opened(spec, **options)
    return source.classes, source.read(split, 0, source.splits[split]).labels.tolist()


def refusal(spec: Path, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        opened(spec, **options)
    return str(raised.value)


def table(file: Path, **columns: Any) -> Path:
    return make.write_parquet(file, **columns)


def folder(place: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


ROWS: dict[str, Callable[[Path], None]] = {}


def row(text: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def take(check: Callable[[Path], None]) -> Callable[[Path], None]:
        assert text not in ROWS
        ROWS[text] = check
        return check

    return take


# Images.


@row("PNG, JPEG, WebP, AVIF, BMP, TIFF and GIF in one folder")
def _(tmp: Path) -> None:
    for number, kind in enumerate(("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")):
        saved(
            tmp,
            f"{number}.{kind.lower()}",
            Image.fromarray(GRAY[number]),
            kind,
            **({"lossless": True} if number == 2 else {}),
        )
    assert outcome(tmp) == (7, [])


@row("a `.png` that is a JPEG")
def _(tmp: Path) -> None:
    assert outcome(saved(tmp, "a.png", Image.fromarray(GRAY[0]), "JPEG")) == (1, [])


@row("a photo that a phone holds on its side")
def _(tmp: Path) -> None:
    note = Image.Exif()
    note[0x0112] = 6
    source, split = opened(saved(tmp, "a.png", Image.fromarray(COLOURS[0]), exif=note))
    np.testing.assert_array_equal(source.read(split, 0, 1).images[0], COLOURS[0].transpose(1, 0, 2)[:, ::-1])


@row("a JPEG of 108 megapixels")
def _(tmp: Path) -> None:
    saved(tmp, "a.jpg", Image.new("L", (12_000, 9_000)))
    saved(tmp, "b.jpg", Image.new("L", (4, 4)))
    assert outcome(tmp, convert=SMALL) == (2, [])
    assert outcome(tmp) == (1, ["is 12000 x 9000 pixels; at most 4096 a side; --resize reads larger ones, too"])


@row("a PNG with transparency")
def _(tmp: Path) -> None:
    clear = Image.fromarray(np.dstack([GRAY[0], np.zeros((4, 4), np.uint8)]))
    for background in ((0, 0, 0), (255, 255, 255)):
        source, split = opened(saved(tmp, "a.png", clear), convert=Conversion(background=background))
        np.testing.assert_array_equal(source.read(split, 0, 1).images[0], np.full((4, 4), background[0]))


@row("a PNG with a palette")
def _(tmp: Path) -> None:
    assert opened(saved(tmp / "gray", "a.png", Image.fromarray(GRAY[0]).convert("P")))[0].image_shape == (4, 4)
    assert opened(saved(tmp / "rgb", "a.png", Image.fromarray(COLOURS[0]).quantize(8)))[0].image_shape == (4, 6, 3)


@row("a PNG of 16 bits")
def _(tmp: Path) -> None:
    source, split = opened(saved(tmp, "a.png", Image.fromarray(GRAY[0].astype(np.uint16) * 256 + 9)))
    np.testing.assert_array_equal(source.read(split, 0, 1).images[0], GRAY[0])


@row("a CMYK JPEG")
def _(tmp: Path) -> None:
    assert opened(saved(tmp, "a.jpg", Image.fromarray(COLOURS[0]).convert("CMYK")))[0].image_shape == (4, 6, 3)


@row("a TIFF of floats")
def _(tmp: Path) -> None:
    saved(tmp, "a.tif", Image.fromarray(GRAY[0].astype(np.float32)))
    reason = "is an image of mode F, which is neither gray nor colours; save it as PNG"
    assert outcome(saved(tmp, "b.png", Image.fromarray(GRAY[0]))) == (1, [reason])


@row("an animated GIF")
def _(tmp: Path) -> None:
    frames = [Image.fromarray(image) for image in GRAY]
    source, split = opened(saved(tmp, "a.gif", frames[0], save_all=True, append_images=frames[1:]))
    np.testing.assert_array_equal(source.read(split, 0, 1).images[0], GRAY[0])
    assert source.remarks == (f"{tmp}/a.gif has several frames; the first of each such image is read",)


@row("a HEIC photo that is called `.jpg`")
def _(tmp: Path) -> None:
    saved(tmp, "a.png", Image.fromarray(GRAY[0]))
    (tmp / "b.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    assert outcome(tmp) == (1, ["is HEIC or a video; save it as JPEG"])


@row("an empty file")
def _(tmp: Path) -> None:
    (tmp / "a.png").write_bytes(b"")
    assert outcome(saved(tmp, "b.png", Image.fromarray(GRAY[0]))) == (1, ["is an empty file"])


@row("images of several sizes")
def _(tmp: Path) -> None:
    saved(saved(tmp, "a.png", Image.fromarray(GRAY[0])), "b.png", Image.fromarray(COLOURS[0]))
    assert outcome(tmp, convert=SMALL) == (2, [])
    assert outcome(tmp)[0] == 1
    with pytest.raises(InputError, match=r"has images of several sizes, such as 4 x 4 and 4 x 6; give --resize, such"):
        opened(tmp)[0].require_sharding()
    opened(tmp, convert=SMALL)[0].require_sharding()


@row("gray images for a model of colours")
def _(tmp: Path) -> None:
    spec = saved(tmp, "a.png", Image.fromarray(GRAY[0]))
    assert opened(spec, convert=Conversion(rgb=True))[0].image_shape == (4, 4, 3)


# Folders and archives.


def folders(tmp: Path, train: str, test: str) -> Source:
    for split, number in ((train, 0), (test, 1)):
        saved(tmp / split / "cat", f"{number}.png", Image.fromarray(GRAY[number]))
    source, split = opened(tmp)
    assert (split, dict(source.splits), source.classes) == ("test", {"train": 1, "test": 1}, ("cat",))
    return source


@row("`train/cat/1.png` and `test/cat/2.png`")
def _(tmp: Path) -> None:
    folders(tmp, "train", "test")


@row("`Training/` and `Testing/`")
def _(tmp: Path) -> None:
    folders(tmp, "Training", "Testing")


@row("`train/` and `val/`")
def _(tmp: Path) -> None:
    folders(tmp, "train", "val")


@row("`Thumbs.db`, `desktop.ini` and `__MACOSX/` among the images")
def _(tmp: Path) -> None:
    for name in ("Thumbs.db", "desktop.ini"):
        (saved(tmp / "cat", "a.png", Image.fromarray(GRAY[0])) / name).write_bytes(b"x")
    (tmp / "__MACOSX" / "cat").mkdir(parents=True)
    source, _split = opened(tmp)
    assert (source.splits, source.passed_over) == ({"all": 1}, {".db": 1, ".ini": 1, "__MACOSX/": 1})


@row("`images/` with `labels/` of YOLO, or `Annotations/` of Pascal VOC")
def _(tmp: Path) -> None:
    folder(tmp, {"images/1.png": PNGS[0], "labels/1.txt": b"0 .5 .5 1 1", "Annotations/1.xml": b"<a/>"})
    assert (outcome(tmp), opened(tmp)[0].passed_over) == ((1, []), {".txt": 1, ".xml": 1})


@row("`@eaDir/` of a NAS, `lost+found/` or `$RECYCLE.BIN/`, at any depth")
def _(tmp: Path) -> None:
    left = ["@eaDir/a.png", "cat/@eaDir/1.png/SYNOPHOTO_THUMB_S.png", "lost+found/b", "$RECYCLE.BIN/c.png"]
    folder(tmp, {"cat/1.png": PNGS[0], "dog/2.png": PNGS[1], **dict.fromkeys(left, PNGS[2])})
    assert labels(tmp) == (("cat", "dog"), [0, 1])
    assert sum(opened(tmp)[0].passed_over.values()) == 4


@row("a link to a file that is not there")
def _(tmp: Path) -> None:
    (folder(tmp, {"cat/1.png": PNGS[0]}) / "cat" / "2.png").symlink_to(".git/annex/objects/2.png")
    assert outcome(tmp) == (1, ["is a link to a file that does not exist"])


@row("`MNIST/raw/` as torchvision keeps it, or a folder above")
def _(tmp: Path) -> None:
    for gz in (True, False):
        make.write_idx(tmp / "MNIST" / "raw", gz=gz)
    for spec in (tmp, tmp / "MNIST", tmp / "MNIST" / "raw"):
        assert dict(opened(spec)[0].splits) == {"train": 7, "test": 5}


@row("a cache of the Hugging Face Hub, with `blobs/` and `snapshots/`")
def _(tmp: Path) -> None:
    folder(tmp, {"blobs/ab12": PNGS[0], "refs/main": b"f00d", "snapshots/f00d/cat/1.png": PNGS[0]})
    assert f"give the folder of a version in it: {tmp}/snapshots/f00d" in refusal(tmp)


@row("what `save_to_disk` of Hugging Face's `datasets` writes")
def _(tmp: Path) -> None:
    assert "Arrow files are not read; write Parquet" in refusal(
        folder(tmp, {"data-0-of-1.arrow": b"", "state.json": b""})
    )


@row("`cifar-10-batches-py/`")
def _(tmp: Path) -> None:
    assert "data_batch_1 is a Python pickle" in refusal(folder(tmp, {"data_batch_1": pickle.dumps({"data": 1})}))


@row("a folder of images, with the archive they came from")
def _(tmp: Path) -> None:
    write_zip(saved(tmp / "cat", "a.png", Image.fromarray(GRAY[0])).parent / "a.zip", {"cat/a.png": PNGS[0]})
    source, _split = opened(tmp)
    assert (source.splits, source.passed_over) == ({"all": 1}, {".zip": 1})


@row("a ZIP archive of such folders")
def _(tmp: Path) -> None:
    members = {f"photos/{split}/cat/{number}.png": PNGS[number] for number, split in enumerate(("train", "test"))}
    source, split = opened(write_zip(tmp / "a.zip", members))
    assert (split, dict(source.splits), source.classes) == ("test", {"train": 1, "test": 1}, ("cat",))
    assert [path.name for path in tmp.iterdir()] == ["a.zip"]


@row("a ZIP archive whose paths have backslashes")
def _(tmp: Path) -> None:
    with zipfile.ZipFile(tmp / "a.zip", "w") as archive:
        for path, data in (("data\\cat\\1.png", PNGS[0]), ("data\\dog\\2.png", PNGS[1])):
            (info := zipfile.ZipInfo("x")).filename = path
            archive.writestr(info, data)
    assert labels(tmp / "a.zip") == (("cat", "dog"), [0, 1])


@row("a ZIP archive of tables, Parquet or other archives")
def _(tmp: Path) -> None:
    inside = {"train.csv": b"label,pixel0", "a.parquet": b"PAR1", "b.zip": b"PK"}
    assert "holds no image, only 1 .csv, 1 .parquet, 1 .zip; if" in refusal(write_zip(tmp / "a.zip", inside))


@row("a ZIP archive with a password")
def _(tmp: Path) -> None:
    data = bytearray(write_zip(tmp / "a.zip", {"0.png": PNGS[0], "1.png": PNGS[1]}).read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1  # as the directory says of a member that is encrypted
    (tmp / "a.zip").write_bytes(data)
    assert outcome(tmp / "a.zip") == (1, ["is encrypted"])


@row("a WebDataset with `.cls` or `.json` members")
def _(tmp: Path) -> None:
    write_tar(tmp / "a.tar", webdataset(3))
    write_tar(tmp / "b.tar", {"0.png": PNGS[0], "0.json": b'{"label": 2}'})
    assert labels(tmp) == (("0", "1", "2"), [0, 1, 2, 2])


@row("a tar archive that is cut off")
def _(tmp: Path) -> None:
    file = write_tar(tmp / "a.tar", {f"{number}.png": PNGS[number] for number in range(3)})
    with file.open("ab") as opened_file:
        opened_file.truncate(2600)
    read, reasons = outcome(file)
    assert (read, len(reasons)) == (2, 1)
    assert "the rest is lost" in reasons[0]


@row("a `.tar.gz`, whatever it is called")
def _(tmp: Path) -> None:
    data = gzip.compress(write_tar(tmp / "a.tar", webdataset(2)).read_bytes())
    for name in ("a.tar.gz", "a.tar", "a"):
        (tmp / name).write_bytes(data)
        assert f"{name} is compressed by gzip; decompress it first" in refusal(tmp / name)


@row("a TFRecord file")
def _(tmp: Path) -> None:
    file = write_tfrecord(tmp / "a.tfrecord", [{"image": PNGS[row], "label": row % 3} for row in range(7)])
    assert labels(file) == (("0", "1", "2"), LABELS.tolist())
    data = bytearray(file.read_bytes())
    data[60] ^= 1
    file.write_bytes(data)
    assert outcome(file) == (6, ["is damaged: its checksum is not that of its bytes"])


@row("a TFRecord file that is compressed by gzip")
def _(tmp: Path) -> None:
    file = write_tfrecord(tmp / "a.tfrecord", [{"image": PNGS[row], "label": row % 3} for row in range(7)])
    file.write_bytes(gzip.compress(file.read_bytes()))
    assert labels(file) == (("0", "1", "2"), LABELS.tolist())


# Labels.


@row("no labels at all")
def _(tmp: Path) -> None:
    assert labels(saved(tmp, "a.png", Image.fromarray(GRAY[0]))) == ((), [-1])


@row("folders `0` to `11`")
def _(tmp: Path) -> None:
    for number in range(12):
        saved(tmp / str(number), "a.png", Image.fromarray(GRAY[0]))
    assert opened(tmp)[0].classes == tuple(map(str, range(12)))


@row("`metadata.csv` beside the images")
def _(tmp: Path) -> None:
    (saved(tmp / "june", "a.png", Image.fromarray(GRAY[0])).parent / "metadata.csv").write_text(
        "file_name,label\njune/a.png,cat\n"
    )
    assert labels(tmp) == (("cat",), [0])


@row("`metadata.csv` above `train/` and `test/`, or in a ZIP archive")
def _(tmp: Path) -> None:
    members = {"train/0.png": PNGS[0], "test/1.png": PNGS[1]}
    members["metadata.csv"] = b"file_name,label\ntrain/0.png,cat\ntest/1.png,dog\n"
    for name, data in members.items():
        (tmp / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp / "in" / name).write_bytes(data)
    assert labels(tmp / "in") == labels(write_zip(tmp / "a.zip", members)) == (("cat", "dog"), [1])
    assert opened(tmp / "in")[0].passed_over == {}


@row("a CSV list of paths and labels")
def _(tmp: Path) -> None:
    saved(saved(tmp, "a.png", Image.fromarray(GRAY[0])), "b.png", Image.fromarray(GRAY[1]))
    (tmp / "list.csv").write_text("path,label\nb.png,dog\na.png,cat\n")
    assert labels(tmp / "list.csv") == (("cat", "dog"), [1, 0])


@row("such a list in UTF-16, with tabs (`.tsv`), or as JSON lines")
def _(tmp: Path) -> None:
    folder(tmp, {"1.png": PNGS[0], "2.png": PNGS[1]})
    (tmp / "a.csv").write_text("path,label\n1.png,dog\n2.png,cat\n", "utf-16")
    (tmp / "a.tsv").write_text("path\tlabel\n1.png\tdog\n2.png\tcat\n")
    (tmp / "a.jsonl").write_text('{"path": "1.png", "label": "dog"}\n{"path": "2.png", "label": "cat"}\n')
    for name in ("a.csv", "a.tsv", "a.jsonl"):
        assert labels(tmp / name) == (("cat", "dog"), [1, 0])


@row("`café.png` in `metadata.csv`, which macOS writes with the accent apart")
def _(tmp: Path) -> None:
    folder(tmp, {"cafe\u0301.png": PNGS[0], "metadata.csv": "file_name,label\ncaf\u00e9.png,cat\n".encode()})
    assert labels(tmp) == (("cat",), [0])


@row("labels as text")
def _(tmp: Path) -> None:
    np.savez(tmp / "a.npz", x=GRAY[:3], y=np.array(["dog", "cat", "dog"]))
    file = table(tmp / "a.parquet", rows=3, label=pa.array(["dog", "cat", "dog"]))
    assert labels(tmp / "a.npz") == labels(file) == (("cat", "dog"), [1, 0, 1])


@row("one-hot labels, in an array or a TFRecord")
def _(tmp: Path) -> None:
    hot = np.eye(3)[LABELS]
    np.savez(tmp / "a.npz", x=GRAY, y=hot)
    records = zip(PNGS, hot.tolist(), strict=True)
    write_tfrecord(tmp / "a.tfrecord", [{"image": image, "label": label} for image, label in records])
    for file in (tmp / "a.npz", tmp / "a.tfrecord"):
        assert labels(file) == (("0", "1", "2"), LABELS.tolist())
        assert "labels are one-hot" in opened(file)[0].remarks[0]


@row("`nan` where a label is missing")
def _(tmp: Path) -> None:
    saved(saved(tmp, "a.png", Image.fromarray(GRAY[0])), "b.png", Image.fromarray(GRAY[1]))
    (tmp / "list.csv").write_text("path,label\na.png,1.0\nb.png,nan\n")
    file = table(tmp / "a.parquet", rows=2, label=pa.array(["1.0", "nan"]))
    assert labels(tmp / "list.csv") == labels(file) == (("0", "1"), [1, -1])


@row("labels that are -1 everywhere")
def _(tmp: Path) -> None:
    assert labels(table(tmp / "a.parquet", label=pa.array([-1] * 7))) == ((), [-1] * 7)


@row("a Parquet file with names of classes in the Hub's metadata")
def _(tmp: Path) -> None:
    features = {"label": {"_type": "ClassLabel", "names": ["zero", "one", "two"]}}
    made = pq.read_table(table(tmp / "a.parquet"))
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(made.replace_schema_metadata(metadata), tmp / "a.parquet")
    assert labels(tmp / "a.parquet") == (("zero", "one", "two"), LABELS.tolist())


# Several labels an image.

TRUTH = [[0, 2], [1]]
NAMED = [["cat", "eel"], ["dog"]]
HOT = [[1, 0, 1], [0, 1, 0]]
ANIMALS, NUMBERS = ("cat", "dog", "eel"), ("0", "1", "2")


def several(spec: Path) -> tuple[tuple[str, ...], list[list[int]]]:
    """As for a model that gives labels."""
    classes, found = labels(spec, takes_several=True)
    return classes, found  # type: ignore[return-value]  # rows


def lists(file: Path, values: list[Any], kind: pa.DataType) -> Path:
    return table(file, rows=len(values), label=pa.array(values, pa.list_(kind)))


@row("a Parquet column of lists of class numbers or names")
def _(tmp: Path) -> None:
    assert several(lists(tmp / "a.parquet", TRUTH, pa.int64())) == (NUMBERS, HOT)
    assert several(lists(tmp / "b.parquet", NAMED, pa.string())) == (ANIMALS, HOT)


@row("a Parquet column of lists of 0 and 1, or of true and false, as long as there are classes")
def _(tmp: Path) -> None:
    assert several(lists(tmp / "a.parquet", HOT, pa.uint8())) == (NUMBERS, HOT)
    assert several(lists(tmp / "b.parquet", [list(map(bool, each)) for each in HOT], pa.bool_())) == (NUMBERS, HOT)


@row("an array of 0 and 1, `(n, classes)`")
def _(tmp: Path) -> None:
    np.savez(tmp / "a.npz", x=GRAY[:2], y=np.array(HOT))
    assert several(tmp / "a.npz") == (NUMBERS, HOT)


@row("a TFRecord feature with any number of values, or multi-hot")
def _(tmp: Path) -> None:
    for name, values in (("a", TRUTH), ("b", HOT)):
        records = [{"image": PNGS[number], "label": each} for number, each in enumerate(values)]
        assert several(write_tfrecord(tmp / f"{name}.tfrecord", records)) == (NUMBERS, HOT)


@row("`metadata.jsonl` with lists of labels, beside the images or in a ZIP archive")
def _(tmp: Path) -> None:
    rows = [{"file_name": f"{number}.png", "label": names} for number, names in enumerate(NAMED)]
    members = {"0.png": PNGS[0], "1.png": PNGS[1], "metadata.jsonl": "\n".join(map(json.dumps, rows)).encode()}
    (tmp / "in").mkdir()
    for name, data in members.items():
        (tmp / "in" / name).write_bytes(data)
    assert several(tmp / "in") == several(write_zip(tmp / "a.zip", members)) == (ANIMALS, HOT)


@row("a WebDataset whose `.json` members hold lists of labels")
def _(tmp: Path) -> None:
    members = {f"{number}.json": json.dumps({"label": names}).encode() for number, names in enumerate(NAMED)}
    assert several(write_tar(tmp / "a.tar", {"0.png": PNGS[0], "1.png": PNGS[1], **members})) == (ANIMALS, HOT)


def with_table(tmp: Path, text: str) -> Path:
    saved(saved(tmp, "0.png", Image.fromarray(GRAY[0])), "1.png", Image.fromarray(GRAY[1]))
    (tmp / "metadata.csv").write_text(text)
    return tmp


@row("`metadata.csv` with a row for each label of an image")
def _(tmp: Path) -> None:
    spec = with_table(tmp, "file_name,label\n0.png,cat\n0.png,eel\n1.png,dog\n")
    assert several(spec) == (ANIMALS, HOT)


@row("a CSV table with a column of 0 and 1 for each label")
def _(tmp: Path) -> None:
    spec = with_table(tmp, "file_name,cat,dog,eel\n0.png,1,0,1\n1.png,0,1,0\n")
    assert "has a column of 0 and 1 for each label; write a row for each label" in refusal(spec, takes_several=True)


@row("an empty list, or a row of zeros")
def _(tmp: Path) -> None:
    for name, values in (("a", [[0, 2], []]), ("b", [[1, 0, 1], [0, 0, 0]])):
        assert several(lists(tmp / f"{name}.parquet", values, pa.int64())) == (NUMBERS, [[1, 0, 1], [0, 0, 0]])


@row("null in place of a list")
def _(tmp: Path) -> None:
    assert several(lists(tmp / "a.parquet", [[0, 2], None], pa.int64())) == (NUMBERS, [[1, 0, 1], [-1] * 3])


@row("lists of 0 and 1 of several lengths")
def _(tmp: Path) -> None:
    spec = lists(tmp / "a.parquet", [[0, 1, 1], [1, 0]], pa.int64())
    assert "lists of 0 and 1, but of several lengths, such as 2 and 3" in refusal(spec, takes_several=True)


@row("a list that names a label twice")
def _(tmp: Path) -> None:
    spec = lists(tmp / "a.parquet", [[0, 2], [2, 2]], pa.int64())
    assert outcome(spec, takes_several=True) == (1, ["has the same label twice"])


@row("several labels an image for training, or for a model of one class of several")
def _(tmp: Path) -> None:
    spec = lists(tmp / "a.parquet", TRUTH, pa.int64())
    assert "an image may have several labels, but training needs one, and so does a model" in refusal(spec)
    assert labels(spec, labels="none") == ((), [-1, -1])


@row("the names of a list of `ClassLabel` in the Hub's metadata")
def _(tmp: Path) -> None:
    features = {"label": {"feature": {"_type": "ClassLabel", "names": ANIMALS}, "_type": "List"}}
    made = pq.read_table(lists(tmp / "a.parquet", TRUTH, pa.int64()))
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(made.replace_schema_metadata(metadata), tmp / "a.parquet")
    assert several(tmp / "a.parquet") == (ANIMALS, HOT)


# Tables and arrays.


def kaggle(file: Path, delimiter: str = ",") -> Path:
    header = delimiter.join(["label", *(f"pixel{number}" for number in range(16))])
    rows = np.column_stack([LABELS, GRAY.reshape(7, 16)])
    np.savetxt(file, rows, "%d", delimiter=delimiter, header=header, comments="")  # compresses what is called .gz
    return file


@row("Kaggle's `train.csv` of MNIST")
def _(tmp: Path) -> None:
    assert labels(kaggle(tmp / "train.csv")) == (("0", "1", "2"), LABELS.tolist())


@row("the same with semicolons or tabs, or compressed by gzip")
def _(tmp: Path) -> None:
    for name, delimiter in (("a.csv", ";"), ("b.tsv", "\t"), ("c.csv.gz", ",")):
        assert labels(kaggle(tmp / name, delimiter)) == (("0", "1", "2"), LABELS.tolist())


def array(tmp: Path, values: Any, **options: Any) -> tuple[Any, tuple[str, ...]]:
    np.save(tmp / "a.npy", values)
    source, split = opened(tmp / "a.npy", **options)
    return source.read(split, 0, len(values)).images, source.remarks


@row("the same in UTF-16")
def _(tmp: Path) -> None:
    rows = [",".join(map(str, [label, *image.ravel()])) for label, image in zip(LABELS, GRAY, strict=True)]
    header = ",".join(["label", *(f"pixel{number}" for number in range(16))])
    (tmp / "a.csv").write_text("\r\n".join([header, *rows]), "utf-16")
    assert labels(tmp / "a.csv") == (("0", "1", "2"), LABELS.tolist())


@row("an `.npy` of `(n, 784)`")
def _(tmp: Path) -> None:
    images, remarks = array(tmp, np.zeros((2, 784), np.uint8))
    assert images.shape == (2, 28, 28)
    assert "784 pixels an image; they are read as (28, 28)" in remarks[0]


@row("an `.npy` of `(n, 3, h, w)`")
def _(tmp: Path) -> None:
    images, remarks = array(tmp, COLOURS.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(images, COLOURS)
    assert "it is read as (7, 4, 6, 3)" in remarks[0]


@row("floats from 0 to 1")
def _(tmp: Path) -> None:
    np.testing.assert_array_equal(array(tmp, (GRAY / 255).astype(np.float32))[0], GRAY)


@row("floats from -1 to 1")
def _(tmp: Path) -> None:
    np.save(tmp / "a.npy", GRAY / 127.5 - 1)
    assert "have been normalised; save the images as they were before" in refusal(tmp / "a.npy")
    np.testing.assert_array_equal(array(tmp, GRAY / 127.5 - 1, signed=True)[0], GRAY)


@row("floats that were scaled by a mean and a deviation")
def _(tmp: Path) -> None:
    np.save(tmp / "a.npy", (GRAY - GRAY.mean()) / GRAY.std())
    assert "have been normalised; save the images as they were before" in refusal(tmp / "a.npy")


@row("`mnist.pkl.gz`")
def _(tmp: Path) -> None:
    (tmp / "mnist.pkl.gz").write_bytes(gzip.compress(pickle.dumps([1])))
    assert "is a Python pickle, which may run any code" in refusal(tmp / "mnist.pkl.gz")


@row("an HDF5 file of images")
def _(tmp: Path) -> None:
    with h5py.File(tmp / "a.h5", "w") as file:
        file["x"] = GRAY
    assert "HDF5 is not read; save its arrays with numpy.savez" in refusal(tmp / "a.h5")


@row('Parquet of `{"bytes", "path"}` by the Hugging Face Hub')
def _(tmp: Path) -> None:
    assert outcome(table(tmp / "a.parquet", image=pa.array([{"bytes": each, "path": "a"} for each in PNGS]))) == (7, [])


@row("Parquet whose images are paths")
def _(tmp: Path) -> None:
    assert "`image` holds paths, not images; write" in refusal(table(tmp / "a.parquet", image=pa.array(["1.png"] * 7)))


@row("Parquet with base64")
def _(tmp: Path) -> None:
    column = pa.array([base64.b64encode(each).decode() for each in PNGS])
    assert outcome(table(tmp / "a.parquet", image=column)) == (7, [])


@row("Parquet by DuckDB, polars or Spark: LZ4, Brotli, dictionaries, views")
def _(tmp: Path) -> None:
    plain = pa.array(PNGS)
    kinds = [plain.cast(pa.large_binary()), plain.cast(pa.binary_view()), plain.dictionary_encode()]
    for packer in ("LZ4", "BROTLI", "GZIP", "ZSTD", "SNAPPY", "NONE"):
        for images in kinds:
            pq.write_table(pa.table({"image": images, "label": LABELS}), tmp / "a.parquet", compression=packer)
            assert labels(tmp / "a.parquet") == (("0", "1", "2"), LABELS.tolist())


@row("Parquet with tensors of Ray Data")
def _(tmp: Path) -> None:
    metadata = {b"ARROW:extension:name": b"ray.data.arrow_tensor_v2", b"ARROW:extension:metadata": b"[4, 6, 3]"}
    kind = pa.large_list(pa.uint8())
    column = pa.array(COLOURS.reshape(7, -1).tolist(), kind)
    pq.write_table(
        pa.table([column], schema=pa.schema([pa.field("image", kind, metadata=metadata)])), tmp / "a.parquet"
    )
    assert opened(tmp / "a.parquet")[0].image_shape == (4, 6, 3)


@row("Parquet with ids that are UUIDs or times")
def _(tmp: Path) -> None:
    days = pa.array([datetime.date(2024, 1, 31)] * 7)
    for ids, text in ((pa.array([bytes(16)] * 7, pa.binary(16)), "0" * 32), (days, "2024-01-31")):
        source, split = opened(table(tmp / "a.parquet", id=ids))
        assert source.read(split, 0, 1).ids.tolist() == [text]


@row("Spark's `part-00000` without a suffix")
def _(tmp: Path) -> None:
    table(tmp / "part-00000")
    (tmp / "_SUCCESS").write_text("")
    assert outcome(tmp) == (7, [])


@row("Parquet in folders `label=3/`")
def _(tmp: Path) -> None:
    table(tmp / "label=3" / "a.parquet", rows=2, label=None)
    assert labels(tmp) == (("0", "1", "2", "3"), [3, 3])


@row("columns of other names")
def _(tmp: Path) -> None:
    file = table(tmp / "a.parquet", image=None, label=None, img=pa.array(PNGS), kind=pa.array(LABELS))
    assert labels(file, image_column="img", label_column="kind") == (("0", "1", "2"), LABELS.tolist())


# Elsewhere.


@row("an `https://` address")
def _(tmp: Path) -> None:
    with pytest.raises(InputError, match=r"^https://example\.com is a web address; download it"):
        open_inputs(["https://me:secret@example.com/a.zip?token=x"], "test")


@row("a folder that changes while it is read")
def _(tmp: Path) -> None:
    folder(tmp, {f"{number}.png": PNGS[number] for number in range(4)})
    source, split = opened(tmp)
    (tmp / "1.png").unlink()
    batch = source.read(split, 0, 4, strict=False)
    assert (len(batch.ids), [bad.reason for bad in batch.bad]) == (3, ["does not exist"])


# What other trackers report.


@row("a `.ppm` or `.pgm` image")
def _(tmp: Path) -> None:
    saved(saved(tmp, "a.pgm", Image.fromarray(GRAY[0])), "b.pgm", Image.fromarray(GRAY[1]))
    source, split = opened(tmp)
    np.testing.assert_array_equal(source.read(split, 0, 2).images, GRAY[:2])
    saved(tmp / "colours", "a.ppm", Image.fromarray(COLOURS[0]))
    assert opened(tmp / "colours")[0].image_shape == (4, 6, 3)


@row("`.ipynb_checkpoints/`, `._cat.png` and other hidden names")
def _(tmp: Path) -> None:
    for folder in ("cat", ".ipynb_checkpoints", ".git"):
        saved(tmp / folder, "a.png", Image.fromarray(GRAY[0]))
    (tmp / "cat" / "._a.png").write_bytes(b"\0\5\x16\7")
    assert labels(tmp) == (("cat",), [0])


@row("links to images and to folders")
def _(tmp: Path) -> None:
    saved(tmp / "store", "1.png", Image.fromarray(GRAY[0]))
    (tmp / "in" / "cat").mkdir(parents=True)
    (tmp / "in" / "cat" / "a.png").symlink_to(tmp / "store" / "1.png")
    (tmp / "in" / "dog").symlink_to(tmp / "store")
    assert labels(tmp / "in") == (("cat", "dog"), [0, 1])


@row("an image called `train station.png`")
def _(tmp: Path) -> None:
    for name in ("train station.png", "test.png", "a.png"):
        saved(tmp, name, Image.fromarray(GRAY[0]))
    assert dict(opened(tmp)[0].splits) == {"all": 3}


@row("a JPEG with extraneous bytes in front of its end")
def _(tmp: Path) -> None:
    data = (saved(tmp, "a.jpg", Image.fromarray(GRAY[0])) / "a.jpg").read_bytes()
    (tmp / "b.jpg").write_bytes(data[:-2] + bytes(211) + data[-2:])
    source, split = opened(tmp)
    whole, damaged = source.read(split, 0, 2).images
    np.testing.assert_array_equal(whole, damaged)


@row("`22.05.png` and `22.06.png` in a tar archive")
def _(tmp: Path) -> None:
    assert outcome(write_tar(tmp / "a.tar", {"22.05.png": PNGS[0], "22.06.png": PNGS[1]})) == (2, [])


@row("`0001.PNG` and `0001.CLS` in a tar archive")
def _(tmp: Path) -> None:
    assert labels(write_tar(tmp / "a.tar", {"0001.PNG": PNGS[0], "0001.CLS": b"2"})) == (("0", "1", "2"), [2])


@row("a tar archive with all images first, then all labels")
def _(tmp: Path) -> None:
    members: dict[str, Any] = {f"{number}.png": PNGS[number] for number in range(3)}
    members |= {f"{number}.cls": f"{number}".encode() for number in range(3)}
    assert labels(write_tar(tmp / "a.tar", members)) == (("0", "1", "2"), [0, 1, 2])


@row("`metadata.jsonl` beside `images.zip`")
def _(tmp: Path) -> None:
    write_zip(tmp / "images.zip", {"a.png": PNGS[0], "b.png": PNGS[1]})
    rows = [{"file_name": "a.png", "label": "dog"}, {"file_name": "b.png", "label": "cat"}]
    (tmp / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert labels(tmp) == (("cat", "dog"), [1, 0])


@row("an `.npz` of MedMNIST")
def _(tmp: Path) -> None:
    splits = {"train": 3, "val": 2, "test": 7}
    arrays = {f"{split}_images": GRAY[:rows] for split, rows in splits.items()}
    arrays |= {f"{split}_labels": LABELS[:rows, None].astype(np.uint8) for split, rows in splits.items()}
    np.savez(tmp / "a.npz", **arrays)
    assert dict(opened(tmp / "a.npz")[0].splits) == {"train": 3, "test": 7}
    assert labels(tmp / "a.npz") == (("0", "1", "2"), LABELS.tolist())


@row("a TFRecord file that is compressed by ZLIB")
def _(tmp: Path) -> None:
    file = write_tfrecord(tmp / "a.tfrecord", [{"image": PNGS[0]}])
    file.write_bytes(zlib.compress(file.read_bytes()))
    assert outcome(file) == (1, [])


@row("labels in the names of images: `248394-cat.png`")
def _(tmp: Path) -> None:
    saved(tmp, "248394-cat.png", Image.fromarray(GRAY[0]))
    assert labels(tmp) == ((), [-1])
    (tmp / "list.csv").write_text("path,label\n248394-cat.png,cat\n")
    assert labels(tmp / "list.csv") == (("cat",), [0])


def test_each_row_of_the_page_is_tested() -> None:
    rows = re.findall(r"^\| (.+?) \| ", PAGE.text, re.MULTILINE)
    assert [each for each in rows if each not in ("What you have", "---")] == list(ROWS)


@pytest.mark.parametrize("text", ROWS)
def test_a_row_says_what_happens(text: str, tmp_path: Path) -> None:
    ROWS[text](tmp_path)
