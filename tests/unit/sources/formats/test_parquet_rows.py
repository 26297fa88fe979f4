"""Reading on in a row group that an earlier read has begun."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnist_ray.errors import InputError
from mnist_ray.sources import meter
from mnist_ray.sources.formats import parquet_rows
from mnist_ray.sources.formats.parquet_files import ParquetFile
from mnist_ray.sources.formats.parquet_rows import read_rows
from mnist_ray.storage.location import Location


@pytest.fixture(autouse=True)
def nothing_is_open() -> Iterator[None]:
    parquet_rows._paused.clear()
    yield
    parquet_rows._paused.clear()


def written(path: Path, *groups: int) -> ParquetFile:
    """A file with row groups of so many rows, numbered in the column `row`."""
    rows = itertools.count()
    with pq.ParquetWriter(path, pa.schema({"row": pa.int64(), "text": pa.string()})) as writer:
        for group in groups:
            numbers = list(itertools.islice(rows, group))
            writer.write_table(
                pa.table({"row": numbers, "text": list(map(str, numbers))}), row_group_size=max(group, 1)
            )
    return ParquetFile(Location.parse(path), sum(groups))


def read(file: ParquetFile, start: int, stop: int, at_once: int = 10) -> list[tuple[int, list[int]]]:
    return [(row, records["row"].to_pylist()) for row, records in read_rows(file, ["row"], start, stop, at_once)]


@pytest.mark.parametrize("seed", range(12))
def test_batches_are_the_same_wherever_reading_began(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(parquet_rows, "_MOST_AHEAD", rng.choice([1, 500, 1 << 20]))
    file = written(tmp_path / "a.parquet", *(rng.choice([1, 7, 25, 60, 200]) for _ in range(rng.randint(1, 8))))
    cuts = sorted({0, file.rows, *(rng.randint(0, file.rows) for _ in range(rng.randint(0, 12)))})
    units = list(itertools.pairwise(cuts))
    fresh = {}
    for unit in units:
        parquet_rows._paused.clear()
        fresh[unit] = read(file, *unit)
    assert [row for unit in units for _, rows in fresh[unit] for row in rows] == list(range(file.rows))
    assert all(rows and row == rows[0] and len(rows) <= 10 for unit in units for row, rows in fresh[unit])
    for order in (units, units[::-1], rng.sample(units, len(units))):
        parquet_rows._paused.clear()
        assert {unit: read(file, *unit) for unit in order} == fresh


def test_a_row_group_is_unpacked_once_for_all_units_in_order(tmp_path: Path) -> None:
    file = written(tmp_path / "a.parquet", 100, 30)
    before = meter.bytes_read()
    read(file, 0, 130)
    whole = meter.bytes_read() - before
    for start in range(0, 130, 13):
        read(file, start, start + 13)
    assert meter.bytes_read() - before == 2 * whole
    assert parquet_rows._paused == {}
    read(file, 50, 60)
    assert meter.bytes_read() - before < 3 * whole


def test_two_units_at_once_each_go_on_in_their_own_group(tmp_path: Path) -> None:
    files = [written(tmp_path / f"{name}.parquet", 1000) for name in "ab"]
    before = meter.bytes_read()
    for file in files:
        read(file, 0, 1000)
    whole, found = meter.bytes_read() - before, {file.location.name: [] for file in files}  # type: ignore[var-annotated]

    def work(file: ParquetFile) -> None:
        for start in range(0, 1000, 100):
            found[file.location.name] += read(file, start, start + 100)

    threads = [threading.Thread(target=work, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all([row for _, rows in each for row in rows] == list(range(1000)) for each in found.values())
    assert meter.bytes_read() - before == 2 * whole


def test_no_more_stay_open_than_units_are_worked_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Any] = []
    close = parquet_rows._OpenRows.close
    monkeypatch.setattr(parquet_rows._OpenRows, "close", lambda reading: (closed.append(reading), close(reading)))
    file = written(tmp_path / "a.parquet", 100)
    for start in (0, 10, 30, 50, 70, 70):
        read(file, start, start + 5)
    assert len(parquet_rows._paused) == 2
    assert len(closed) == 4
    assert read(file, 75, 100)[-1][1][-1] == 99
    assert len(parquet_rows._paused) == 1
    assert len(closed) == 5


def test_what_is_given_up_does_not_stay_open(tmp_path: Path) -> None:
    file = written(tmp_path / "a.parquet", 100)
    with closing(read_rows(file, ["row"], 0, 50, 10)) as batches:
        next(batches)
    assert parquet_rows._paused == {}


def test_a_file_that_lost_rows_since_it_was_opened(tmp_path: Path) -> None:
    file = written(tmp_path / "a.parquet", 100)
    written(tmp_path / "a.parquet", 99)
    with pytest.raises(InputError, match=r"a\.parquet has 99 rows, not 100: it has changed"):
        read(file, 0, 50)


def test_columns_that_the_file_lacks_are_left_out(tmp_path: Path) -> None:
    file = written(tmp_path / "a.parquet", 5)
    ((_, records),) = read_rows(file, ["row", "label"], 0, 5, 10)
    assert records.schema.names == ["row"]
