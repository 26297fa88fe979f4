"""Every format against arrays that were made beside it; every way in which an input can be wrong, and what is said."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest

from mnist_ray.errors import InputError
from mnist_ray.readers import arrays
from mnist_ray.sources import open_source
from tests.support import data_makers as make
from tests.support.data_makers import webdataset, write_tar
from tests.support.reading import assert_said, opened, read_all


def writers() -> dict[str, Callable[[Path], Path]]:
    def parquet(folder: Path) -> Path:
        make.write_parquet(folder / "train" / "a.parquet", 7)
        make.write_parquet(folder / "test" / "a.parquet", 5)
        return folder

    return {
        "idx.gz": make.write_idx,
        "idx": lambda folder: make.write_idx(folder, gz=False),
        "npz": lambda folder: make.write_npz(folder.with_suffix(".npz")),
        "parquet": parquet,
    }


@pytest.mark.parametrize("kind", writers())
def test_formats_hold_the_same_rows_in_the_same_order(kind: str, tmp_path: Path) -> None:
    source = open_source(str(writers()[kind](tmp_path / "data")))
    assert (source.image_shape, source.classes, dict(source.splits)) == (
        (4, 4), ("0", "1", "2"), {"train": 7, "test": 5},
    )  # fmt: skip
    source = pickle.loads(pickle.dumps(source))
    arrays._decoded.clear()  # as in another process
    for split, rows in source.splits.items():
        batch = read_all(source, split)
        np.testing.assert_array_equal(batch.images, make.images(rows))
        np.testing.assert_array_equal(batch.labels, make.labels(rows))
        np.testing.assert_array_equal(batch.ids, np.arange(rows))
        for start in range(rows + 1):
            for stop in range(start, rows + 1):
                part = source.read(split, start, stop)
                np.testing.assert_array_equal(part.images, make.images(rows)[start:stop])
                np.testing.assert_array_equal(part.ids, np.arange(start, stop))
                assert (part.images.dtype, part.labels.dtype, part.bad) == (np.uint8, np.int64, ())


def test_digest_is_of_the_content_not_of_path_or_packing(tmp_path: Path) -> None:
    same = [open_source(str(writers()[kind](tmp_path / kind))).digest() for kind in ("idx", "idx.gz", "npz")]
    assert len(set(same)) == 1
    changed = make.images(7)
    changed[3, 1, 1] ^= 1
    assert open_source(str(make.write_npz(tmp_path / "changed.npz", x_train=changed))).digest() != same[0]
    for write in (make.write_folders, writers()["parquet"]):
        first, second = (open_source(str(write(tmp_path / place / write.__name__))).digest() for place in ("a", "b"))
        assert first == second


def test_specs_that_are_nothing(tmp_path: Path) -> None:
    assert_said("embeded", r"embeded does not exist; --data takes embedded, keras:NAME, ")
    assert_said(str(tmp_path), "holds no images that mnist-ray knows; --data takes")
    (tmp_path / "x.npz").write_bytes(b"")
    assert_said(str(tmp_path / "x.npz"), r"x\.npz is empty")
    (tmp_path / "x.npz").write_bytes(b"<html>404")
    assert_said(str(tmp_path / "x.npz"), "is no file that mnist-ray reads")
    assert_said("embedded", "names a Parquet column", id_column="x")
    assert_said("wat://x", "wat")
    with pytest.raises(InputError, match="has no split 'valid'; it has train and test"):
        open_source("embedded").choose_split("valid")


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
