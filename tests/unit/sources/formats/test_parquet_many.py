"""Many Parquet files: they are looked into at once, with a word on the progress, and found without walking all."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_ray.errors import InputError
from mnist_ray.sources.base import Reading
from mnist_ray.sources.formats import parquet, parquet_files, parquet_survey
from mnist_ray.sources.open import open_source
from mnist_ray.storage.location import Location
from tests.support.data_makers import write_parquet

SIZES = (3, 1, 0, 0, 5, 2, 0, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, rows in enumerate(SIZES):
        ids = [100 * number + row for row in range(rows)]
        write_parquet(tmp_path / "data" / f"{number}.parquet", rows, id=np.array(ids, np.int64))
    return tmp_path / "data"


def test_any_rows_are_those_of_their_files(folder: Path) -> None:
    source = open_source(str(folder))
    whole = [100 * number + row for number, rows in enumerate(SIZES) for row in range(rows)]
    for start in range(len(whole) + 1):
        for stop in range(start, len(whole) + 1):
            assert source.read("all", start, stop).ids.tolist() == whole[start:stop]
    assert source.units("all") == [(0, 3), (3, 4), (4, 9), (9, 11), (11, 15)]


def test_a_unit_is_found_without_walking_all_files(folder: Path) -> None:
    source = open_source(str(folder))
    assert isinstance(source, parquet.ParquetSource)
    units = source.units("all")

    class Files(tuple[Any, ...]):
        taken = 0

        def __iter__(self) -> Any:
            raise AssertionError("walks all files")

        def __getitem__(self, number: Any) -> Any:
            Files.taken += 1
            return tuple.__getitem__(self, number)

    source.files["all"] = Files(source.files["all"])  # type: ignore[index]
    assert source.read("all", *units[-1]).ids.tolist() == [700, 701, 702, 703]
    assert Files.taken == 1


def test_files_are_looked_into_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together, read_footer = threading.Barrier(len(SIZES)), parquet_files.read_footer

    def reading(file: Any, location: Location) -> Any:
        together.wait(timeout=30)
        return read_footer(file, location)

    monkeypatch.setattr(parquet_survey, "read_footer", reading)
    monkeypatch.setattr(parquet, "_NOTIFY_SECONDS", 0.0)
    told: list[str] = []
    assert open_source(str(folder), Reading(notify=told.append)).splits == {"all": 15}
    assert told[2] == f"looking into {folder}: 3 of 8 files …"
    assert len(told) == 8


@pytest.mark.parametrize("odd", [2, 4, 7])
def test_of_files_that_differ_the_first_is_named(folder: Path, odd: int) -> None:
    for number in (odd, 7):
        write_parquet(folder / f"{number}.parquet", 3, id=["a", "b", "c"])
    with pytest.raises(InputError, match=rf"/{odd}\.parquet has image .*, but .*/0\.parquet image"):
        open_source(str(folder))
