"""Charts and the confusion matrix as numbers that the template draws: points, bars, ticks and colors.

All charts lie in an SVG box of 320 by 170 units, with the plot between LEFT, RIGHT, TOP and BOTTOM.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnist_ray.report.formatting import THIN_SPACE, class_name, format_number, format_percent

MAX_MATRIX_CLASSES = 100
"""With more classes the confusion matrix would be larger than the rest of the report."""

MAX_TABLE_CLASSES = 1_000
NUM_WORST_CLASSES = 100
"""Of more classes, this many are in the table of precision and recall."""

LEFT, RIGHT, TOP, BOTTOM = 36.0, 314.0, 30.0, 142.0


def _x(share: float) -> float:
    """The x of a share (0 to 1) of the plot's width."""
    return round(LEFT + (RIGHT - LEFT) * share, 1)


def _y(share: float) -> float:
    """The y of a share (0 to 1) of the plot's height, from below."""
    return round(BOTTOM - (BOTTOM - TOP) * share, 1)


def _tick_step(extent: float, max_steps: int) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that divides the extent into at most so many steps."""
    rough = extent / max_steps
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


@dataclass(frozen=True)
class _Axes:
    """Where epochs and values lie in a plot."""

    first: int
    last: int
    low: float
    high: float
    step: float
    """Between two ticks of the values."""

    @classmethod
    def around(cls, epochs: Sequence[int], values: Sequence[float]) -> _Axes:
        step = _tick_step(max(values) - min(values) or abs(values[0]) or 1.0, 4)
        low, high = math.floor(min(values) / step) * step, math.ceil(max(values) / step) * step
        return cls(min(epochs), max(epochs), low, high, step)

    def x(self, epoch: float) -> float:
        return _x((epoch - self.first) / (self.last - self.first) if self.last > self.first else 0.5)

    def y(self, value: float) -> float:
        return _y((value - self.low) / ((self.high - self.low) or self.step))

    def points(self, series: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
        return [(self.x(epoch), self.y(value)) for epoch, value in series]

    def ticks(self) -> dict[str, Any]:
        digits = max(0, -math.floor(math.log10(self.step)))
        values = [self.low + number * self.step for number in range(round((self.high - self.low) / self.step) + 1)]
        epochs_per_tick = max(1, math.ceil(_tick_step(self.last - self.first or 1, 8)))
        return {
            "x_ticks": [(self.x(epoch), epoch) for epoch in range(self.first, self.last + 1, epochs_per_tick)],
            "y_ticks": [(self.y(value), f"{value:.{digits}f}") for value in values],
        }


Series = list[tuple[int, float | None]]
"""(epoch, value)"""


def _known(series: Series) -> list[tuple[int, float]]:
    return [(epoch, value) for epoch, value in series if value is not None]


def curve_chart(title: str, series: Series, test: float | None) -> dict[str, Any] | None:
    """A curve over (epoch, value); `test` becomes a dashed line. None if there is no value."""
    points = _known(series)
    if not points:
        return None
    values = [value for _, value in points] + ([] if test is None else [test])
    axes = _Axes.around([epoch for epoch, _ in points], values)
    shown = format_percent if title == "Accuracy" else format_number
    return {
        "title": title,
        "summary": f"{title} of training by epoch, from {shown(points[0][1])} to {shown(points[-1][1])}",
        "points": axes.points(points),
        "dots": len(points) <= 30,
        "test": None if test is None else (axes.y(test), shown(test)),
        **axes.ticks(),
    }


def curves_chart(title: str, named: Sequence[tuple[str, Series]]) -> dict[str, Any] | None:
    """Curves of several runs in one plot. None if none has a value."""
    curves = [(number, name, _known(series)) for number, (name, series) in enumerate(named)]
    points = [point for _, _, curve in curves for point in curve]
    if not points:
        return None
    axes = _Axes.around([epoch for epoch, _ in points], [value for _, value in points])
    shown = format_percent if title == "Accuracy" else format_number
    ends = [f"{name} ends at {shown(curve[-1][1])}" for _, name, curve in curves if curve]
    return {
        "title": title,
        "summary": f"{title} of training by epoch: {', '.join(ends)}",
        "curves": [(number, axes.points(curve), len(curve) <= 30) for number, _, curve in curves if curve],
        **axes.ticks(),
    }


def calibration_charts(calibration: dict[str, Any]) -> dict[str, Any] | None:
    """Accuracy by confidence, and the share of the images in each bin. None if there are no images.

    calibration: `after.calibration` of metrics.json (`Tally.calibration`).
    """
    bins = [each for each in calibration.get("bins") or [] if each["count"]]
    total = sum(each["count"] for each in bins)
    if not total:
        return None
    high, share_ticks = _share_axis(max(each["count"] for each in bins) / total)
    fifths = [tick / 5 for tick in range(6)]
    return {
        "ece": calibration.get("ece"),
        "points": [_reliability_point(each) for each in bins],
        "bars": [_share_bar(each, each["count"] / total / high) for each in bins],
        "x_ticks": [(_x(share), f"{share:.1f}") for share in fifths],
        "y_ticks": [(_y(share), f"{share:.1f}") for share in fifths],
        "share_ticks": share_ticks,
    }


def _share_axis(largest: float) -> tuple[float, list[tuple[float, str]]]:
    """(highest share, ticks) of an axis for shares up to `largest`."""
    step = _tick_step(largest, 4)
    high = math.ceil(largest / step) * step
    digits = 0 if step >= 0.01 else 1
    numbers = range(round(high / step) + 1)
    return high, [(_y(n * step / high), f"{100 * n * step:.{digits}f}{THIN_SPACE}%") for n in numbers]


def _reliability_point(each: dict[str, Any]) -> tuple[float, float, str, str, int]:
    """(x, y, confidence, accuracy, images) of a bin."""
    confidence, accuracy = each["confidence"], each["accuracy"]
    return _x(confidence), _y(accuracy), format_percent(confidence), format_percent(accuracy), each["count"]


def _share_bar(each: dict[str, Any], height: float) -> tuple[float, float, float, float, int]:
    """(x, y, width, height, images) of a bin, with a gap on both sides. height: share of the plot's."""
    left, right, top = _x(each["low"]), _x(each["high"]), _y(height)
    return left + 0.7, top, right - left - 1.4, BOTTOM - top, each["count"]


