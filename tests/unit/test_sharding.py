"""Every row exactly once, whatever the sizes; by arithmetic, by real Ray tasks, and by content."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_ray import sharding
from mnist_ray.errors import InputError, LeaseLostError
from mnist_ray.sharding import bounds, write_shards
from mnist_ray.sources.base import Batch, Reading
from mnist_ray.sources.formats import shards
from mnist_ray.sources.formats.shards import Manifest, ShardedSource, read_shard
from mnist_ray.sources.open import open_source
from mnist_ray.sources.pixels import Conversion
from mnist_ray.sources.preparation import Preparation
from mnist_ray.storage.attempt import Attempt, end_older
from mnist_ray.storage.location import Location
from tests.support import data_makers as make

SHARDS = 5  # W in W-1, W, W+1, 5W+1


@given(st.integers(0, 10_000), st.integers(1, 300))
def test_bounds_cover_every_row_once(rows: int, num_shards: int) -> None:
    ranges = bounds(rows, num_shards)
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(rows))
    sizes = [stop - start for start, stop in ranges]
    assert len(sizes) == num_shards
    assert sizes == sorted(sizes, reverse=True)  # the longer first
    assert sizes[0] - sizes[-1] <= 1


def test_bounds_by_hand() -> None:
    assert bounds(7, 3) == [(0, 3), (3, 5), (5, 7)]
    assert bounds(2, 4) == [(0, 1), (1, 2), (2, 2), (2, 2)]
    assert bounds(0, 1) == [(0, 0)]


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 8))
def test_tasks_get_every_shard_once_in_order_and_evenly(sizes: list[int], num_tasks: int) -> None:
    ends = np.cumsum([0, *sizes]).tolist()
    parts = [sharding._Range(str(i), "train", ends[i], ends[i + 1]) for i in range(len(sizes))]
    runs = sharding._divide(parts, num_tasks)
    assert [part for run in runs for part in run] == parts
    assert len(runs) <= num_tasks
    assert all(runs)
    fair = sum(sizes) / num_tasks
    assert all(sum(part.stop - part.start for part in run) <= fair + max(sizes) for run in runs)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """One task after the other, in this process."""
    monkeypatch.setattr(
        sharding,
        "_run_tasks",
        lambda source, attempt, ranges, *_: sharding._write(source, attempt, ranges, False, "run"),
    )


def test_tasks_stop_writing_once_another_driver_has_begun(without_ray: None, tmp_path: Path) -> None:
    source = open_source(str(make.write_npz(tmp_path / "f.npz", 20, 1)))
    folder = Location.parse(tmp_path / "shards")

    def next_driver_begins(done: int, _: int) -> None:
        if done == 2:
            end_older(folder)

    with pytest.raises(LeaseLostError, match=f"another mnist-ray has begun to write {folder}"):
        write_shards(source, folder, SHARDS, num_tasks=1, on_progress=next_driver_begins)
    assert sorted(file.name for file in (folder / "train").list()) == ["part-00000.parquet", "part-00001.parquet"]
    assert not (folder / "dataset.json").exists()
    assert write_shards(source, folder, SHARDS, num_tasks=1).counts == {"train": 20, "test": 1}
    assert [file.name for file in folder.list()] == ["dataset.json", "test", "train"]


def test_finished_shards_are_out_of_reach_for_an_older_driver(without_ray: None, tmp_path: Path) -> None:
    source = open_source(str(make.write_npz(tmp_path / "f.npz")))
    folder = Location.parse(tmp_path / "shards")
    write_shards(source, folder, 2, num_tasks=1)
    with Attempt.begun(folder) as older:
        write_shards(source, folder, 2, num_tasks=1)
        with pytest.raises(LeaseLostError):
            older.check()


def gathered(folder: Location, manifest: Manifest, split: str) -> tuple[Any, Any, Any]:
    parts = [read_shard(folder, shard, manifest.image_shape) for shard in manifest.shards[split]]
    ids, images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return ids, images, labels


@pytest.mark.ray
@pytest.mark.parametrize("rows", [SHARDS - 1, SHARDS, SHARDS + 1, 5 * SHARDS + 1])
@pytest.mark.parametrize("num_shards", [1, SHARDS, 2 * SHARDS])
def test_every_row_exactly_once(rows: int, num_shards: int, ray_local: None, tmp_path: Path) -> None:
    source = open_source(str(make.write_npz(tmp_path / "f.npz", rows, 1)))
    folder = Location.parse(tmp_path / "shards")
    done: list[tuple[int, int]] = []
    manifest = write_shards(
        source, folder, num_shards, num_tasks=2, on_progress=lambda shards, total: done.append((shards, total))
    )
    assert done == [(shard + 1, 2 * num_shards) for shard in range(2 * num_shards)]
    assert manifest.counts == {"train": rows, "test": 1}
    assert [shard.rows for shard in manifest.shards["train"]] == [
        stop - start for start, stop in bounds(rows, num_shards)
    ]
    for split, count in manifest.counts.items():
        ids, images, labels = gathered(folder, manifest, split)
        np.testing.assert_array_equal(ids, np.arange(count))
        np.testing.assert_array_equal(images, make.images(count))
        np.testing.assert_array_equal(labels, make.labels(count))
    assert Manifest.load(folder) == manifest

    sharded = open_source(str(tmp_path / "shards"))
    assert isinstance(sharded, ShardedSource)
    assert (sharded.digest(), sharded.classes, dict(sharded.splits)) == (
        source.digest(),
        source.classes,
        manifest.counts,
    )
    units = sharded.units("train")
    assert [row for start, stop in units for row in range(start, stop)] == list(range(rows))
    assert all(stop > start for start, stop in units)
    np.testing.assert_array_equal(sharded.read("train", 1, rows).images, make.images(rows)[1:])


@pytest.mark.ray
def test_real_mnist_by_content(ray_local: None, tmp_path: Path) -> None:
    folder = Location.parse(tmp_path / "shards")
    manifest = write_shards(open_source("embedded"), folder, 48, num_tasks=2, require_labels=True)
    for split, name in (("train", "train"), ("test", "t10k")):
        ids, images, labels = gathered(folder, manifest, split)
        data = resources.files("mnist_ray") / "data"
        whole = gzip.decompress((data / f"{name}-images-idx3-ubyte.gz").read_bytes())
        assert hashlib.sha256(images.tobytes()).digest() == hashlib.sha256(whole[16:]).digest()
        whole = gzip.decompress((data / f"{name}-labels-idx1-ubyte.gz").read_bytes())
        assert labels.astype(np.uint8).tobytes() == whole[8:]
        np.testing.assert_array_equal(ids, np.arange(len(labels)))


@pytest.mark.ray
def test_ids_of_files_and_rgb_survive(ray_local: None, tmp_path: Path) -> None:
    as_stored = Reading(convert=Conversion(applies_exif=False, background=(255, 255, 255)))
    source = open_source(str(make.write_folders(tmp_path / "in", 7, 2, shape=(3, 5, 3))), as_stored)
    folder = Location.parse(tmp_path / "out")
    manifest = write_shards(source, folder, 10, num_tasks=3)
    ids, images, labels = gathered(folder, manifest, "train")
    whole = source.read("train", 0, 7)
    assert ids.tolist() == whole.ids.tolist()
    np.testing.assert_array_equal(images, whole.images)
    np.testing.assert_array_equal(labels, whole.labels)
    assert open_source(str(tmp_path / "out")).read("train", 3, 6).ids.tolist() == whole.ids[3:6].tolist()
    assert manifest.preparation == Preparation(exif="ignore", background="#ffffff")
    assert Manifest.load(folder) == manifest
    again = open_source(str(tmp_path / "out"), Reading(convert=Conversion((4, 4))))
    assert again.preparation == Preparation(resize="4x4", exif="ignore", background="#ffffff")


@pytest.mark.ray
def test_same_content_is_kept_other_is_replaced(ray_local: None, tmp_path: Path) -> None:
    folder = Location.parse(tmp_path / "shards")
    first = open_source(str(make.write_npz(tmp_path / "a.npz")))
    manifest = write_shards(first, folder, 4, num_tasks=2)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "shards").rglob("*")}
    (tmp_path / "shards" / "train" / "mine.txt").write_text("not ours")
    assert write_shards(first, folder, 4, num_tasks=1) == manifest
    assert {file: file.stat().st_mtime_ns for file in before if file.is_file()} == {
        file: when for file, when in before.items() if file.is_file()
    }
    # The bytes depend on the rows alone: not on who wrote them, nor when.
    assert write_shards(first, Location.parse(tmp_path / "again"), 4, num_tasks=1).shards == manifest.shards

    (tmp_path / "shards" / "train" / ".part-00000.parquet.0a.tmp").write_text("left by a killed task")
    other = write_shards(open_source(str(make.write_npz(tmp_path / "b.npz", 8))), folder, 2, num_tasks=2)
    assert other.counts == {"train": 8, "test": 5}
    assert sorted(file.name for file in (tmp_path / "shards" / "train").iterdir()) == [
        "mine.txt", "part-00000.parquet", "part-00001.parquet",
    ]  # fmt: skip
    (tmp_path / "shards" / "test" / "part-00001.parquet").unlink()
    assert write_shards(open_source(str(tmp_path / "b.npz")), folder, 2, num_tasks=2) == other
    assert (tmp_path / "shards" / "test" / "part-00001.parquet").exists()


def nan_npz(folder: Path) -> tuple[Path, str]:
    pixels = make.images(7).astype(np.float32)
    pixels[5, 0, 0] = np.nan
    return make.write_npz(folder / "f.npz", x_train=pixels), r"f\.npz: train row 5 has a pixel nan"


def nan_parquet(folder: Path) -> tuple[Path, str]:
    for split in ("train", "test"):
        rows = [[float("nan") if (split, row) == ("test", 2) else 1.0] * 16 for row in range(7)]
        make.write_parquet(folder / "parquet" / split / "a.parquet", image=pa.array(rows))
    return folder / "parquet", r"a\.parquet: test row 2 has a pixel nan"


def no_image(folder: Path) -> tuple[Path, str]:
    made = make.write_folders(folder / "folders")
    (made / "train" / "class-1" / "notes.png").write_text("not an image")
    return made, r"notes\.png"


@pytest.mark.ray
@pytest.mark.parametrize("maker", [nan_npz, nan_parquet, no_image])
def test_an_error_in_a_task_is_one_line(
    maker: Callable[[Path], tuple[Path, str]], ray_local: None, tmp_path: Path
) -> None:
    data, said = maker(tmp_path)
    folder = Location.parse(tmp_path / "out")
    with pytest.raises(InputError, match=said) as raised:
        write_shards(open_source(str(data)), folder, 3, num_tasks=2)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"has no dataset\.json"):
        Manifest.load(folder)


@pytest.mark.ray
def test_unknown_labels_stay_unknown_or_are_refused(ray_local: None, tmp_path: Path) -> None:
    for split in ("train", "test"):
        make.write_parquet(tmp_path / "in" / split / "a.parquet", label=[0, 1, None, 1, 0, 1, 1])
    source = open_source(str(tmp_path / "in"))
    folder = Location.parse(tmp_path / "out")
    with pytest.raises(InputError, match="train row 2 has no label; training needs one for every image"):
        write_shards(source, folder, 2, num_tasks=1, require_labels=True)
    manifest = write_shards(source, folder, 2, num_tasks=1)
    assert gathered(folder, manifest, "train")[2].tolist() == [0, 1, -1, 1, 0, 1, 1]
    assert open_source(str(tmp_path / "out")).read("train", 0, 7).labels.tolist() == [0, 1, -1, 1, 0, 1, 1]


def test_row_groups_are_bounded_and_fit_units_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_ROW_GROUP_BYTES", 60)  # three images and a half
    batch = Batch(np.arange(7), make.images(7), make.labels(7))
    metadata = pq.ParquetFile(pa.BufferReader(shards.encode_shard(batch, (4, 4)))).metadata
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [2, 2, 2, 1]
