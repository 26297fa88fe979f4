"""Tallies against the trivial count, at awkward sizes, merged in any order."""

from __future__ import annotations

import json
import math
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_ray.metrics import Tally

CLASSES = 4


def tallied(rows: list[tuple[int, int, int]]) -> Tally:
    labels, predictions, losses = (
        np.array(column, np.int64) for column in (zip(*rows, strict=True) if rows else [[]] * 3)
    )
    return Tally.of(labels, predictions, losses.astype(np.float64), CLASSES)


def trivial(rows: list[tuple[int, int, int]]) -> dict[str, Any]:
    seen = [row for row in rows if row[0] >= 0]
    confusion = [[0] * CLASSES for _ in range(CLASSES)]
    for label, prediction, _ in seen:
        confusion[label][prediction] += 1
    return {
        "num_correct": sum(label == prediction for label, prediction, _ in seen),
        "num_seen": len(seen),
        "loss_sum": float(sum(loss for *_, loss in seen)),
        "confusion": confusion,
    }


ROWS = st.lists(st.tuples(st.integers(-1, CLASSES - 1), st.integers(0, CLASSES - 1), st.integers(0, 9)), max_size=40)


@given(ROWS, st.integers(1, 7), st.randoms())
def test_parts_merged_in_any_order_are_the_whole(rows: list[tuple[int, int, int]], parts: int, random: Any) -> None:
    pieces = [tallied(rows[part::parts]) for part in range(parts)]
    random.shuffle(pieces)
    assert reduce(add, pieces, Tally.zero(CLASSES)).to_json() == trivial(rows)


@given(ROWS)
def test_json_and_back(rows: list[tuple[int, int, int]]) -> None:
    tally = tallied(rows)
    assert Tally.from_json(json.loads(json.dumps(tally.to_json()))).to_json() == tally.to_json()


def test_what_is_derived() -> None:
    tally = tallied([(0, 0, 1), (0, 1, 2), (1, 1, 3), (-1, 2, 50), (0, 0, 0)])
    assert (tally.accuracy, tally.loss) == (0.75, 1.5)
    assert tally.summary() == {"num_correct": 3, "num_seen": 4, "accuracy": 0.75, "loss": 1.5}
    assert tally.per_class() == [
        {"class": 0, "precision": 1.0, "recall": 2 / 3, "support": 3},
        {"class": 1, "precision": 0.5, "recall": 1.0, "support": 1},
        {"class": 2, "precision": None, "recall": None, "support": 0},
        {"class": 3, "precision": None, "recall": None, "support": 0},
    ]
    detailed = tally.summary(detailed=True)
    assert list(detailed) == ["num_correct", "num_seen", "accuracy", "loss", "confusion", "per_class"]
    assert detailed["confusion"] == [[2, 1, 0, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]


def test_nothing_seen_is_null_in_json() -> None:
    tally = tallied([(-1, 2, 1)])
    assert math.isnan(tally.accuracy)
    assert math.isnan(tally.loss)
    assert tally.summary() == {"num_correct": 0, "num_seen": 0, "accuracy": None, "loss": None}
    json.dumps(tally.summary(detailed=True), allow_nan=False)


def test_a_loss_that_is_not_finite_is_null_in_json() -> None:
    one = np.zeros(1, np.int64)
    assert Tally.of(one, one, np.array([np.inf]), 1).summary()["loss"] is None


def test_a_label_beyond_the_classes_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        tallied([(CLASSES, 0, 0)])
