"""Tallies: counts that can be added in any order, and what is derived from them: accuracy, loss, calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import require
from mnist_ray.predictions.confusion import Confusion
from mnist_ray.storage.records import Count, Line, Rule

NUM_BINS = 15
"""Bins of confidence, equally wide, as is usual for calibration (Guo et al., 2017)."""

MOST_MATRIX_CLASSES = 1_000
"""With more classes, metrics.json holds no confusion matrix, but the most frequent mistakes."""
MOST_MISTAKES = 10_000

_CONFIDENCE_UNIT = 1 << 30  # sums of integers do not depend on the order


def _is_square(rows: list[list[int]]) -> bool:
    return all(len(row) == len(rows) for row in rows)


def _are_bins(rows: list[list[int]]) -> bool:
    return [len(row) for row in rows] == [NUM_BINS] * 3


@dataclass(frozen=True, kw_only=True)
class TallyRecord:
    """`Tally.to_json`, as it is read back."""

    num_correct: Count
    num_seen: Count
    loss_sum: float
    """Not finite where the model is broken."""
    pairs: Line | None = None
    """`Confusion.packed`."""
    confusion: Annotated[list[list[Count]], Rule("must be a square matrix", _is_square)] | None = None
    """In place of `pairs`, in what version 0.1 has written."""
    reliability: Annotated[list[list[Count]], Rule(f"must be 3 rows of {NUM_BINS}", _are_bins)]


@dataclass(frozen=True, eq=False)
class Tally:
    """Counts over labelled images. Add tallies; never average what is derived from them."""

    num_correct: int
    num_seen: int
    loss_sum: float
    confusion: Confusion
    reliability: NDArray[np.int64]
    """(3, NUM_BINS) by confidence: images, correct predictions, and the sum of the confidences in units of 2**-30."""

    @classmethod
    def zero(cls, num_classes: int) -> Tally:
        return cls(0, 0, 0.0, Confusion.zero(num_classes), np.zeros((3, NUM_BINS), np.int64))

    @classmethod
    def of(
        cls,
        labels: NDArray[np.int64],
        predictions: NDArray[np.int64],
        losses: NDArray[np.float64],
        confidences: NDArray[np.float32],
        num_classes: int,
    ) -> Tally:
        """Count n images, without those whose label is unknown (-1). All arrays are (n,).

        predictions: class numbers, as the labels are. confidences: the probabilities of the predictions.
        """
        known = labels >= 0
        if not known.all():
            labels, predictions, losses = labels[known], predictions[known], losses[known]
            confidences = confidences[known]
        require(labels.max(initial=0) < num_classes, f"a label is not one of {num_classes} classes")
        is_correct = labels == predictions
        return cls(
            int(np.count_nonzero(is_correct)),
            len(labels),
            float(losses.sum(dtype=np.float64)),
            Confusion.of(labels, predictions, num_classes),
            _reliability(is_correct, confidences),
        )

    def __add__(self, other: Tally) -> Tally:
        return TallySum(self.confusion.num_classes, self, other).total()

    def has_counts_of(self, other: Tally) -> bool:
        """Whether all but the losses is the same."""
        return (self.num_correct, self.num_seen) == (other.num_correct, other.num_seen) and all(
            np.array_equal(mine, its)
            for mine, its in (
                (self.confusion.pairs, other.confusion.pairs),
                (self.confusion.counts, other.confusion.counts),
                (self.reliability, other.reliability),
            )
        )

    @property
    def accuracy(self) -> float:
        """Share of correct predictions; NaN if no label is known."""
        return self.num_correct / self.num_seen if self.num_seen else float("nan")

    @property
    def loss(self) -> float:
        """Mean cross-entropy; NaN if no label is known."""
        return self.loss_sum / self.num_seen if self.num_seen else float("nan")

    def per_class(self) -> list[dict[str, Any]]:
        """One entry per class: class, precision, recall (None if undefined) and support (images with this label)."""
        right, support, predicted = self.confusion.margins().tolist()
        return [
            {
                "class": index,
                "precision": right[index] / predicted[index] if predicted[index] else None,
                "recall": right[index] / support[index] if support[index] else None,
                "support": support[index],
            }
            for index in range(len(right))
        ]

    def calibration(self) -> dict[str, Any]:
        """ece: expected calibration error, None if no label is known. bins: the reliability curve; per bin of
        low <= confidence < high (the last includes 1) the count, accuracy and mean confidence of its images."""
        counts, right, units = (row.tolist() for row in self.reliability)
        sums = [unit / _CONFIDENCE_UNIT for unit in units]
        gap = sum(abs(correct - total) for correct, total in zip(right, sums, strict=True))
        return {
            "ece": gap / self.num_seen if self.num_seen else None,
            "bins": [
                {
                    "low": index / NUM_BINS,
                    "high": (index + 1) / NUM_BINS,
                    "count": counts[index],
                    "accuracy": right[index] / counts[index] if counts[index] else None,
                    "confidence": sums[index] / counts[index] if counts[index] else None,
                }
                for index in range(NUM_BINS)
            ],
        }

    def summary(self, *, detailed: bool = False) -> dict[str, Any]:
        """`before` in metrics.json; detailed: `after`. None in place of NaN."""
        summary: dict[str, Any] = {
            "num_correct": self.num_correct,
            "num_seen": self.num_seen,
            "accuracy": self.accuracy if self.num_seen else None,
            "loss": self.loss if np.isfinite(self.loss) else None,
        }
        if detailed:
            summary |= {**self._confusion(), "per_class": self.per_class(), "calibration": self.calibration()}
        return summary

    @property
    def line(self) -> str:
        """For people, where a label is known."""
        return f"loss {self.loss:.4f}  accuracy {self.accuracy:.4f} ({self.num_correct:,} of {self.num_seen:,})"

    def _confusion(self) -> dict[str, Any]:
        if self.confusion.num_classes <= MOST_MATRIX_CLASSES:
            return {"confusion": self.confusion.matrix().tolist()}
        mistakes = self.confusion.mistakes(MOST_MISTAKES)
        return {"confusion": None, "confusion_cells": mistakes and [list(each) for each in mistakes]}

    def to_json(self) -> dict[str, Any]:
        """The counts, as a part's metadata hold them."""
        return {
            "num_correct": self.num_correct,
            "num_seen": self.num_seen,
            "loss_sum": self.loss_sum,
            "pairs": self.confusion.packed(),
            "reliability": self.reliability.tolist(),
        }

    @classmethod
    def of_record(cls, record: TallyRecord, num_classes: int) -> Tally:
        """The inverse of `to_json`. Raises ValueError where it is damaged, or of another number of classes."""
        if record.pairs is not None:
            confusion = Confusion.unpacked(record.pairs, num_classes)
        elif len(record.confusion or ()) == num_classes:
            confusion = Confusion.of_matrix(np.array(record.confusion, np.int64))
        else:
            raise ValueError(f"counts {len(record.confusion or ())} classes, not {num_classes}")
        reliability = np.array(record.reliability, np.int64)
        return cls(record.num_correct, record.num_seen, record.loss_sum, confusion, reliability)


