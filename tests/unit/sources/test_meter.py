"""The bytes that are read of an input, by format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mnist_ray.sources import meter
from tests.support import data_makers as make
from tests.support.reading import opened, read_all
from tests.support.tfrecord_maker import write_tfrecord

ROWS = 5
PNG = {f"{row}.png": make.png(image) for row, image in enumerate(make.images(ROWS))}
STORED = sum(map(len, PNG.values()))


def folder(root: Path) -> tuple[Path, int]:
    (root / "photos").mkdir()
    for name, data in PNG.items():
        (root / "photos" / name).write_bytes(data)
    return root / "photos", STORED


def parquet(root: Path) -> tuple[Path, int]:
    """A column that is not asked for does not count."""
    file = make.write_parquet(root / "a.parquet", ROWS, row_group_size=2, other=["x" * 10_000] * ROWS)
    metadata = pq.read_metadata(file)
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    return file, sum(group.column(number).total_compressed_size for group in groups for number in range(2))


def tfrecord(root: Path) -> tuple[Path, int]:
    """An encoded image is a part of its record."""
    file = write_tfrecord(root / "a.tfrecord", [{"image": [data]} for data in PNG.values()])
    return file, file.stat().st_size - ROWS * 12  # the lengths, which the index has


MADE: dict[str, Callable[[Path], tuple[Path, int]]] = {
    "folder": folder,
    "tar": lambda root: (make.write_tar(root / "a.tar", PNG), STORED),
    "zip": lambda root: (make.write_zip(root / "a.zip", PNG, 0), STORED),
    "arrays": lambda root: (make.write_npz(root / "a.npz", 7, ROWS), ROWS * 16),
    "parquet": parquet,
    "tfrecord": tfrecord,
}


@pytest.mark.parametrize("kind", MADE)
def test_what_is_read_is_counted_as_it_is_stored(kind: str, tmp_path: Path) -> None:
    file, stored = MADE[kind](tmp_path)
    source = opened(file)
    (split,) = source.splits if len(source.splits) == 1 else ("test",)
    before = meter.bytes_read()
    assert len(read_all(source, split).images) == ROWS
    assert meter.bytes_read() - before == stored
    read_all(source, split)
    assert meter.bytes_read() - before == 2 * stored
