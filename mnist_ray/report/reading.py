"""What the report reads of a run or an output: JSON files, images, quarantined rows.

Parquet files are read one row group at a time, and only the columns that are needed, so any output fits in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mnist_ray.errors import InputError
from mnist_ray.sources.pixels import ImageShape
from mnist_ray.storage.location import Location
from mnist_ray.storage.records import Count, Line, PathInside, read_checked

NUM_SAMPLES = 9
"""Training images that are shown."""
NUM_QUARANTINED = 10


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """What the report needs of dataset.json."""

    @dataclass(frozen=True)
    class File:
        path: PathInside
        rows: Count

    image_shape: ImageShape
    classes: list[Line]
    shards: dict[Line, list[File]]


def read(file: Location, kind: type) -> dict[str, Any] | None:
    """The content of a JSON file, which is checked as `kind`; None if there is no file."""
    try:
        return read_checked(file, kind, "restore it, or remove it to have the report without it")
    except FileNotFoundError:
        return None


def shards_folder(run: Location, config: dict[str, Any]) -> Location:
    """The run's own shards, or those that `mnist-ray train SHARDS` was given."""
    own = run / "shards"
    return Location.parse(config["shards"]) if config.get("shards") and not own.is_dir() else own


@contextmanager
def open_parquet(file: Location, *, buffer_size: int = 0) -> Iterator[pq.ParquetFile]:
    """buffer_size: bytes to read at a time; 0 reads a column of a row group at once, and should where all is needed."""
    try:
        with file.open_file() as stream, pq.ParquetFile(stream, buffer_size=buffer_size) as parquet:
            yield parquet
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise InputError(
            f"cannot read {file}: {str(error).splitlines()[0]}; `mnist-ray verify` shows what is damaged"
        ) from error


def groups(files: Iterable[Location], columns: list[str]) -> Iterator[tuple[pq.ParquetFile, int, pa.Table]]:
    """Yield (open file, number of the row group, its columns) for each row group. Missing files are skipped.

    Without threads: one of Arrow's that still ends as the process does can abort it (apache/arrow#34314).
    """
    for file in files:
        try:
            with open_parquet(file) as parquet:
                for group in range(parquet.num_row_groups):
                    yield parquet, group, parquet.read_row_group(group, columns=columns, use_threads=False)
        except FileNotFoundError:
            continue


def parts_there(folder: Location) -> list[Location]:
    return [file for file in folder.list() if file.name.startswith("part-") and file.name.endswith(".parquet")]


def _split(shards: Location, dataset: Any, split: str) -> list[Location]:
    return [shards / entry["path"] for entry in (dataset or {}).get("shards", {}).get(split, []) if entry["rows"]]


def _pixels(dataset: Any, column: pa.ChunkedArray) -> list[np.ndarray]:
    """Images of (h, w) or (h, w, channels) uint8."""
    shape = tuple(dataset["image_shape"])
    return [np.frombuffer(value, np.uint8).reshape(shape) for value in column.to_pylist()]


def sample_images(shards: Location, dataset: Any) -> list[tuple[np.ndarray, int]]:
    """The first training images, with their labels; where all are of one class, images at equal distances."""
    total = sum(entry["rows"] for entry in (dataset or {}).get("shards", {}).get("train", []))
    first = _images_at(shards, dataset, range(min(NUM_SAMPLES, total)))
    if len({label for _, label in first}) > 1:
        return first
    return _images_at(shards, dataset, sorted({number * total // NUM_SAMPLES for number in range(NUM_SAMPLES)}))


def _images_at(shards: Location, dataset: Any, rows: Sequence[int]) -> list[tuple[np.ndarray, int]]:
    """Training images, with their labels, by their row numbers (ascending). Opens only the files that have them."""
    found: list[tuple[np.ndarray, int]] = []
    stop = 0
    for entry in (dataset or {}).get("shards", {}).get("train", []):
        start, stop = stop, stop + entry["rows"]
        if not any(start <= row < stop for row in rows):
            continue
        for _, _, table in groups([shards / entry["path"]], ["image", "label"]):
            held = table.take(pa.array([row - start for row in rows if start <= row < start + len(table)], pa.int64()))
            found += zip(_pixels(dataset, held["image"]), held["label"].to_pylist(), strict=True)
            start += len(table)
    return found


def find_images(shards: Location, dataset: Any, split: str, ids: Sequence[int | str]) -> dict[int | str, np.ndarray]:
    """The images with these ids, by id. Reads all ids, and the images of the row groups that have one of them."""
    missing = set(ids)
    found: dict[int | str, np.ndarray] = {}
    if not missing:
        return {}
    for parquet, group, table in groups(_split(shards, dataset, split), ["id"]):
        rows = pc.indices_nonzero(pc.is_in(table["id"], value_set=pa.array(sorted(missing), table["id"].type)))
        if len(rows):
            images = parquet.read_row_group(group, columns=["image"], use_threads=False).take(rows)["image"]
            found |= zip(table["id"].take(rows).to_pylist(), _pixels(dataset, images), strict=True)
            missing -= found.keys()
        if not missing:
            break
    return found


def quarantined_rows(predictions: Location) -> list[dict[str, Any]]:
    """The first quarantined rows: source, row, reason."""
    found: list[dict[str, Any]] = []
    files = [file for file in (predictions / "quarantine").list() if file.name.endswith(".parquet")]
    for _, _, table in groups(files, ["source", "row", "reason"]):
        found += table.slice(0, NUM_QUARANTINED - len(found)).to_pylist()
        if len(found) == NUM_QUARANTINED:
            break
    return found
