"""A bounded look at the predictions of a model that gives an image any number of labels: how often it gives each."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mnist_ray.predictions.plan import Plan
from mnist_ray.report.reading import open_parquet
from mnist_ray.report.sample import (
    MOST_VALUES,
    NUM_OF_CLASSES,
    Part,
    Sample,
    Shown,
    chosen_parts,
    requests_at_once,
    row_numbers,
)
from mnist_ray.storage.location import Location
from mnist_ray.storage.parallel import in_parallel

_SHOWN_ROWS = 256  # of a part, among which are the images to show
_MOST_OF_A_LABEL = 8


@dataclass
class LabelSample(Sample):
    """What was read, and of it images of each label: `of_class` has them. The rest of a sample stays empty."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """(num_labels,) images that are given each label."""
    by_number: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    """(most + 1,) images by how many labels they are given."""

    @property
    def images(self) -> int:
        return int(self.by_number.sum())

    def add(self, piece: LabelSample, most: int) -> None:
        """most: images of a label."""
        self.is_whole &= piece.is_whole
        self.counts = self.counts + piece.counts
        longer = np.zeros(max(len(self.by_number), len(piece.by_number)), np.int64)
        for numbers in (self.by_number, piece.by_number):
            longer[: len(numbers)] += numbers
        self.by_number = longer
        for label, images in piece.of_class.items():
            known = self.of_class.setdefault(label, [])
            known += images[: most - len(known)]


def label_sample_of(predictions: Location, plan: Plan) -> LabelSample:
    """A sample of the predictions in a folder, as `sample_of` is one."""
    most = max(1, min(_MOST_OF_A_LABEL, NUM_OF_CLASSES // plan.num_classes))
    found, chosen = chosen_parts(predictions, plan)
    whole = LabelSample(counts=np.zeros(plan.num_classes, np.int64), is_whole=len(chosen) == len(found))
    rows = max(1, MOST_VALUES // (3 * len(chosen)))  # an image has about as many labels
    at_once = requests_at_once(predictions)
    with closing(
        in_parallel(lambda part: _look(part, plan.num_classes, rows, most), chosen, at_once=at_once)
    ) as looked:
        for piece in looked:
            if piece is not None:
                whole.add(piece, most)
    frequent = np.argsort(-whole.counts, kind="stable")[: max(1, NUM_OF_CLASSES // most)].tolist()
    whole.of_class = {label: whole.of_class[label] for label in sorted(frequent) if label in whole.of_class}
    return whole


def scores_of(predictions: Location, plan: Plan) -> NDArray[np.float32]:
    """(n, num_labels) the scores of the first images of the same parts: fewer, as there is one for each label."""
    _, chosen = chosen_parts(predictions, plan)
    rows = max(1, MOST_VALUES // (plan.num_classes * len(chosen)))

    def read(part: Part) -> NDArray[np.float32]:
        with suppress(FileNotFoundError), open_parquet(part.file) as parquet:
            batches = parquet.iter_batches(rows, columns=["scores"], use_threads=False)
            if batch := next(batches, None):
                scores: NDArray[np.float32] = np.asarray(batch["scores"].flatten())
                return np.nan_to_num(scores).reshape(-1, plan.num_classes)
        return np.empty((0, plan.num_classes), np.float32)

    with closing(in_parallel(read, chosen, at_once=requests_at_once(predictions))) as pieces:
        return np.concatenate(list(pieces))


def _look(part: Part, num_labels: int, most_rows: int, most: int) -> LabelSample | None:
    """The first rows of a part; None if the file is missing."""
    try:
        with open_parquet(part.file) as parquet:
            piece = _count(parquet, num_labels, most_rows)
            piece.of_class = _images(parquet, part, most)
            return piece
    except FileNotFoundError:
        return None


def _count(parquet: pq.ParquetFile, num_labels: int, most_rows: int) -> LabelSample:
    counts, by_number, seen = np.zeros(num_labels, np.int64), np.zeros(num_labels + 1, np.int64), 0
    for batch in parquet.iter_batches(columns=["labels"], use_threads=False):
        column = batch["labels"].slice(0, most_rows - seen)
        counts += np.bincount(column.flatten().to_numpy(), minlength=num_labels)[:num_labels]
        by_number += np.bincount(pc.list_value_length(column).to_numpy(), minlength=num_labels + 1)[: num_labels + 1]
        seen += len(column)
        if seen >= most_rows:
            break
    used = int(by_number.nonzero()[0].max(initial=0)) + 1
    return LabelSample(counts=counts, by_number=by_number[:used], is_whole=seen >= parquet.metadata.num_rows)


def _images(parquet: pq.ParquetFile, part: Part, most: int) -> dict[int, list[Shown]]:
    """The first images of each label."""
    numbers, found = row_numbers(parquet, part), dict[int, list[Shown]]()
    columns = ["id", "labels", "scores"]
    batch = next(parquet.iter_batches(_SHOWN_ROWS, columns=columns, use_threads=False), None)
    for index, row in enumerate(batch.to_pylist() if batch else ()):
        for label in row["labels"]:
            images = found.setdefault(label, [])
            if len(images) < most:
                images.append(_shown(row, label, None if numbers is None else int(numbers[index])))
    return found


def _shown(row: dict[str, Any], label: int, number: int | None) -> Shown:
    return Shown(
        id=row["id"], row=number, label=None, prediction=label, probability=row["scores"][label],
        label_probability=None, second=None,
    )  # fmt: skip
