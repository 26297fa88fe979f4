"""Inputs in an object store, read as from a disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mnist_ray.sources import listing
from mnist_ray.sources.base import Reading
from mnist_ray.sources.open import open_source
from mnist_ray.sources.specs import open_inputs
from mnist_ray.storage.location import Location
from tests.support.data_makers import (
    images,
    labels,
    png,
    webdataset,
    write_folders,
    write_npz,
    write_parquet,
    write_tar,
    write_zip,
)
from tests.support.reading import opened, read
from tests.support.s3_server import ROOT, put
from tests.support.tfrecord_maker import write_tfrecord

pytestmark = pytest.mark.usefixtures("here")


# What users have.


def test_inputs_are_read_as_from_a_disk(tmp_path: Path) -> None:
    for name, local in {
        "a.npz": write_npz(tmp_path / "a.npz"),
        "parquet": write_parquet(tmp_path / "parquet" / "0.parquet", rows=11).parent,
        "folders": write_folders(tmp_path / "folders"),
    }.items():
        there, source = open_source(put(local, name)), open_source(str(local))
        assert (there.splits, there.classes, there.image_shape) == (source.splits, source.classes, source.image_shape)
        for split, rows in source.splits.items():
            read, expected = there.read(split, 1, rows), source.read(split, 1, rows)
            np.testing.assert_array_equal(read.images, expected.images)
            np.testing.assert_array_equal(read.labels, expected.labels)
            assert read.ids.tolist() == expected.ids.tolist()


def test_inputs_of_every_kind_are_read_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Globs, a list, an archive, and a listing that lies in the store itself."""
    monkeypatch.setattr(listing, "BATCH_ROWS", 3)
    monkeypatch.setattr(listing, "LONG", 4)
    write_folders(tmp_path / "in", 7, 5)
    write_parquet(tmp_path / "a.parquet", 3)
    np.save(tmp_path / "b.npy", images(3))
    write_tar(tmp_path / "c.tar", webdataset(4))
    (tmp_path / "d.txt").write_text(f"in/test/class-0/000.png\n{ROOT}/inputs/in/test/class-1/001.png\n")
    root = put(tmp_path, "inputs")
    names = [f"test/class-{row % 3}/{row:03d}.png" for row in (0, 3, 1, 4, 2)]

    def ids(spec: str, reading: Reading = Reading(lenient=True)) -> list[Any]:  # noqa: B008
        source, split = open_inputs([f"{root}/{spec}"], "test", reading)
        ids: list[Any] = source.read(split, 0, source.splits[split]).ids.tolist()
        return ids

    kept = Reading(lenient=True, list_file=Location.parse(f"{ROOT}/listed/_files.arrow"))
    assert ids("in", kept) == ids("in", replace(kept, reuse_listing=True)) == names
    assert ids("in/test/**/*.png") == [name.removeprefix("test/") for name in names]
    assert ids("*.tar") == ids("c.tar") == [f"c.tar/{row:04d}.png" for row in range(4)]
    assert ids("*.parquet") == ids("b.npy") == [0, 1, 2]
    assert ids("d.txt") == ["in/test/class-0/000.png", "inputs/in/test/class-1/001.png"]


def test_every_format_is_read_from_the_store(tmp_path: Path) -> None:
    """And gives what it gives from a disk, to another process, too."""
    pngs = [png(image) for image in images(7)]
    names = {f"{row % 3}/{row}.png": data for row, data in enumerate(pngs)}
    table = "".join(f"{row % 3}/{row}.png,{'cow' if row % 2 else 'ant'}\n" for row in range(7))
    write_zip(tmp_path / "folders.zip", {f"test/{name}": data for name, data in names.items()})
    write_zip(tmp_path / "labelled.zip", names | {"metadata.csv": f"file_name,label\n{table}".encode()})
    write_tar(tmp_path / "labelled.tar", names | {"metadata.csv": f"file_name,label\n{table}".encode()})
    rows = np.column_stack([labels(7), images(7).reshape(7, 16)])
    for name in ("pixels.csv", "pixels.csv.gz"):
        np.savetxt(tmp_path / name, rows, "%d", delimiter=";")
    write_tfrecord(tmp_path / "a.tfrecord", [{"image": each, "label": row % 3} for row, each in enumerate(pngs)])
    write_tfrecord(tmp_path / "numbered" / "part-0-of-1", [{"image": each} for each in pngs])
    write_parquet(tmp_path / "hub.parquet", image=pa.array([{"bytes": each, "path": "x.png"} for each in pngs]))
    write_parquet(tmp_path / "hive" / "label=2" / "part-00000", label=None)
    for row, kind in enumerate(("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")):
        (tmp_path / "kinds" / str(row)).mkdir(parents=True)
        Image.fromarray(images(7)[row]).save(tmp_path / "kinds" / str(row) / f"{row}.{kind.lower()}")
    (tmp_path / "kinds" / "metadata.csv").write_text("file_name,label\n0/0.png,cow\n1/1.jpeg,ant\n")
    root = put(tmp_path, "formats")
    for name in sorted(path.name for path in tmp_path.iterdir()):
        there, here = (opened(f"{place}/{name}") for place in (root, tmp_path))
        assert (there.splits, there.classes, there.labels) == (here.splits, here.classes, here.labels), name
        for split in here.splits:
            got, expected = read(there, split), read(here, split)
            np.testing.assert_array_equal(got.images, expected.images)
            assert (got.labels.tolist(), got.ids.tolist()) == (expected.labels.tolist(), expected.ids.tolist())
            assert len(got.ids) in (6, 7)
            assert got.bad == ()
