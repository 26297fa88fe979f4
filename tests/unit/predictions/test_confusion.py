"""Confusion matrices of many classes: as the trivial counts have them, packed small, and never dense."""

from __future__ import annotations

import base64
import json
import tracemalloc
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mnist_ray.predictions import confusion, parts
from mnist_ray.predictions.confusion import Confusion
from mnist_ray.predictions.plan import Plan
from mnist_ray.predictions.tally import Tally, TallySum
from mnist_ray.predictions.verify import verify
from mnist_ray.scoring.ledger import Ledger
from mnist_ray.storage.location import Location
from tests.support.many_classes import make_wide_output, wide_units

Pair = tuple[int, int]


def drawn(num_classes: int, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, rows)
    return labels, np.where(generator.random(rows) < 0.5, labels, generator.integers(0, num_classes, rows))


def counted(whole: Confusion) -> dict[Pair, int]:
    pairs = (divmod(pair, whole.num_classes) for pair in whole.pairs.tolist())
    return dict(zip(pairs, whole.counts.tolist(), strict=True))


@pytest.mark.parametrize("num_classes", [1, 2, 90, 91, 20_000])
@pytest.mark.parametrize("rows", [0, 1, 1025])
def test_pairs_are_counted_and_merged_as_trivially(num_classes: int, rows: int) -> None:
    draws = [drawn(num_classes, rows, seed) for seed in range(3)]
    expected = Counter(pair for draw in draws for pair in zip(*(each.tolist() for each in draw), strict=True))
    pieces = [Confusion.of(*draw, num_classes) for draw in draws]
    for whole in (Confusion.merged(pieces), Confusion.merged([Confusion.merged(pieces[1:]), pieces[0]])):
        assert counted(whole) == expected
        assert (np.diff(whole.pairs) > 0).all()
        for row, by in enumerate((lambda i, j: i if i == j else None, lambda i, _: i, lambda _, j: j)):
            trivial: Counter[int | None] = Counter()
            for pair, n in expected.items():
                trivial[by(*pair)] += n
            trivial.pop(None, None)
            assert whole.margins()[row].tolist() == [trivial[each] for each in range(num_classes)]
        back = Confusion.unpacked(whole.packed(), num_classes)
        assert counted(back) == expected


def test_mistakes_are_sorted_by_their_number_then_by_class() -> None:
    labels, predictions = np.array([7, 7, 3, 3, 9, 5, 5, 5]), np.array([1, 1, 2, 2, 9, 6, 4, 4])
    whole = Confusion.of(labels, predictions, 2_000)
    assert whole.mistakes(9) == [(3, 2, 2), (5, 4, 2), (7, 1, 2), (5, 6, 1)]
    assert whole.mistakes(2) == [(3, 2, 2), (5, 4, 2)]


def test_more_pairs_than_are_kept_leave_the_margins_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confusion, "MOST_PAIRS", 40)
    draws = [drawn(1_001, 10, seed) for seed in range(6)]
    pieces = [Tally.of(*draw, np.zeros(10), np.ones(10, np.float32), 1_001) for draw in draws]
    labels, predictions = (np.concatenate(each) for each in zip(*draws, strict=True))
    for order in (pieces, pieces[::-1], [sum(pieces[:2], Tally.zero(1_001)), sum(pieces[2:], Tally.zero(1_001))]):
        whole = TallySum(1_001, *order).total()
        margins = whole.confusion.margins()
        assert len(whole.confusion) == 0
        assert margins[1].tolist() == np.bincount(labels, minlength=1_001).tolist()
        assert margins[2].tolist() == np.bincount(predictions, minlength=1_001).tolist()
        assert int(margins[0].sum()) == whole.num_correct == int((labels == predictions).sum())
        summary = whole.summary(detailed=True)
        assert (summary["confusion"], summary["confusion_cells"]) == (None, None)
    few = TallySum(1_001, *pieces[:3]).total()
    assert len(few.confusion) == len(set(zip(labels[:30].tolist(), predictions[:30].tolist(), strict=True)))


