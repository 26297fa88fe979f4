"""Tallies against the trivial count, at awkward sizes, merged in any order."""

from __future__ import annotations

import itertools
import json
import math
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_ray.predictions.tally import Tally, TallyRecord, TallySum
from mnist_ray.storage.records import parse_record

CLASSES = 4

Row = tuple[int, int, int, float]
"""Label, prediction, loss, confidence."""


def tallied(rows: list[Row]) -> Tally:
    labels, predictions, losses, confidences = zip(*rows, strict=True) if rows else [[]] * 4
    return Tally.of(
        np.array(labels, np.int64), np.array(predictions, np.int64), np.array(losses, np.float64),
        np.array(confidences, np.float32), CLASSES,
    )  # fmt: skip


def told(tally: Tally) -> dict[str, Any]:
    """All that a tally holds."""
    return {
        "num_correct": tally.num_correct, "num_seen": tally.num_seen, "loss_sum": tally.loss_sum,
        "confusion": tally.confusion.matrix().tolist(), "reliability": tally.reliability.tolist(),
    }  # fmt: skip


def trivial(rows: list[Row]) -> dict[str, Any]:
    seen = [row for row in rows if row[0] >= 0]
    confusion = [[0] * CLASSES for _ in range(CLASSES)]
    reliability = [[0] * 15 for _ in range(3)]
    for label, prediction, _, confidence in seen:
        confusion[label][prediction] += 1
        place = min(int(confidence * 15), 14)
        for row, value in enumerate((1, label == prediction, round(confidence * 2**30))):
            reliability[row][place] += value
    return {
        "num_correct": sum(label == prediction for label, prediction, *_ in seen),
        "num_seen": len(seen),
        "loss_sum": float(sum(loss for _, _, loss, _ in seen)),
        "confusion": confusion,
        "reliability": reliability,
    }


ROWS = st.lists(
    st.tuples(
        st.integers(-1, CLASSES - 1), st.integers(0, CLASSES - 1), st.integers(0, 9), st.floats(0, 1, width=32)
    ),
    max_size=40,
)  # fmt: skip


@given(ROWS, st.integers(1, 7), st.randoms())
def test_parts_merged_in_any_order_are_the_whole(rows: list[Row], parts: int, random: Any) -> None:
    pieces = [tallied(rows[part::parts]) for part in range(parts)]
    random.shuffle(pieces)
    assert told(reduce(add, pieces, Tally.zero(CLASSES))) == trivial(rows)
    assert told(TallySum(CLASSES, *pieces).total()) == trivial(rows)


@given(ROWS)
def test_json_and_back(rows: list[Row]) -> None:
    tally = tallied(rows)
    record = parse_record(json.dumps(tally.to_json()).encode(), TallyRecord, "a tally", "count again")
    assert told(Tally.of_record(record, CLASSES)) == told(tally)


@given(ROWS)
def test_parts_of_version_0_1_are_read(rows: list[Row]) -> None:
    record = parse_record(json.dumps(trivial(rows)).encode(), TallyRecord, "a tally", "count again")
    assert told(Tally.of_record(record, CLASSES)) == trivial(rows)
    with pytest.raises(ValueError, match="counts 4 classes, not 5"):
        Tally.of_record(record, CLASSES + 1)


def test_what_is_derived() -> None:
    tally = tallied([(0, 0, 1, 0.5), (0, 1, 2, 0.7), (1, 1, 3, 0.5), (-1, 2, 50, 0.5), (0, 0, 0, 1.0)])
    assert (tally.accuracy, tally.loss) == (0.75, 1.5)
    assert tally.summary() == {"num_correct": 3, "num_seen": 4, "accuracy": 0.75, "loss": 1.5}
    assert tally.per_class() == [
        {"class": 0, "precision": 1.0, "recall": 2 / 3, "support": 3},
        {"class": 1, "precision": 0.5, "recall": 1.0, "support": 1},
        {"class": 2, "precision": None, "recall": None, "support": 0},
        {"class": 3, "precision": None, "recall": None, "support": 0},
    ]
    detailed = tally.summary(detailed=True)
    assert list(detailed) == ["num_correct", "num_seen", "accuracy", "loss", "confusion", "per_class", "calibration"]
    calibration = detailed["calibration"]
    assert calibration["ece"] == pytest.approx((2 * 0.5 + 0.7 + 0) / 4, abs=1e-7)
    assert [(each["count"], each["accuracy"], each["confidence"]) for each in calibration["bins"]] == [
        *[(0, None, None)] * 7, (2, 1.0, 0.5), *[(0, None, None)] * 2, (1, 0.0, pytest.approx(0.7)),
        *[(0, None, None)] * 3, (1, 1.0, 1.0),
    ]  # fmt: skip
    assert [calibration["bins"][place][end] for place, end in ((0, "low"), (3, "low"), (14, "high"))] == [0, 0.2, 1]
    assert detailed["confusion"] == [[2, 1, 0, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]


def test_nothing_seen_is_null_in_json() -> None:
    tally = tallied([(-1, 2, 1, 0.9)])
    assert math.isnan(tally.accuracy)
    assert math.isnan(tally.loss)
    assert tally.summary() == {"num_correct": 0, "num_seen": 0, "accuracy": None, "loss": None}
    assert tally.calibration()["ece"] is None
    json.dumps(tally.summary(detailed=True), allow_nan=False)


def test_a_loss_that_is_not_finite_is_null_in_json() -> None:
    one = np.zeros(1, np.int64)
    assert Tally.of(one, one, np.array([np.inf]), np.ones(1, np.float32), 1).summary()["loss"] is None


def test_a_label_beyond_the_classes_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        tallied([(CLASSES, 0, 0, 0.0)])


def test_calibration_is_the_trivial_one_whatever_the_units() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.full(CLASSES, 0.4), 5001).astype(np.float32)
    chosen, labels = probabilities.argmax(1), generator.integers(0, CLASSES, 5001)
    confidences, losses = probabilities.max(1), np.zeros(5001)
    tally = Tally.zero(CLASSES)
    for rows in np.array_split(generator.permutation(5001), 13):
        tally += Tally.of(labels[rows], chosen[rows], losses[rows], confidences[rows], CLASSES)
    ece, edges = 0.0, np.linspace(0, 1, 16)
    for low, high in itertools.pairwise(edges):
        inside = (confidences >= low) & ((confidences < high) | (high == 1))
        if inside.any():
            gap = abs((chosen == labels)[inside].mean() - confidences[inside].astype(np.float64).mean())
            ece += inside.mean() * gap
    assert tally.calibration()["ece"] == pytest.approx(ece, abs=1e-8)


def test_confidences_of_a_model_gone_wrong_are_counted_at_the_ends() -> None:
    zeros = np.zeros(3, np.int64)
    strange = np.array([np.nan, -1.0, 7.0], np.float32)
    assert Tally.of(zeros, zeros, np.zeros(3), strange, 1).reliability[0].tolist() == [2, *[0] * 13, 1]