NUM_CONFIDENCE_BINS = 20

MOST_LABELS = 10
"""Of an image that the chart tells apart."""


def confidence_chart(confidences: np.ndarray) -> dict[str, Any]:
    """The share of the images in each bin of confidence. confidences: (n,), at least one."""
    counts, edges = np.histogram(np.clip(confidences, 0, 1), NUM_CONFIDENCE_BINS, (0, 1))
    bins = [
        {"low": low, "high": high, "count": int(count)}
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
    high, ticks = _share_axis(int(counts.max()) / len(confidences))
    return {
        "bars": [_share_bar(each, each["count"] / len(confidences) / high) for each in bins if each["count"]],
        "x_ticks": [(_x(tick / 5), f"{tick / 5:.1f}") for tick in range(6)],
        "y_ticks": ticks,
    }


def number_chart(counts: np.ndarray) -> dict[str, Any]:
    """The share of the images in each number of labels. counts: (most + 1,), of at least one image; what is beyond
    MOST_LABELS is counted there."""
    last = min(len(counts) - 1, MOST_LABELS)
    counts = np.append(counts[:last], counts[last:].sum())
    high, ticks = _share_axis(int(counts.max()) / int(counts.sum()))
    bins = [{"low": n / len(counts), "high": (n + 1) / len(counts), "count": int(c)} for n, c in enumerate(counts)]
    names = [f"{number}{' +' if number == MOST_LABELS else ''}" for number in range(len(counts))]
    return {
        "bars": [_share_bar(each, each["count"] / int(counts.sum()) / high) for each in bins if each["count"]],
        "x_ticks": [(_x((number + 0.5) / len(counts)), name) for number, name in enumerate(names)],
        "y_ticks": ticks,
    }


def class_bars(counts: np.ndarray, classes: list[str], most: int, images: int | None = None) -> dict[str, Any]:
    """How often each class was predicted: all of a few classes in their order, of many the most frequent.

    counts: (num_classes,). images: of which the counts are shares, where one image may have several.
    """
    total, largest = max(images or int(counts.sum()), 1), max(int(counts.max(initial=0)), 1)
    order = np.arange(len(counts)) if len(counts) <= most else np.argsort(-counts, kind="stable")
    rows = [
        (class_name(classes, number), int(counts[number]), int(counts[number]) / total, int(counts[number]) / largest)
        for number in order[:MAX_TABLE_CLASSES].tolist()
    ]
    shown = len(rows) if len(counts) <= most else most // 2
    return {"bars": rows[:shown], "others": rows[shown:], "never": int((counts == 0).sum()), "num_classes": len(counts)}


def confusion_cells(counts: list[list[int]]) -> list[list[tuple[int, float]]] | None:
    """(count, opacity) per cell; None without counts, or with too many classes.

    Mistakes are colored relative to the most frequent mistake: beside the correct predictions they would be invisible.
    """
    if not counts or len(counts) > MAX_MATRIX_CLASSES:
        return None
    worst = max((n for i, row in enumerate(counts) for j, n in enumerate(row) if i != j), default=0)

    def opacity(row: list[int], i: int, j: int) -> float:
        if not row[j]:
            return 0.0
        return round(0.1 + 0.4 * row[j] / sum(row) if i == j else 0.08 + 0.47 * row[j] / worst, 2)

    return [[(n, opacity(row, i, j)) for j, n in enumerate(row)] for i, row in enumerate(counts)]


def difference_cells(before: np.ndarray, after: np.ndarray) -> list[list[tuple[int, float, bool]]] | None:
    """(change, opacity, whether it is for the better) per cell of two confusion matrices (k, k); None if too large."""
    if len(before) > MAX_MATRIX_CLASSES:
        return None
    change = after - before
    is_better = (change > 0) == np.eye(len(change), dtype=bool)
    opacities = np.where(change == 0, 0, 0.08 + 0.47 * np.abs(change) / max(int(np.abs(change).max()), 1)).round(2)
    return [
        list(zip(*columns, strict=True))
        for columns in zip(change.tolist(), opacities.tolist(), is_better.tolist(), strict=True)
    ]


def worst_classes(per_class: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the table of classes: all, or of too many those that are recognized worst, the worst first."""
    if len(per_class) <= MAX_TABLE_CLASSES:
        return per_class
    known = (row for row in per_class if row.get("recall") is not None)
    return heapq.nsmallest(NUM_WORST_CLASSES, known, key=lambda row: (row["recall"], -(row.get("support") or 0)))


def frequent_mistakes(after: dict[str, Any], classes: list[str]) -> list[tuple[int, str, str]]:
    """The five most frequent mistakes: (count, label, prediction), the most frequent first.

    after: of metrics.json. With many classes it has the most frequent mistakes in place of a matrix.
    """
    cells = after.get("confusion_cells") or (
        (i, j, n) for i, row in enumerate(after.get("confusion") or []) for j, n in enumerate(row)
    )
    wrong = ((n, -i, -j) for i, j, n in cells if n and i != j)
    return [(n, class_name(classes, -i), class_name(classes, -j)) for n, i, j in heapq.nlargest(5, wrong)]
