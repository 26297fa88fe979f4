"""Confusion matrices: how often each class was predicted for each label. Only the pairs that occur are kept, so that
20,000 classes cost no more than the images that were counted."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import require
from mnist_ray.predictions.plan import MOST_ROWS

MOST_PAIRS = 1 << 22
"""Different pairs that a matrix keeps: 64 MB. Up to 2,048 classes, that is all there can be."""

_BYTES_OF_A_PAIR = 16


@dataclass(frozen=True, eq=False)
class Confusion:
    """Counts of pairs of label and prediction."""

    num_classes: int
    pairs: NDArray[np.int64]
    """(k,) label * num_classes + prediction of each pair that occurs, ascending."""
    counts: NDArray[np.int64]
    """(k,) images of each pair, at least one."""
    left_out: NDArray[np.int64] | None = None
    """(3, num_classes), the margins of all pairs, where more than MOST_PAIRS occur. None of them is kept then, in
    whatever order they came."""

    @classmethod
    def zero(cls, num_classes: int) -> Confusion:
        return cls(num_classes, np.empty(0, np.int64), np.empty(0, np.int64))

    @classmethod
    def of(cls, labels: NDArray[np.int64], predictions: NDArray[np.int64], num_classes: int) -> Confusion:
        """Count n images. labels, predictions: (n,) class numbers."""
        pairs = labels * num_classes + predictions
        if num_classes**2 > 8 * len(pairs):
            return cls(num_classes, *np.unique(pairs, return_counts=True))
        matrix = np.bincount(pairs, minlength=num_classes**2)  # faster than sorting
        return cls.of_matrix(matrix.reshape(num_classes, num_classes))

    @classmethod
    def of_matrix(cls, matrix: NDArray[np.int64]) -> Confusion:
        """matrix: (num_classes, num_classes), a row for each label."""
        occur = np.flatnonzero(matrix)
        return cls(len(matrix), occur, matrix.reshape(-1)[occur])

    @classmethod
    def merged(cls, confusions: Sequence[Confusion]) -> Confusion:
        """The sum of at least one."""
        num_classes = confusions[0].num_classes
        require(all(each.num_classes == num_classes for each in confusions), "matrices of different classes")
        if any(each.left_out is not None for each in confusions):
            none = np.zeros((3, num_classes), np.int64)
            return cls.zero(num_classes)._without(sum((each.margins() for each in confusions), none))
        pairs, counts = (np.concatenate([getattr(each, name) for each in confusions]) for name in ("pairs", "counts"))
        if not len(pairs):
            return cls.zero(num_classes)
        if num_classes**2 <= len(pairs):
            matrix = np.zeros((num_classes, num_classes), np.int64)
            np.add.at(matrix.reshape(-1), pairs, counts)
            return cls.of_matrix(matrix)
        order = np.argsort(pairs, kind="stable")  # of sorted runs, in linear time
        pairs, counts = pairs[order], counts[order]
        first = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]]))
        whole = cls(num_classes, pairs[first], np.add.reduceat(counts, first))
        return whole if len(first) <= MOST_PAIRS else cls.zero(num_classes)._without(whole.margins())

    def _without(self, margins: NDArray[np.int64]) -> Confusion:
        return Confusion(self.num_classes, self.pairs, self.counts, margins)

    def __len__(self) -> int:
        """The number of pairs that are kept."""
        return len(self.pairs)

    def margins(self) -> NDArray[np.int64]:
        """(3, num_classes): correct predictions of each class, its images, and its predictions."""
        if self.left_out is not None:
            return self.left_out
        labels, predictions = np.divmod(self.pairs, self.num_classes)
        margins, is_correct = np.zeros((3, self.num_classes), np.int64), labels == predictions
        np.add.at(margins[0], labels[is_correct], self.counts[is_correct])
        np.add.at(margins[1], labels, self.counts)
        np.add.at(margins[2], predictions, self.counts)
        return margins

    def matrix(self) -> NDArray[np.int64]:
        """(num_classes, num_classes): rows are labels, columns predictions. Only for few classes."""
        require(self.left_out is None, "the pairs of this matrix are left out")
        matrix = np.zeros(self.num_classes**2, np.int64)
        matrix[self.pairs] = self.counts
        return matrix.reshape(self.num_classes, self.num_classes)

    def mistakes(self, most: int) -> list[tuple[int, int, int]] | None:
        """(label, prediction, images) of the most frequent mistakes, the most frequent first, ties by class number.
        None where the pairs are left out."""
        if self.left_out is not None:
            return None
        labels, predictions = np.divmod(self.pairs, self.num_classes)
        wrong = np.flatnonzero(labels != predictions)
        top = wrong[np.argsort(-self.counts[wrong], kind="stable")[:most]]
        columns = (labels[top].tolist(), predictions[top].tolist(), self.counts[top].tolist())
        return list(zip(*columns, strict=True))

    def packed(self) -> str:
        """As text: in base64 and zlib the distances between the pairs, then the counts, as int64 (little-endian), first
        byte 0 of all numbers, then byte 1, and so on. 131,072 pairs of 20,000 classes take 0.4 MB."""
        require(self.left_out is None, "the pairs of this matrix are left out")
        numbers = np.concatenate([np.diff(self.pairs, prepend=0), self.counts]).astype("<i8")
        planes = numbers.view(np.uint8).reshape(-1, 8).T
        return base64.b64encode(zlib.compress(planes.tobytes(), 1)).decode()

    @classmethod
    def unpacked(cls, text: str, num_classes: int) -> Confusion:
        """The inverse of `packed`, for one unit. Raises ValueError where it is anything else."""
        limit, inflate = MOST_ROWS * _BYTES_OF_A_PAIR, zlib.decompressobj()
        try:
            data = inflate.decompress(base64.b64decode(text, validate=True), limit + 1)
        except zlib.error as error:
            raise ValueError("its pairs are damaged") from error
        if len(data) > limit or len(data) % _BYTES_OF_A_PAIR or not inflate.eof:
            raise ValueError("its pairs are damaged")
        planes = np.frombuffer(data, np.uint8).reshape(8, -1)
        distances, counts = np.ascontiguousarray(planes.T).view("<i8").reshape(2, -1).astype(np.int64)
        pairs = np.cumsum(distances)
        is_sound = (distances[1:] > 0).all() and (distances[:1] >= 0).all() and (distances < num_classes**2).all()
        # No sum of such distances can pass 2**63 without one that is too large before it.
        if not is_sound or pairs.max(initial=0) >= num_classes**2 or not ((counts > 0) & (counts <= 1 << 53)).all():
            raise ValueError("its pairs are not counts of pairs of classes")
        return cls(num_classes, pairs, counts)
