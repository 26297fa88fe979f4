"""Figures as the template draws them: points, bars and ticks in the boxes of the SVGs."""

from __future__ import annotations

import base64
import heapq
import io
import math
from typing import Any

import numpy as np

from mnist_ray.report.formatting import THIN, class_name, format_number, format_percent

MAX_MATRIX_CLASSES = 100  # more: the table would be larger than the rest of the report


# Turning it into what is shown.


def png_data_uri(image: np.ndarray) -> str:
    """A PNG with exactly these pixels."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def curve_chart(title: str, series: list[tuple[int, float | None]], test: float | None) -> dict[str, Any] | None:
    """A curve over epochs in a box of 320 by 170 units; `test` becomes a dashed line. None where there is nothing."""
    points = [(epoch, value) for epoch, value in series if value is not None]
    if not points:
        return None
    left, right, top, bottom = 36.0, 314.0, 30.0, 142.0
    values = [value for _, value in points] + ([] if test is None else [test])
    step = _step(max(values) - min(values) or abs(values[0]) or 1.0, 4)
    low, high = math.floor(min(values) / step) * step, math.ceil(max(values) / step) * step
    first, last = points[0][0], points[-1][0]
    every = max(1, math.ceil(_step(last - first or 1, 8)))

    def x(epoch: float) -> float:
        return round(left + (right - left) * ((epoch - first) / (last - first) if last > first else 0.5), 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * (value - low) / ((high - low) or step), 1)

    digits = max(0, -math.floor(math.log10(step)))
    ticks = [low + number * step for number in range(round((high - low) / step) + 1)]
    shown = format_percent if title == "Accuracy" else format_number
    return {
        "title": title,
        "summary": f"{title} of training by epoch, from {shown(points[0][1])} to {shown(points[-1][1])}",
        "points": [(x(epoch), y(value)) for epoch, value in points],
        "dots": len(points) <= 30,
        "x_ticks": [(x(epoch), epoch) for epoch in range(first, last + 1, every)],
        "y_ticks": [(y(tick), f"{tick:.{digits}f}") for tick in ticks],
        "test": None if test is None else (y(test), shown(test)),
    }


def calibration_charts(calibration: dict[str, Any]) -> dict[str, Any] | None:
    """Accuracy over confidence, and how many images each bin has, in boxes as those of `_chart`; None without any."""
    bins = calibration.get("bins") or []
    total = sum(each["count"] for each in bins)
    if not total:
        return None
    left, right, top, bottom = 36.0, 314.0, 30.0, 142.0

    def x(share: float) -> float:
        return round(left + (right - left) * share, 1)

    def y(share: float) -> float:
        return round(bottom - (bottom - top) * share, 1)

    most = max(each["count"] for each in bins) / total
    step = _step(most, 4)
    high = math.ceil(most / step) * step
    return {
        "ece": calibration.get("ece"),
        "points": [
            (x(each["confidence"]), y(each["accuracy"]), format_percent(each["confidence"]),
             format_percent(each["accuracy"]), each["count"])
            for each in bins if each["count"]
        ],
        "bars": [
            (x(each["low"]) + 0.7, y(each["count"] / total / high), x(each["high"]) - x(each["low"]) - 1.4,
             bottom - y(each["count"] / total / high), each["count"])
            for each in bins if each["count"]
        ],
        "x_ticks": [(x(tick / 5), f"{tick / 5:.1f}") for tick in range(6)],
        "y_ticks": [(y(tick / 5), f"{tick / 5:.1f}") for tick in range(6)],
        "share_ticks": [
            (y(tick * step / high), f"{100 * tick * step:.{0 if step >= 0.01 else 1}f}{THIN}%")
            for tick in range(round(high / step) + 1)
        ],
    }  # fmt: skip


def _step(extent: float, at_most: int) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that cuts the extent into at most so many parts."""
    rough = extent / at_most
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def confusion_cells(counts: list[list[int]]) -> list[list[tuple[int, float]]] | None:
    """(count, opacity) a cell. Mistakes are coloured relative to the largest of them, or they would not be seen."""
    if not counts or len(counts) > MAX_MATRIX_CLASSES:
        return None
    worst = max((n for i, row in enumerate(counts) for j, n in enumerate(row) if i != j), default=0)

    def opacity(row: list[int], i: int, j: int) -> float:
        if not row[j]:
            return 0.0
        return round(0.1 + 0.4 * row[j] / sum(row) if i == j else 0.08 + 0.47 * row[j] / worst, 2)

    return [[(n, opacity(row, i, j)) for j, n in enumerate(row)] for i, row in enumerate(counts)]


def frequent_mistakes(counts: list[list[int]], classes: list[str]) -> list[tuple[int, str, str]]:
    """The most frequent mistakes: (count, label, prediction), most frequent first."""
    wrong = ((n, -i, -j) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j)
    return [(n, class_name(classes, -i), class_name(classes, -j)) for n, i, j in heapq.nlargest(5, wrong)]
