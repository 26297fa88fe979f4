"""The template's variables, put together from a run's or an output's files."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np

from mnist_ray.errors import InputError
from mnist_ray.report.charts import (
    calibration_charts,
    confusion_cells,
    curve_chart,
    frequent_mistakes,
    worst_classes,
)
from mnist_ray.report.formatting import class_name, format_pairs
from mnist_ray.report.reading import (
    DatasetRecord,
    confident_mistakes,
    find_images,
    quarantined_rows,
    read,
    sample_images,
    shards_folder,
)
from mnist_ray.runs.records import MetricsRecord, ReportedConfig
from mnist_ray.storage.location import Location

MAX_NUMBERED_CLASSES = 25
"""With more classes the confusion matrix has colors but no numbers."""

_LARGE_SIDE = 64  # pixels: larger images are scaled down smoothly, smaller ones up with sharp pixels


def report_context(folder: Location) -> dict[str, Any]:
    """All that the template shows. Raises InputError if there is no metrics.json."""
    metrics = read(folder / "metrics.json", MetricsRecord)
    if metrics is None:
        raise InputError(_why_no_result(folder))
    config = (read(folder / "config.json", ReportedConfig) or {}).get("config") or {}
    shards = shards_folder(folder, config)
    dataset = read(shards / "dataset.json", DatasetRecord)
    classes = _class_names(dataset, metrics)
    predictions = folder / "predictions" if (folder / "predictions").is_dir() else folder
    after = metrics.get("after") or {}
    has_classes = "f1_micro" not in after  # one for each image
    confusion, per_class = after.get("confusion") or [], after.get("per_class") or []
    num_classes = max(len(classes), len(confusion), len(per_class))
    return {
        "name": folder.name,
        "metrics": metrics,
        "classes": classes,
        "interval": _wilson_interval(after),
        "samples": [
            (class_name(classes, label), _png_data_uri(image)) for image, label in sample_images(shards, dataset)
        ],
        "charts": _training_charts((metrics.get("train") or {}).get("epochs") or [], after),
        "num_classes": num_classes,
        "confusion": confusion_cells(confusion),
        "per_class": worst_classes(per_class),
        "pairs": frequent_mistakes(after, classes),
        "calibration": calibration_charts(after.get("calibration") or {}),
        "mistakes": _mistakes(predictions, shards, dataset) if has_classes and after.get("num_seen") else None,
        "smooth": max((dataset or {}).get("image_shape", [0])[:2]) > _LARGE_SIDE,
        "quarantine": quarantined_rows(predictions),
        "config": format_pairs(config),
        "environment": format_pairs(metrics.get("environment") or {}),
        "phases": _phases(metrics.get("seconds") or {}),
        "numbered": num_classes <= MAX_NUMBERED_CLASSES,
    }


def _class_names(dataset: Any, metrics: dict[str, Any]) -> list[str]:
    """The names of the classes, by label: from the dataset, else from the metrics, else none."""
    known = (dataset or {}).get("classes") or (metrics.get("dataset") or {}).get("classes") or []
    return [str(name) for name in (range(known) if isinstance(known, int) else known)]


def _training_charts(epochs: list[dict[str, Any]], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Loss and accuracy by epoch, as far as they are known."""
    charts = (
        curve_chart(title, [(epoch["epoch"], epoch.get(key)) for epoch in epochs], after.get(key))
        for key, title in (("loss", "Loss"), ("accuracy", "Accuracy"))
    )
    return [chart for chart in charts if chart]


def _mistakes(predictions: Location, shards: Location, dataset: Any) -> list[tuple[Any, str | None]]:
    """(mistake, its image as a data URI, or None if the image was not found)."""
    mistakes = confident_mistakes(predictions)
    images = find_images(shards, dataset, "test", [mistake.id for mistake in mistakes])
    return [(each, _png_data_uri(images[each.id]) if each.id in images else None) for each in mistakes]


def _png_data_uri(image: np.ndarray) -> str:
    """A PNG with exactly these pixels. image: (h, w[, channels]) uint8."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _why_no_result(folder: Location) -> str:
    if not folder.exists():
        return f"{folder} does not exist; report takes the folder of a finished run"
    if (folder / "progress.json").exists():
        return f"{folder} has no metrics.json: the run has not finished; give its command again, and it continues"
    return f"{folder} is not the folder of a run (it has no metrics.json); report takes that of a finished run"


def _wilson_interval(after: dict[str, Any]) -> tuple[float, float] | None:
    """The 95 % interval of the accuracy (Wilson's score interval); None if no label is known."""
    n = after.get("num_seen") or 0
    if not n or "num_correct" not in after:
        return None
    p, z = after["num_correct"] / n, 1.959964
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return low if p > 0 else 0.0, high if p < 1 else 1.0  # where rounding would exclude the accuracy itself


def _phases(seconds: dict[str, float | None]) -> list[tuple[str, float]]:
    """(phase, seconds) in the order of the flow. Time outside the phases is `other`."""
    phases = [(name, value) for name in ("start", "shard", "train", "score", "report") if (value := seconds.get(name))]
    rest = (seconds.get("total") or 0.0) - sum(value for _, value in phases)
    return phases + ([("other", rest)] if rest > 0.05 else [])