def test_metrics_hold_a_matrix_up_to_1000_classes_and_above_the_most_frequent_mistakes() -> None:
    for num_classes in (1_000, 1_001):
        labels, predictions = np.array([1, 1, 2, 999]), np.array([3, 3, 2, 0])
        summary = Tally.of(labels, predictions, np.zeros(4), np.ones(4, np.float32), num_classes).summary(detailed=True)
        assert len(summary["per_class"]) == num_classes
        assert summary["per_class"][2] == {"class": 2, "precision": 1.0, "recall": 1.0, "support": 1}
        if num_classes == 1_000:
            assert (summary["confusion"][1][3], summary["confusion"][999][0]) == (2, 1)
            assert "confusion_cells" not in summary
        else:
            assert summary["confusion"] is None
            assert summary["confusion_cells"] == [[1, 3, 2], [999, 0, 1]]


def packed(numbers: list[int], planes: int = 8) -> str:
    data = np.array(numbers, "<i8").view(np.uint8).reshape(-1, 8).T[:planes].tobytes()
    return base64.b64encode(zlib.compress(data)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "", "?", "AAAA", packed([1]), packed([1, 1], planes=5), packed([0, 0, 1, 1]), packed([3, -1, 1, 1]),
        packed([-1, 1]), packed([16, 1]), packed([8, 8, 1, 1]), packed([1, 0]), packed([1, -1]), packed([1, 2**54]),
        packed([2**62, 2**62, 2**62, 1, 1, 1]), packed([1, 1])[:-4],
        base64.b64encode(zlib.compress(bytes(1 << 24))).decode(),
    ],
)  # fmt: skip
def test_what_is_no_packed_matrix_is_refused(text: str) -> None:
    assert counted(Confusion.unpacked(packed([15, 7]), 4)) == {(3, 3): 7}
    with pytest.raises(ValueError, match=r"its pairs|base64|padding"):
        Confusion.unpacked(text, 4)


# Outputs.


@pytest.mark.parametrize("num_classes", [5_000, 20_000])
def test_parts_of_many_classes_are_opened_resumed_and_verified(tmp_path: Path, num_classes: int) -> None:
    whole = make_wide_output(tmp_path / "out", num_classes, rows=(60, 41))
    output = Location.parse(tmp_path / "out")
    plan = Plan.load(output)
    assert plan is not None
    done = list(parts.resume(output, plan))
    assert [each.unit for each in done] == [0, 1]
    ledger = Ledger(plan, output, done, max_bad=0, on_progress=None)
    finished = ledger.finished()
    assert finished is not None
    assert finished.tally.has_counts_of(whole)
    assert verify(output).tally.has_counts_of(whole)
    metadata = pq.read_metadata(tmp_path / "out" / "part-00000.parquet").metadata
    assert len(metadata[parts.METADATA]) < 10_000
    forged = json.loads((tmp_path / "out" / "metrics.json").read_text())
    forged["after"]["confusion_cells"][0][2] += 1
    (tmp_path / "out" / "metrics.json").write_text(json.dumps(forged))
    with pytest.raises(Exception, match=r"metrics\.json has another confusion_cells"):
        verify(output)


def test_a_unit_of_nothing_but_different_pairs_has_small_metadata() -> None:
    generator = np.random.default_rng(0)
    labels, predictions = generator.integers(0, 20_000, (2, 131_072))
    tally = Tally.of(labels, predictions, np.zeros(131_072), np.ones(131_072, np.float32), 20_000)
    text = json.dumps(tally.to_json())
    assert len(tally.confusion) > 131_000
    assert len(text) < 600_000
    assert tally.confusion.packed() == Confusion.unpacked(tally.confusion.packed(), 20_000).packed()


def test_the_driver_keeps_little_of_many_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 classes, 400 units of 500 images: `python -m tests.benchmarks.many_classes` has 100,000 units."""
    monkeypatch.setattr(TallySum, "_MOST_WAITING_PAIRS", 1 << 12)
    tracemalloc.start()
    try:
        whole = TallySum(20_000)
        for tally in wide_units(units=400, rows=500, num_classes=20_000, most_pairs=5_000):
            whole.add(tally)
        total = whole.total()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total.num_seen == int(total.confusion.counts.sum()) == 200_000
    assert len(total.confusion) == 5_000
    assert peak < 1_500_000  # 400 tallies would be 3 MB, dense ones 1.3 TB
