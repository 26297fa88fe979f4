"""What a part holds of each image beside its id and its label, how that is counted, and how it is checked again.

A model gives an image one of several classes, any number of labels, or a vector: a class here for each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mnist_ray.errors import require
from mnist_ray.predictions.label_tally import LabelTally, LabelTallyRecord, LabelTallySum
from mnist_ray.predictions.plan import Plan
from mnist_ray.predictions.tally import Tally, TallyRecord, TallySum
from mnist_ray.sources.labels import LISTED, as_rows, is_known, rows_of_lists

AnyTally = Tally | LabelTally
Floats = NDArray[np.float32]
Numbers = NDArray[np.int64] | None

FLOATS = frozenset(("probabilities", "top_probabilities", "scores", "embedding"))
"""The columns of floats, which are stored by their bytes."""


class Answers(ABC):
    """Picklable, and small."""

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """The names of the columns."""

    @abstractmethod
    def table(self, values: Floats, predictions: Numbers = None, top_classes: Numbers = None) -> dict[str, pa.Array]:
        """The columns of n images. values: (n, k), what the model gives, or the most probable of it. Of classes:
        predictions (n,), and with top_k the classes (n, k) that the values are of."""

    def tally(self, labels: NDArray[Any], values: Floats) -> AnyTally:
        """The counts of n images, where the values are enough for them. labels: as in a `Batch`."""
        return Tally.zero(1)

    @abstractmethod
    def recount(self, table: pa.Table) -> tuple[list[str], AnyTally]:
        """What differs between the columns of a part, as "predictions that …", and the counts of its rows."""

    @abstractmethod
    def sum(self) -> Any:
        """An empty sum, with `add` and `total`."""

    @abstractmethod
    def read_tally(self, record: TallyRecord | LabelTallyRecord) -> AnyTally:
        """Raises ValueError where a record is not one of these counts."""


@dataclass(frozen=True, kw_only=True)
class ClassAnswers(Answers):
    """One class of several."""

    num_classes: int
    top_k: int | None = None
    names: tuple[str, ...] | None = None

    @property
    def columns(self) -> list[str]:
        probabilities = ["probabilities"] if self.top_k is None else ["top_classes", "top_probabilities"]
        return ["prediction", *(["class"] if self.names else []), *probabilities]

    def table(self, values: Floats, predictions: Numbers = None, top_classes: Numbers = None) -> dict[str, pa.Array]:
        columns = {"prediction": pa.array(predictions, pa.int64())}
        if self.names:
            columns["class"] = pa.array(self.names, pa.string()).take(columns["prediction"])
        require(values.shape[1] == (self.top_k or self.num_classes), "other probabilities than planned")
        if top_classes is None:
            return columns | {"probabilities": lists(values)}
        return columns | {"top_classes": lists(top_classes), "top_probabilities": lists(values)}

    def recount(self, table: pa.Table) -> tuple[list[str], AnyTally]:
        found = []
        labels, predictions = table["label"].fill_null(-1).to_numpy(), table["prediction"].to_numpy()
        if self.top_k is None:
            probabilities = _values(table["probabilities"])
            confidences = probabilities[np.arange(len(labels)), predictions]
            is_most_probable = not (confidences < probabilities.max(axis=1, initial=0)).any()
        else:
            probabilities = _values(table["top_probabilities"])
            confidences = probabilities[:, 0]
            is_first = _values(table["top_classes"])[:, 0] == predictions
            is_most_probable = bool(is_first.all() and (np.diff(probabilities) <= 0).all())
        if not is_most_probable:
            found.append("predictions that are not its most probable classes")
        if self.names and pa.array(self.names).take(pa.array(predictions)) != table["class"].combine_chunks():
            found.append("class names that are not those of its predictions")
        return found, Tally.of(labels, predictions, np.zeros(len(labels)), confidences, self.num_classes)

    def sum(self) -> TallySum:
        return TallySum(self.num_classes)

    def read_tally(self, record: TallyRecord | LabelTallyRecord) -> Tally:
        if isinstance(record, LabelTallyRecord):
            raise ValueError("counts labels, not classes")
        return Tally.of_record(record, self.num_classes)


@dataclass(frozen=True, kw_only=True)
class LabelAnswers(Answers):
    """Any number of labels: those whose score reaches its threshold."""

    thresholds: tuple[float, ...]
    """One for each label."""
    names: tuple[str, ...] | None = None

    @property
    def columns(self) -> list[str]:
        return ["labels", *(["classes"] if self.names else []), "scores"]

    def is_given(self, scores: Floats) -> NDArray[np.bool_]:
        """(n, num_classes): which labels each of n images is given."""
        given: NDArray[np.bool_] = scores >= np.array(self.thresholds, np.float32)
        return given

    def tally(self, labels: NDArray[Any], values: Floats) -> LabelTally:
        """The loss is the binary cross-entropy, as Keras defines it."""
        rows = as_rows(labels, len(self.thresholds))
        chances = np.clip(np.where(rows == 1, values, 1 - values.astype(np.float64)), 1e-7, 1 - 1e-7)
        return LabelTally.of(rows, self.is_given(values), -np.log(chances).mean(axis=1))

    def table(self, values: Floats, predictions: Numbers = None, top_classes: Numbers = None) -> dict[str, pa.Array]:
        return self._labels(values) | {"scores": lists(values)}

    def _labels(self, scores: Floats) -> dict[str, pa.Array]:
        columns = {"labels": numbers_of(self.is_given(scores))}
        if self.names:
            ends, numbers = columns["labels"].offsets, columns["labels"].values
            columns["classes"] = pa.ListArray.from_arrays(ends, pa.array(self.names, pa.string()).take(numbers))
        return columns

    def recount(self, table: pa.Table) -> tuple[list[str], AnyTally]:
        scores = _values(table["scores"])
        expected = self._labels(scores)
        words = {
            "labels": "labels that are not those of its scores",
            "classes": "names that are not those of its labels",
        }
        found = [words[name] for name, column in expected.items() if not _are_same(table[name], column)]
        return found, self.tally(_labels_of(table["label"], len(self.thresholds)), scores)

    def sum(self) -> LabelTallySum:
        return LabelTallySum(len(self.thresholds))

    def read_tally(self, record: TallyRecord | LabelTallyRecord) -> LabelTally:
        if isinstance(record, TallyRecord):
            raise ValueError("counts classes, not labels")
        return LabelTally.of_record(record, len(self.thresholds))


@dataclass(frozen=True, kw_only=True)
class EmbeddingAnswers(Answers):
    """A vector. Nothing is counted."""

    size: int

    @property
    def columns(self) -> list[str]:
        return ["embedding"]

    def table(self, values: Floats, predictions: Numbers = None, top_classes: Numbers = None) -> dict[str, pa.Array]:
        return {"embedding": lists(values)}

    def recount(self, table: pa.Table) -> tuple[list[str], AnyTally]:
        size = table["embedding"].type.list_size
        return [] if size == self.size else [f"vectors of {size} values, not {self.size}"], Tally.zero(1)

    def sum(self) -> TallySum:
        return TallySum(1)

    def read_tally(self, record: TallyRecord | LabelTallyRecord) -> Tally:
        if isinstance(record, LabelTallyRecord):
            raise ValueError("counts labels, not classes")
        return Tally.of_record(record, 1)


def answers_of(plan: Plan) -> Answers:
    """What the parts of a plan hold."""
    if plan.kind == "embeddings":
        return EmbeddingAnswers(size=plan.num_classes)
    if plan.kind == "labels":
        assert plan.thresholds is not None
        return LabelAnswers(thresholds=plan.thresholds, names=plan.class_names)
    return ClassAnswers(num_classes=plan.num_classes, top_k=plan.top_k, names=plan.class_names)


# Columns.


def label_column(labels: NDArray[Any]) -> pa.Array:
    """The labels of a `Batch`: class numbers, or lists of them; null where unknown."""
    if labels.ndim == 1:
        return pa.array(labels, pa.int64(), mask=labels < 0)
    return numbers_of(labels == 1, ~is_known(labels))


def _labels_of(column: pa.ChunkedArray, num_classes: int) -> NDArray[Any]:
    """The inverse of `label_column`. Raises ValueError where a list has another order, or a number twice."""
    if not pa.types.is_list(column.type):
        return np.asarray(column.fill_null(-1).to_numpy())
    lengths = pc.list_value_length(column).fill_null(0).to_numpy()
    rows, reasons = rows_of_lists(lengths, pc.list_flatten(column).to_numpy(), num_classes, LISTED)
    rows[column.is_null().to_numpy()] = -1
    if reasons or not _are_same(column, label_column(rows)):
        raise ValueError("has lists of labels that are not in order, or not of its classes")
    return rows


def numbers_of(is_there: NDArray[np.bool_], is_null: NDArray[np.bool_] | None = None) -> pa.Array:
    """(n, num_classes) as n lists of the numbers of what is there."""
    ends = pa.array(np.cumsum([0, *is_there.sum(axis=1)]), pa.int32())
    mask = None if is_null is None else pa.array(is_null)
    return pa.ListArray.from_arrays(ends, pa.array(np.nonzero(is_there)[1], pa.int64()), mask=mask)


def lists(rows: NDArray[Any]) -> pa.Array:
    """(n, k) as n lists of k values."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def _values(column: pa.ChunkedArray) -> NDArray[Any]:
    """(n, k): n lists of k values."""
    return np.asarray(pc.list_flatten(column).to_numpy()).reshape(-1, column.type.list_size)


def _are_same(column: pa.ChunkedArray, expected: pa.Array) -> bool:
    """Whether two columns of lists have the same lists, whatever their values are called."""
    whole = column.combine_chunks()
    return all(part(whole).equals(part(expected)) for part in (pc.list_value_length, pc.list_flatten))


def top(predictions: NDArray[np.int64], probabilities: Floats, k: int) -> tuple[NDArray[np.int64], Floats]:
    """The k most probable classes (n, k) and their probabilities, the most probable first; ties by class number.

    probabilities: (n, num_classes). The prediction is always the first, also where another class has the same
    probability in float32.
    """
    rows, bits = np.arange(len(predictions)), probabilities.astype(np.float32, copy=False).view(np.int32)
    # The bits of floats that are not negative order like them. With the class behind no two keys are equal, so the
    # first k need not be found by a stable sort of all, which takes ten times as long.
    keys = -bits.astype(np.int64) << 32 | np.arange(bits.shape[1])
    keys[rows, predictions] = np.iinfo(np.int64).min | predictions
    keys.partition(k - 1, axis=1)
    classes = np.sort(keys[:, :k], axis=1) & 0xFFFFFFFF
    return classes, probabilities[rows[:, None], classes].astype(np.float32, copy=False)
