"""Tallies of labels, against the counts of a plain loop."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mnist_ray.predictions.label_tally import LabelTally, LabelTallyRecord, LabelTallySum
from mnist_ray.storage.records import parse_record

CLASSES = 4


def some(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Any number of labels an image; of some they are unknown."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((rows, CLASSES)) < 0.3).astype(np.int8)
    labels[generator.random(rows) < 0.2] = -1
    return labels, generator.random((rows, CLASSES)) < 0.4, generator.random(rows)


@pytest.mark.parametrize("rows", [0, 1, 2, 41])
def test_counts_are_those_of_a_plain_loop(rows: int) -> None:
    labels, given, losses = some(rows)
    tally = LabelTally.of(labels, given, losses)
    known = labels[:, 0] >= 0
    pairs = [
        (set(np.flatnonzero(label)), set(np.flatnonzero(each)))
        for label, each in zip(labels[known].tolist(), given[known].tolist(), strict=True)
    ]
    assert tally.num_seen == len(pairs)
    assert tally.loss_sum == pytest.approx(sum(losses[known]))
    f1 = []
    for number, row in enumerate(tally.per_class()):
        right = sum(number in label & each for label, each in pairs)
        support, predicted = sum(number in label for label, _ in pairs), sum(number in each for _, each in pairs)
        assert row["support"] == support
        assert row["precision"] == (right / predicted if predicted else None)
        assert row["recall"] == (right / support if support else None)
        if support + predicted:
            f1.append(2 * right / (support + predicted))
            assert row["f1"] == pytest.approx(f1[-1])
    assert tally.f1_macro == (pytest.approx(sum(f1) / len(f1)) if f1 else None)
    right = sum(len(label & each) for label, each in pairs)
    total = sum(len(label) + len(each) for label, each in pairs)
    assert tally.f1_micro == (pytest.approx(2 * right / total) if total else None)


def test_sums_are_the_tally_of_the_whole() -> None:
    labels, given, losses = some(50)
    total = LabelTallySum(CLASSES)
    for start, stop in ((0, 7), (7, 7), (7, 50)):
        total.add(LabelTally.of(labels[start:stop], given[start:stop], losses[start:stop]))
    whole = LabelTally.of(labels, given, losses)
    assert total.total().has_counts_of(whole)
    assert total.total().loss == pytest.approx(whole.loss)
    assert not LabelTally.of(labels, ~given, losses).has_counts_of(whole)


def test_a_record_is_read_back() -> None:
    tally = LabelTally.of(*some(50))
    data = json.dumps(tally.to_json()).encode()
    again = LabelTally.of_record(parse_record(data, LabelTallyRecord, "it", ""), CLASSES)
    assert again.has_counts_of(tally)
    assert again.loss_sum == tally.loss_sum
    with pytest.raises(ValueError, match="counts 4 labels, not 5"):
        LabelTally.of_record(parse_record(data, LabelTallyRecord, "it", ""), 5)
