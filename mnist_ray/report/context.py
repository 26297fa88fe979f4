"""All that the template shows, from the files of a run."""

from __future__ import annotations

import math
from typing import Any

from mnist_ray.errors import InputError
from mnist_ray.report.charts import calibration_charts, confusion_cells, curve_chart, frequent_mistakes, png_data_uri
from mnist_ray.report.formatting import class_name, format_pairs
from mnist_ray.report.reading import (
    confident_mistakes,
    find_images,
    first_images,
    names_of_classes,
    quarantined_rows,
    read_json,
    shards_folder,
)
from mnist_ray.storage.location import Location

MAX_NUMBERED_CLASSES = 25  # more: the confusion matrix is colour only


def report_context(run: Location) -> dict[str, Any]:
    """All that the template shows."""
    metrics = read_json(run / "metrics.json")
    if metrics is None:
        raise InputError(f"no metrics.json in {run}: the run has not finished; the same run command goes on with it")
    config = (read_json(run / "config.json") or {}).get("config") or {}
    shards = shards_folder(run, config)
    dataset = read_json(shards / "dataset.json")
    classes = names_of_classes(dataset, metrics)
    after = metrics.get("after") or {}
    epochs = (metrics.get("train") or {}).get("epochs") or []
    predictions = run / "predictions" if (run / "predictions").is_dir() else run
    mistakes = confident_mistakes(predictions) if after.get("num_seen") else None
    pictures = find_images(shards, dataset, "test", [mistake.id for mistake in mistakes or []])
    return {
        "name": run.name,
        "metrics": metrics,
        "classes": classes,
        "interval": _interval(after),
        "samples": [
            (class_name(classes, label), png_data_uri(image)) for image, label in first_images(shards, dataset)
        ],
        "charts": [
            chart
            for key, title in (("loss", "Loss"), ("accuracy", "Accuracy"))
            if (chart := curve_chart(title, [(epoch["epoch"], epoch.get(key)) for epoch in epochs], after.get(key)))
        ],
        "confusion": confusion_cells(after.get("confusion") or []),
        "pairs": frequent_mistakes(after.get("confusion") or [], classes),
        "calibration": calibration_charts(after.get("calibration") or {}),
        "mistakes": mistakes and [(m, png_data_uri(pictures[m.id]) if m.id in pictures else None) for m in mistakes],
        "smooth": max((dataset or {}).get("image_shape", [0])[:2]) > 64,
        "quarantine": quarantined_rows(predictions),
        "config": format_pairs(config),
        "environment": format_pairs(metrics.get("environment") or {}),
        "phases": _phases(metrics.get("seconds") or {}),
        "numbered": max(len(classes), len(after.get("confusion") or [])) <= MAX_NUMBERED_CLASSES,
    }


def _interval(after: dict[str, Any]) -> tuple[float, float] | None:
    """Wilson's 95 % interval of the accuracy: what another test set of this size would be likely to give."""
    n = after.get("num_seen") or 0
    if not n:
        return None
    p, z = after["num_correct"] / n, 1.959964
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))


def _phases(seconds: dict[str, float | None]) -> list[tuple[str, float]]:
    """(phase, seconds) in the order of the flow; what the phases do not cover is `other`."""
    phases = [(name, value) for name in ("start", "shard", "train", "score", "report") if (value := seconds.get(name))]
    rest = (seconds.get("total") or 0.0) - sum(value for _, value in phases)
    return phases + ([("other", rest)] if rest > 0.05 else [])
