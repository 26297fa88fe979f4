"""Tallies of multi-label predictions: precision, recall and F1 of each label, from counts that can be added.

The labels that an image has count as right, and no others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import require
from mnist_ray.sources.labels import is_known
from mnist_ray.storage.records import Count, Rule


def _are_counts(rows: list[list[int]]) -> bool:
    return len(rows) == 3 and len({len(row) for row in rows}) == 1


@dataclass(frozen=True, kw_only=True)
class LabelTallyRecord:
    """`LabelTally.to_json`, as it is read back."""

    num_seen: Count
    loss_sum: float
    """Not finite where the model is broken."""
    counts: Annotated[list[list[Count]], Rule("must be 3 rows of one length", _are_counts)]


@dataclass(frozen=True, eq=False)
class LabelTally:
    """Counts over labelled images."""

    num_seen: int
    loss_sum: float
    counts: NDArray[np.int64]
    """(3, num_classes): images that have a label and are given it, that have it, and that are given it."""

    @classmethod
    def zero(cls, num_classes: int) -> LabelTally:
        return cls(0, 0.0, np.zeros((3, num_classes), np.int64))

    @classmethod
    def of(cls, labels: NDArray[np.int8], is_given: NDArray[np.bool_], losses: NDArray[np.float64]) -> LabelTally:
        """Count n images, without those whose labels are unknown.

        labels: (n, num_classes), 1 for each label of an image, else 0, and all -1 where they are unknown. is_given: (n,
        num_classes), which labels each image is given. losses: (n,).
        """
        known = is_known(labels)
        has, is_given = labels[known] == 1, is_given[known]
        counts = np.stack([each.sum(axis=0) for each in (has & is_given, has, is_given)]).astype(np.int64)
        return cls(len(has), float(losses[known].sum(dtype=np.float64)), counts)

    def __add__(self, other: LabelTally) -> LabelTally:
        require(self.counts.shape == other.counts.shape, "counts of different labels")
        return LabelTally(self.num_seen + other.num_seen, self.loss_sum + other.loss_sum, self.counts + other.counts)

    def has_counts_of(self, other: LabelTally) -> bool:
        """Whether all but the losses is the same."""
        return self.num_seen == other.num_seen and np.array_equal(self.counts, other.counts)

    @property
    def loss(self) -> float:
        """Mean binary cross-entropy; NaN if no label is known."""
        return self.loss_sum / self.num_seen if self.num_seen else float("nan")

    @property
    def f1_micro(self) -> float | None:
        """Of all decisions together; None where there is none to be right about."""
        return _f1(*map(int, self.counts.sum(axis=1)))

    @property
    def f1_macro(self) -> float | None:
        """The mean over the labels that an image has or is given."""
        each = [value for row in self.per_class() if (value := row["f1"]) is not None]
        return sum(each) / len(each) if each else None

    def per_class(self) -> list[dict[str, Any]]:
        """One entry a label: class, precision, recall, f1 (None if undefined) and support (images that have it)."""
        return [
            {
                "class": index,
                "precision": right / given if given else None,
                "recall": right / support if support else None,
                "f1": _f1(right, support, given),
                "support": support,
            }
            for index, (right, support, given) in enumerate(self.counts.T.tolist())
        ]

    def summary(self, *, detailed: bool = False) -> dict[str, Any]:
        """`after` in metrics.json. None in place of NaN."""
        summary: dict[str, Any] = {
            "num_seen": self.num_seen,
            "loss": self.loss if np.isfinite(self.loss) else None,
            "f1_micro": self.f1_micro,
            "f1_macro": self.f1_macro,
        }
        return summary | {"per_class": self.per_class()} if detailed else summary

    @property
    def line(self) -> str:
        """For people, where a label is known."""
        return f1_line(self.f1_micro, self.f1_macro, self.num_seen)

    def to_json(self) -> dict[str, Any]:
        """The counts, as a part's metadata hold them."""
        return {"num_seen": self.num_seen, "loss_sum": self.loss_sum, "counts": self.counts.tolist()}

    @classmethod
    def of_record(cls, record: LabelTallyRecord, num_classes: int) -> LabelTally:
        """The inverse of `to_json`. Raises ValueError where it is of another number of classes."""
        if len(record.counts[0]) != num_classes:
            raise ValueError(f"counts {len(record.counts[0])} labels, not {num_classes}")
        return cls(record.num_seen, record.loss_sum, np.array(record.counts, np.int64))


class LabelTallySum:
    """A sum of many tallies."""

    def __init__(self, num_classes: int) -> None:
        self._total = LabelTally.zero(num_classes)

    def add(self, tally: LabelTally) -> None:
        self._total += tally

    def total(self) -> LabelTally:
        return self._total


def _f1(right: int, support: int, given: int) -> float | None:
    return 2 * right / (support + given) if support + given else None


def f1_line(micro: float | None, macro: float | None, num_seen: int) -> str:
    """For people: F1 scores over so many labelled images."""
    figures = ("unknown" if value is None else f"{value:.4f}" for value in (micro, macro))
    return "F1 {} micro, {} macro".format(*figures) + f" ({num_seen:,} labelled images)"
