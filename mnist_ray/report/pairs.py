"""Two results image by image: which of them are right, and which images changed sides.

Both are read a part at a time, in the order of the input, and matched by row: they may differ in what is quarantined.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mnist_ray.report.reading import open_parquet
from mnist_ray.report.result import Result
from mnist_ray.report.sample import Part, Shown, parts_of, row_numbers

_COLUMNS = ["id", "label", "prediction"]
_ROWS_AT_ONCE = 1 << 17


@dataclass(frozen=True)
class Changed:
    """An image of which two results have different predictions."""

    image: Shown
    """With the first prediction."""
    prediction: int
    """The second."""


@dataclass
class Pairs:
    """How often two results are right."""

    images: int = 0
    """That both have scored."""
    labelled: int = 0
    both: int = 0
    only_first: int = 0
    only_second: int = 0
    neither: int = 0
    disagree: int = 0
    """Images with different predictions."""
    won: list[Changed] = field(default_factory=list)
    """Some that only the second gets right."""
    lost: list[Changed] = field(default_factory=list)
    """Some that only the first gets right."""
    others: list[Changed] = field(default_factory=list)
    """Some without a label that the two disagree on."""


class OtherImagesError(Exception):
    """Two results are not of the same images. The text says why, as a sentence."""


@dataclass(frozen=True)
class _Rows:
    """Rows in the order of the input."""

    numbers: NDArray[np.int64]
    ids: pa.Array
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64] | slice) -> _Rows:
        """Some of the rows."""
        ids = self.ids[rows] if isinstance(rows, slice) else self.ids.take(pa.array(rows))
        return _Rows(self.numbers[rows], ids, self.labels[rows], self.predictions[rows])


def compare(one: Result, other: Result, most_shown: int, preferred: Collection[int] = ()) -> Pairs:
    """Compare two results. most_shown: images of each kind; preferred: the rows of those to show where there is a
    choice. Raises OtherImagesError."""
    if any(each.plan is not None and each.plan.kind is not None for each in (one, other)):
        raise OtherImagesError("Not both give each image one class.")
    if one.classes != other.classes:
        raise OtherImagesError("Their classes differ.")
    pairs, wanted = Pairs(), np.array(sorted(preferred), np.int64)
    for first, second in _matched(one, other):
        _count(pairs, first, second, most_shown, wanted)
    if not pairs.images:
        raise OtherImagesError("They have no predictions of the same images.")
    if not pairs.labelled and _input(one) != _input(other):
        raise OtherImagesError("Their inputs differ, and no labels show whether the images are the same.")
    return pairs


def _input(result: Result) -> str | None:
    return result.plan.input_digest if result.plan else None


def _count(pairs: Pairs, first: _Rows, second: _Rows, most_shown: int, wanted: NDArray[np.int64]) -> None:
    """Add matched rows."""
    is_known = first.labels >= 0
    is_first, is_second = first.predictions == first.labels, second.predictions == first.labels
    differs = first.predictions != second.predictions
    pairs.images += len(is_known)
    pairs.labelled += int(is_known.sum())
    pairs.both += int((is_known & is_first & is_second).sum())
    pairs.only_first += int((is_known & is_first & ~is_second).sum())
    pairs.only_second += int((is_known & ~is_first & is_second).sum())
    pairs.neither += int((is_known & ~is_first & ~is_second).sum())
    pairs.disagree += int(differs.sum())
    for kept, which in (
        (pairs.won, is_known & is_second & ~is_first),
        (pairs.lost, is_known & is_first & ~is_second),
        (pairs.others, ~is_known & differs),
    ):
        rows = np.flatnonzero(which)
        is_wanted = np.isin(first.numbers[rows], wanted)
        rows = np.concatenate([rows[is_wanted], rows[~is_wanted]])[:most_shown]
        kept += [_changed(first, second, int(row)) for row in rows]
        kept.sort(key=lambda each: each.image.row not in wanted)
        del kept[most_shown:]


def _changed(first: _Rows, second: _Rows, row: int) -> Changed:
    label = int(first.labels[row])
    image = Shown(
        id=first.ids[row].as_py(), row=int(first.numbers[row]), label=label if label >= 0 else None,
        prediction=int(first.predictions[row]), probability=0.0, label_probability=None, second=None,
    )  # fmt: skip
    return Changed(image, int(second.predictions[row]))


def _matched(one: Result, other: Result) -> Iterator[tuple[_Rows, _Rows]]:
    """The rows that both have. Raises OtherImagesError where their ids or labels differ."""
    streams = _rows(one), _rows(other)
    left, right = (next(stream, None) for stream in streams)
    while left is not None and right is not None:
        stop = min(left.numbers[-1], right.numbers[-1]) + 1
        at_left, at_right = (int(np.searchsorted(each.numbers, stop)) for each in (left, right))
        _, mine, its = np.intersect1d(
            left.numbers[:at_left], right.numbers[:at_right], assume_unique=True, return_indices=True
        )
        first, second = left.take(mine), right.take(its)
        if not first.ids.equals(second.ids):
            raise OtherImagesError("Their images differ: the ids are not the same.")
        if not np.array_equal(first.labels, second.labels):
            raise OtherImagesError("Their images differ: the labels are not the same.")
        yield first, second
        left = left.take(slice(at_left, None)) if at_left < len(left.numbers) else next(streams[0], None)
        right = right.take(slice(at_right, None)) if at_right < len(right.numbers) else next(streams[1], None)


def _rows(result: Result) -> Iterator[_Rows]:
    """All rows of a result, some at a time; never none. Parts that are missing are left out."""
    start = 0
    for part in parts_of(result.predictions, result.plan):
        try:
            with open_parquet(part.file) as parquet:
                for rows in _rows_of(parquet, part, start):
                    if len(rows.numbers):
                        yield rows
                start += parquet.metadata.num_rows
        except FileNotFoundError:
            continue


def _rows_of(parquet: pq.ParquetFile, part: Part, start: int) -> Iterator[_Rows]:
    """The rows of a part. start: the number of the first, where there is no plan."""
    numbers = row_numbers(parquet, part)
    if numbers is None:
        numbers = np.arange(start, start + parquet.metadata.num_rows)
    seen = 0
    for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=_COLUMNS, use_threads=False):
        labels = batch["label"].fill_null(-1).to_numpy(zero_copy_only=False)
        predictions = batch["prediction"].to_numpy(zero_copy_only=False)
        yield _Rows(numbers[seen : seen + len(batch)], batch["id"], labels, predictions)
        seen += len(batch)