class TallySum:
    """A sum of many tallies, which are not kept: what it takes depends on the pairs of classes that occur, not on the
    number of tallies."""

    _MOST_WAITING = 1 << 14
    _MOST_WAITING_PAIRS = 1 << 18

    def __init__(self, num_classes: int, *tallies: Tally) -> None:
        zero = Tally.zero(num_classes)
        self._correct, self._seen, self._loss = zero.num_correct, zero.num_seen, zero.loss_sum
        self._confusion, self._reliability = zero.confusion, zero.reliability
        self._waiting: list[Confusion] = []
        self._waiting_pairs = 0
        for each in tallies:
            self.add(each)

    def add(self, tally: Tally) -> None:
        """Losses are added in the order of the calls; counts are whole numbers, whose order does not matter."""
        self._correct += tally.num_correct
        self._seen += tally.num_seen
        self._loss += tally.loss_sum
        self._reliability += tally.reliability
        self._waiting.append(tally.confusion)
        self._waiting_pairs += len(tally.confusion)
        # Merging takes as long as the sum is large, so it waits for a part of that size.
        most_pairs = max(self._MOST_WAITING_PAIRS, len(self._confusion) // 4)
        if len(self._waiting) >= self._MOST_WAITING or self._waiting_pairs >= most_pairs:
            self._merge()

    def _merge(self) -> None:
        self._confusion = Confusion.merged([self._confusion, *self._waiting])
        self._waiting, self._waiting_pairs = [], 0

    def total(self) -> Tally:
        """The sum so far."""
        self._merge()
        return Tally(self._correct, self._seen, self._loss, self._confusion, self._reliability.copy())


def _reliability(is_correct: NDArray[np.bool_], confidences: NDArray[np.float32]) -> NDArray[np.int64]:
    """(3, NUM_BINS): images, correct predictions and sum of confidences of each bin."""
    shares = np.clip(np.nan_to_num(confidences.astype(np.float64)), 0, 1)
    bins = np.minimum((shares * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    columns = (None, is_correct, np.rint(shares * _CONFIDENCE_UNIT))  # sums of whole numbers below 2**53 are exact
    return np.array([np.bincount(bins, column, NUM_BINS) for column in columns]).astype(np.int64)
