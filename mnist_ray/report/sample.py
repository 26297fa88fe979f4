"""A bounded look at the predictions of a run or an output: the rows of a few parts, spread over all of them.

What it takes does not depend on how many images were scored. Small outputs are read whole.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mnist_ray.predictions.parts import METADATA, PartRecord
from mnist_ray.predictions.plan import PLAN, Plan, part_name
from mnist_ray.report.reading import groups, open_parquet, parts_there
from mnist_ray.storage.location import Location
from mnist_ray.storage.parallel import in_parallel
from mnist_ray.storage.records import parse_record, read_record

MOST_VALUES = 1 << 23
"""Numbers that are read: about 650 thousand images of 10 classes, or 8 thousand of 1,000."""
MOST_PARTS = 256
"""Where all images together are no more than that, as many parts are read …"""
SPREAD_PARTS = 32
"""… else so many, at equal distances."""

NUM_UNSURE = 48
"""More than a report shows: two outputs that are compared differ in such images most often."""
NUM_MISTAKES = 12
NUM_OF_CLASSES = 80
"""Images that show the classes as they were predicted, of all classes together."""
_MOST_OF_A_CLASS = 8

_VALUES_AT_ONCE = 1 << 21
_BYTES_AT_ONCE = 1 << 20
_REQUESTS_AT_ONCE = 8  # of an object store
_COLUMNS = ["id", "label", "prediction", "probabilities", "top_classes", "top_probabilities"]
"""A part has some of the last three. Only these are read."""


@dataclass(frozen=True)
class Shown:
    """An image that may be shown."""

    id: int | str
    row: int | None
    """Its number in the input; None where there is no plan."""
    label: int | None
    prediction: int
    probability: float
    """Of the prediction."""
    label_probability: float | None
    """Of the label; None if the model does not have this class, or the part does not have its probability."""
    second: tuple[int, float] | None
    """The second most probable class, and its probability."""


@dataclass
class Sample:
    """What was read, and of it the images to show."""

    predictions: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """(n,) class numbers."""
    confidences: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    """(n,) the probability of each prediction."""
    unsure: list[Shown] = field(default_factory=list)
    """The least sure first."""
    mistakes: list[Shown] = field(default_factory=list)
    """The most confident first."""
    of_class: dict[int, list[Shown]] = field(default_factory=dict)
    """Images by their predicted class."""
    is_whole: bool = True
    """Whether these are all images that were scored."""

    @property
    def images(self) -> int:
        return len(self.predictions)

    def gather(self, pieces: Sequence[Sample]) -> None:
        """Take the rows of the pieces, in their order."""
        if pieces:
            self.predictions = np.concatenate([piece.predictions for piece in pieces])
            self.confidences = np.concatenate([piece.confidences for piece in pieces])

    def shown(self) -> list[Shown]:
        """All images to show, the most telling first."""
        of_classes = (each for _, images in sorted(self.of_class.items()) for each in images)
        return [*self.unsure[:12], *self.mistakes, *of_classes, *self.unsure[12:]]


@dataclass(frozen=True)
class Part:
    file: Location
    rows: range | None
    """Of the input, with those in quarantine."""


def plan_of(predictions: Location) -> Plan | None:
    """The plan of the predictions in a folder; None where there is none."""
    try:
        return read_record(predictions / PLAN, Plan, "restore it, or score the input again")
    except FileNotFoundError:
        return None


def sample_of(predictions: Location, plan: Plan | None, num_classes: int) -> Sample:
    """A sample of the predictions in a folder; without images if there are none, or none of one class an image."""
    if plan is not None and plan.kind is not None:
        return Sample()
    of_class = max(1, min(_MOST_OF_A_CLASS, NUM_OF_CLASSES // max(num_classes, 1)))
    found, chosen = chosen_parts(predictions, plan)
    values = MOST_VALUES if plan and _is_small(plan) else MOST_VALUES // max(len(chosen), 1)
    whole = Sample(is_whole=len(chosen) == len(found))
    pieces: list[Sample] = []
    at_once = requests_at_once(predictions)
    with closing(in_parallel(lambda part: _look(part, values, of_class), chosen, at_once=at_once)) as looked:
        for piece in looked:
            if piece is not None:
                pieces.append(piece)
                _merge(whole, piece, of_class)
    whole.gather(pieces)
    whole.of_class = _most_frequent(whole, max(1, NUM_OF_CLASSES // of_class))
    return whole


def chosen_parts(predictions: Location, plan: Plan | None) -> tuple[list[Part], list[Part]]:
    """All parts, and those that are read: all of a small output, else some at equal distances."""
    found = parts_of(predictions, plan)
    is_small = len(found) <= MOST_PARTS and (plan is None or _is_small(plan))
    return found, found if is_small else [found[index] for index in _spread(len(found), SPREAD_PARTS)]


def requests_at_once(folder: Location) -> int:
    return 1 if folder.is_local else _REQUESTS_AT_ONCE


def _is_small(plan: Plan) -> bool:
    """Whether all of its rows are read."""
    width = 3 + (2 * plan.top_k if plan.top_k else plan.num_classes)
    return plan.images * width <= MOST_VALUES


def _spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers up to count, at equal distances."""
    return [number * count // min(count, most) for number in range(min(count, most))]


def parts_of(predictions: Location, plan: Plan | None) -> list[Part]:
    """The parts in the order of the input. From the plan, as a listing of many parts takes long."""
    if plan is None:
        return [Part(file, None) for file in parts_there(predictions)]
    return [Part(predictions / part_name(unit), range(*rows)) for unit, rows in enumerate(plan.units)]


def _merge(whole: Sample, piece: Sample, of_class: int) -> None:
    whole.is_whole &= piece.is_whole
    whole.unsure = heapq.nsmallest(NUM_UNSURE, [*whole.unsure, *piece.unsure], key=lambda each: each.probability)
    whole.mistakes = heapq.nlargest(NUM_MISTAKES, [*whole.mistakes, *piece.mistakes], key=lambda each: each.probability)
    for number, images in piece.of_class.items():
        known = whole.of_class.setdefault(number, [])
        known += images[: of_class - len(known)]


def _most_frequent(whole: Sample, most: int) -> dict[int, list[Shown]]:
    """The images of so many classes, those that were predicted most often."""
    counts = np.bincount(whole.predictions)
    chosen = sorted(whole.of_class, key=lambda number: (-counts[number], number))[:most]
    return {number: whole.of_class[number] for number in sorted(chosen)}


def _look(part: Part, most_values: int, of_class: int) -> Sample | None:
    """The first rows of a part; None if the file is missing."""
    try:
        with open_parquet(part.file, buffer_size=_BYTES_AT_ONCE) as parquet:
            return _look_into(parquet, part, most_values, of_class)
    except FileNotFoundError:
        return None


def _look_into(parquet: pq.ParquetFile, part: Part, most_values: int, of_class: int) -> Sample:
    total, width = parquet.metadata.num_rows, _width(parquet)
    rows = max(1, most_values // width)
    at_once = min(rows, max(1, _VALUES_AT_ONCE // width))
    piece, numbers, seen = Sample(is_whole=rows >= total), row_numbers(parquet, part), 0
    pieces = []
    for batch in parquet.iter_batches(at_once, columns=_COLUMNS, use_threads=False):
        batch = batch.slice(0, rows - seen)
        found = _Rows.of(batch, None if numbers is None else numbers[seen : seen + len(batch)]).sample(of_class)
        _merge(piece, found, of_class)
        pieces.append(found)
        seen += len(batch)
        if seen >= rows:
            break
    piece.gather(pieces)
    return piece


def _width(parquet: pq.ParquetFile) -> int:
    """Numbers that are read of a row."""
    lists = [each.type.list_size for each in parquet.schema_arrow if pa.types.is_fixed_size_list(each.type)]
    return 3 + int(sum(lists))


def row_numbers(parquet: pq.ParquetFile, part: Part) -> NDArray[np.int64] | None:
    """(n,) the number of each row of a part in the input: those of its unit without those in quarantine."""
    if part.rows is None:
        return None
    numbers = np.arange(part.rows.start, part.rows.stop)
    if len(numbers) == parquet.metadata.num_rows:
        return numbers
    record = parse_record(parquet.schema_arrow.metadata[METADATA], PartRecord, part.file, "score it again")
    if record.quarantine is not None:
        for _, _, table in groups([part.file.parent / record.quarantine.path], ["row"]):
            numbers = np.setdiff1d(numbers, table["row"].to_numpy())
    return numbers if len(numbers) == parquet.metadata.num_rows else None


@dataclass(frozen=True)
class _Rows:
    """Rows of a part, with what is known of each."""

    batch: pa.RecordBatch
    numbers: NDArray[np.int64] | None
    labels: NDArray[np.int64]
    """(n,), -1 where unknown."""
    predictions: NDArray[np.int64]
    confidences: NDArray[np.float32]

    @classmethod
    def of(cls, batch: pa.RecordBatch, numbers: NDArray[np.int64] | None) -> _Rows:
        labels = batch["label"].fill_null(-1).to_numpy(zero_copy_only=False)
        predictions = batch["prediction"].to_numpy(zero_copy_only=False)
        confidences = np.nan_to_num(_probabilities(batch, predictions)).astype(np.float32)
        return cls(batch, numbers, labels, predictions, confidences)

    def sample(self, of_class: int) -> Sample:
        unsure = _smallest(self.confidences, np.arange(len(self.predictions)), NUM_UNSURE)
        wrong = np.flatnonzero((self.labels >= 0) & (self.labels != self.predictions))
        mistakes = _smallest(-self.confidences[wrong], wrong, NUM_MISTAKES)
        by_class: dict[int, list[Shown]] = {}
        for each in self.shown(_first_of_each(self.predictions, of_class)):
            by_class.setdefault(each.prediction, []).append(each)
        return Sample(
            predictions=self.predictions, confidences=self.confidences, unsure=self.shown(unsure),
            mistakes=self.shown(mistakes), of_class=by_class,
        )  # fmt: skip

    def shown(self, rows: NDArray[np.int64]) -> list[Shown]:
        """These rows (k,) as images to show."""
        batch = self.batch.take(pa.array(rows))
        of_labels, second = _probabilities(batch, self.labels[rows]), _second(batch, self.predictions[rows])
        return [
            Shown(
                id=key,
                row=None if self.numbers is None else int(self.numbers[row]),
                label=int(self.labels[row]) if self.labels[row] >= 0 else None,
                prediction=int(self.predictions[row]),
                probability=float(self.confidences[row]),
                label_probability=None if np.isnan(of_label) else float(of_label),
                second=other,
            )
            for key, row, of_label, other in zip(batch["id"].to_pylist(), rows, of_labels, second, strict=True)
        ]


def _smallest(values: NDArray[Any], rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Of these rows, those of the smallest values, ties in the order of the rows."""
    if len(values) > 8 * most:
        near = np.flatnonzero(values <= np.partition(values, most)[most])
        values, rows = values[near], rows[near]
    return rows[np.argsort(values, kind="stable")[:most]]


def _first_of_each(predictions: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """The first rows of each class, of at most NUM_OF_CLASSES classes, those that occur most often."""
    order = np.argsort(predictions, kind="stable")
    _, starts, counts = np.unique(predictions[order], return_index=True, return_counts=True)
    frequent = np.argsort(-counts, kind="stable")[:NUM_OF_CLASSES]
    stops = starts + np.minimum(counts, most)
    return np.concatenate([np.empty(0, np.int64), *(order[starts[each] : stops[each]] for each in frequent)])


def _lists(batch: pa.RecordBatch, name: str) -> NDArray[Any]:
    """(n, k) the values of a column of lists."""
    return np.asarray(batch[name].flatten()).reshape(len(batch), batch.schema.field(name).type.list_size)


def _probabilities(batch: pa.RecordBatch, classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n,) the probability of one class of each row; NaN where the part does not have it (--top-k, foreign labels)."""
    if "probabilities" in batch.schema.names:
        probabilities = _lists(batch, "probabilities")
        places, is_there = np.clip(classes, 0, probabilities.shape[1] - 1), classes < probabilities.shape[1]
    else:
        is_it, probabilities = _lists(batch, "top_classes") == classes[:, None], _lists(batch, "top_probabilities")
        places, is_there = is_it.argmax(axis=1), is_it.any(axis=1)
    return np.where(is_there & (classes >= 0), probabilities[np.arange(len(batch)), places], np.nan)


def _second(batch: pa.RecordBatch, predictions: NDArray[np.int64]) -> Sequence[tuple[int, float] | None]:
    """The second most probable class of each row, and its probability; None where there is no second."""
    if "probabilities" in batch.schema.names:
        probabilities = np.nan_to_num(_lists(batch, "probabilities")).copy()
        classes = np.broadcast_to(np.arange(probabilities.shape[1]), probabilities.shape)
    else:
        classes, probabilities = _lists(batch, "top_classes"), np.nan_to_num(_lists(batch, "top_probabilities")).copy()
    if probabilities.shape[1] < 2:
        return [None] * len(batch)
    probabilities[classes == predictions[:, None]] = -1
    rows, best = np.arange(len(batch)), probabilities.argmax(axis=1)
    return list(zip(classes[rows, best].tolist(), probabilities[rows, best].tolist(), strict=True))
