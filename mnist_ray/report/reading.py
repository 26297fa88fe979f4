"""What lies in a finished run's or output's folder, as far as the report shows it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mnist_ray.errors import InputError
from mnist_ray.storage.location import Location

NUM_SAMPLES = 9  # training images shown
NUM_MISTAKES = 12
NUM_QUARANTINED = 10
_OF_MISTAKES = [
    "id",
    "label",
    "prediction",
    "probabilities",
    "top_classes",
    "top_probabilities",
]  # those that are there


def class_names(run: Location) -> list[str]:
    """The names of a run's classes, by label: of its dataset, else of its metrics, else none."""
    config = (read_json(run / "config.json") or {}).get("config") or {}
    return names_of_classes(read_json(shards_folder(run, config) / "dataset.json"), read_json(run / "metrics.json"))


def names_of_classes(dataset: Any, metrics: Any) -> list[str]:
    known = (dataset or {}).get("classes") or (metrics or {}).get("dataset", {}).get("classes") or []
    return [str(name) for name in (range(known) if isinstance(known, int) else known)]


@dataclass(frozen=True)
class Mistake:
    """A test image whose label the model did not predict."""

    id: int | str
    label: int
    prediction: int
    probability: float
    label_probability: float | None  # None where the model has no such class, or it is none of the top


# Reading what lies in the run's folder.


def read_json(file: Location) -> Any:
    """What the file holds; None where there is none."""
    try:
        return file.read_json()
    except FileNotFoundError:
        return None


def shards_folder(run: Location, config: dict[str, Any]) -> Location:
    """Where the run's shards lie: in its folder, or, after `mnist-ray train SHARDS`, where that says."""
    own = run / "shards"
    return Location.parse(config["shards"]) if config.get("shards") and not own.is_dir() else own


@contextmanager
def _parquet(file: Location) -> Iterator[pq.ParquetFile]:
    try:
        with file.open_file() as stream, pq.ParquetFile(stream) as parquet:
            yield parquet
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise InputError(f"cannot read {file}: {str(error).splitlines()[0]}; `mnist-ray verify` tells more") from error


def _groups(files: Iterable[Location], columns: list[str]) -> Iterator[tuple[pq.ParquetFile, int, pa.Table]]:
    """One row group at a time: (the open file, the group's number, its columns). Files that are gone are skipped.

    Without threads: one of Arrow's that still ends as the process does can abort it (apache/arrow#34314).
    """
    for file in files:
        try:
            with _parquet(file) as parquet:
                for group in range(parquet.num_row_groups):
                    yield parquet, group, parquet.read_row_group(group, columns=columns, use_threads=False)
        except FileNotFoundError:
            continue


def _parts(folder: Location) -> list[Location]:
    return [file for file in folder.list() if file.name.startswith("part-") and file.name.endswith(".parquet")]


def _split(shards: Location, dataset: Any, split: str) -> list[Location]:
    return [shards / entry["path"] for entry in (dataset or {}).get("shards", {}).get(split, []) if entry["rows"]]


def _pixels(dataset: Any, column: pa.ChunkedArray) -> list[np.ndarray]:
    """(height, width) or (height, width, channels) uint8 each."""
    shape = tuple(dataset["image_shape"])
    return [np.frombuffer(value, np.uint8).reshape(shape) for value in column.to_pylist()]


def first_images(shards: Location, dataset: Any) -> list[tuple[np.ndarray, int]]:
    """The first training images with their labels."""
    found: list[tuple[np.ndarray, int]] = []
    for _, _, table in _groups(_split(shards, dataset, "train"), ["image", "label"]):
        rows = table.slice(0, NUM_SAMPLES - len(found))
        found += zip(_pixels(dataset, rows["image"]), rows["label"].to_pylist(), strict=True)
        if len(found) == NUM_SAMPLES:
            break
    return found


def find_images(shards: Location, dataset: Any, split: str, ids: Sequence[int | str]) -> dict[int | str, np.ndarray]:
    """The images with these ids. Only ids are read, and then the row groups that hold one of them."""
    missing = set(ids)
    found: dict[int | str, np.ndarray] = {}
    if not missing:
        return {}
    for parquet, group, table in _groups(_split(shards, dataset, split), ["id"]):
        rows = pc.indices_nonzero(pc.is_in(table["id"], value_set=pa.array(sorted(missing), table["id"].type)))
        if len(rows):
            images = parquet.read_row_group(group, columns=["image"], use_threads=False).take(rows)["image"]
            found |= zip(table["id"].take(rows).to_pylist(), _pixels(dataset, images), strict=True)
            missing -= found.keys()
        if not missing:
            break
    return found


def confident_mistakes(predictions: Location) -> list[Mistake]:
    """The most confident mistakes, most confident first. Probabilities are read only where a row group has any."""
    best: list[Mistake] = []
    for parquet, group, table in _groups(_parts(predictions), ["label", "prediction"]):
        wrong = pc.indices_nonzero(pc.not_equal(table["label"], table["prediction"]))  # unknown labels are null: no
        if not len(wrong):
            continue
        rows = parquet.read_row_group(group, columns=_OF_MISTAKES, use_threads=False).take(wrong)
        labels, predicted = (rows[name].combine_chunks().to_numpy() for name in ("label", "prediction"))
        probabilities = _probabilities(rows)
        confidence = probabilities[np.arange(len(rows)), predicted]
        top = np.argsort(-confidence, kind="stable")[:NUM_MISTAKES]
        ids = rows["id"].take(pa.array(top)).to_pylist()
        best += [
            Mistake(
                id=key,
                label=int(labels[row]),
                prediction=int(predicted[row]),
                probability=float(confidence[row]),
                label_probability=_known(probabilities[row, labels[row]])
                if 0 <= labels[row] < probabilities.shape[1]
                else None,
            )
            for key, row in zip(ids, top, strict=True)
        ]
        best = heapq.nlargest(NUM_MISTAKES, best, key=lambda mistake: mistake.probability)
    return best


def _probabilities(rows: pa.Table) -> np.ndarray:
    """(n, num_classes); NaN for a class that is none of the most probable ones that were kept."""

    def lists(name: str) -> np.ndarray:
        return np.asarray(rows[name].combine_chunks().flatten()).reshape(len(rows), -1)

    if "probabilities" in rows.column_names:
        return lists("probabilities")
    classes = lists("top_classes")
    found = np.full((len(rows), max(classes.max(), *rows["label"].to_pylist()) + 1), np.nan)
    np.put_along_axis(found, classes, lists("top_probabilities"), axis=1)
    return found


def _known(probability: float) -> float | None:
    return None if math.isnan(probability) else float(probability)


def quarantined_rows(predictions: Location) -> list[dict[str, Any]]:
    """The first of what could not be scored: source, row, reason."""
    found: list[dict[str, Any]] = []
    files = [file for file in (predictions / "quarantine").list() if file.name.endswith(".parquet")]
    for _, _, table in _groups(files, ["source", "row", "reason"]):
        found += table.slice(0, NUM_QUARANTINED - len(found)).to_pylist()
        if len(found) == NUM_QUARANTINED:
            break
    return found
