"""Tallies: counts that merge in any order, and what is derived from them. Divided once, by who reports them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Tally:
    """What is counted of some labelled images. Add tallies up; never average what is derived from them."""

    num_correct: int
    num_seen: int
    loss_sum: float
    confusion: NDArray[np.int64]
    """(num_classes, num_classes): rows are labels, columns predictions."""

    @classmethod
    def zero(cls, num_classes: int) -> Tally:
        return cls(0, 0, 0.0, np.zeros((num_classes, num_classes), np.int64))

    @classmethod
    def of(
        cls, labels: NDArray[np.int64], predictions: NDArray[np.int64], losses: NDArray[np.float64], num_classes: int
    ) -> Tally:
        """Count n images, but for those of unknown label (-1). All arrays are (n,); predictions are classes, too."""
        known = labels >= 0
        if not known.all():
            labels, predictions, losses = labels[known], predictions[known], losses[known]
        assert labels.max(initial=0) < num_classes, labels.max()
        cells = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
        confusion = cells.astype(np.int64).reshape(num_classes, num_classes)
        return cls(int(confusion.trace()), len(labels), float(losses.sum(dtype=np.float64)), confusion)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.num_correct + other.num_correct,
            self.num_seen + other.num_seen,
            self.loss_sum + other.loss_sum,
            self.confusion + other.confusion,
        )

    @property
    def accuracy(self) -> float:
        """Share of correct predictions; NaN where no label is known."""
        return self.num_correct / self.num_seen if self.num_seen else float("nan")

    @property
    def loss(self) -> float:
        """Mean cross-entropy; NaN where no label is known."""
        return self.loss_sum / self.num_seen if self.num_seen else float("nan")

    def per_class(self) -> list[dict[str, Any]]:
        """One entry a class: class, precision, recall (None where undefined) and support, the images with its label."""
        right, support, predicted = (
            counts.tolist() for counts in (self.confusion.diagonal(), self.confusion.sum(1), self.confusion.sum(0))
        )
        return [
            {
                "class": index,
                "precision": right[index] / predicted[index] if predicted[index] else None,
                "recall": right[index] / support[index] if support[index] else None,
                "support": support[index],
            }
            for index in range(len(right))
        ]

    def summary(self, *, detailed: bool = False) -> dict[str, Any]:
        """What `before` of metrics.json says, or in detail `after`; None in place of NaN."""
        summary: dict[str, Any] = {
            "num_correct": self.num_correct,
            "num_seen": self.num_seen,
            "accuracy": self.accuracy if self.num_seen else None,
            "loss": self.loss if np.isfinite(self.loss) else None,
        }
        if detailed:
            summary |= {"confusion": self.confusion.tolist(), "per_class": self.per_class()}
        return summary

    def to_json(self) -> dict[str, Any]:
        """The counts themselves, as a part's metadata holds them."""
        return {
            "num_correct": self.num_correct,
            "num_seen": self.num_seen,
            "loss_sum": self.loss_sum,
            "confusion": self.confusion.tolist(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Tally:
        """Raises KeyError, TypeError or ValueError where it is no tally."""
        return cls(
            int(value["num_correct"]),
            int(value["num_seen"]),
            float(value["loss_sum"]),
            np.array(value["confusion"], np.int64),
        )
