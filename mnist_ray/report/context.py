"""The template's variables, put together from a run's or an output's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mnist_ray.report.charts import (
    calibration_charts,
    class_bars,
    confidence_chart,
    confusion_cells,
    curve_chart,
    frequent_mistakes,
    number_chart,
    worst_classes,
)
from mnist_ray.report.command import command_of
from mnist_ray.report.drift import drift
from mnist_ray.report.formatting import class_name, format_pairs
from mnist_ray.report.images import data_uri, encode
from mnist_ray.report.label_sample import LabelSample
from mnist_ray.report.reading import quarantined_rows, sample_images
from mnist_ray.report.result import Fetch, Result
from mnist_ray.report.sample import Sample, Shown
from mnist_ray.report.statistics import wilson_interval
from mnist_ray.report.timeline import timeline
from mnist_ray.storage.location import Location

MAX_NUMBERED_CLASSES = 25
"""With more classes the confusion matrix has colors but no numbers."""

NUM_CARDS = 12


def report_context(
    folder: Location, *, name: str | None = None, fetch: Fetch | None = None, reference: Location | None = None
) -> dict[str, Any]:
    """All that the template shows. Raises InputError as `Result.read` does."""
    result = Result.read(folder)
    metrics, classes = result.metrics, result.classes
    after, sample = metrics.get("after") or {}, result.sample()
    has_classes = "f1_micro" not in after  # one for each image
    unsure = sample.unsure[:NUM_CARDS]
    shown = [*unsure, *sample.mistakes] if result.is_run else sample.shown()
    images = result.images(shown, fetch)
    return {
        "name": name or folder.name,
        "metrics": metrics,
        "classes": classes,
        "is_run": result.is_run,
        "interval": wilson_interval(after.get("num_correct") or 0, after.get("num_seen") or 0),
        "samples": _samples(result, sample, images),
        "charts": _training_charts((metrics.get("train") or {}).get("epochs") or [], after),
        **_numbers(after, result),
        "mistakes": _with_images(sample.mistakes, images) if has_classes and after.get("num_seen") else None,
        "unsure": _with_images(unsure, images),
        "predicted": _predicted(result, sample, images),
        "drift": drift(result, sample, Result.read(reference)) if reference else None,
        "smooth": result.is_smooth,
        "sampled": None if sample.is_whole else sample.images,
        "quarantine": quarantined_rows(result.predictions),
        "config": format_pairs(result.config),
        "command": command_of(result.config),
        "fingerprints": result.fingerprints(),
        "environment": format_pairs(metrics.get("environment") or {}),
        "phases": _phases(metrics.get("seconds") or {}),
        "drawn": timeline(folder),
    }


def _numbers(after: dict[str, Any], result: Result) -> dict[str, Any]:
    """What is shown of the counts by class."""
    return {
        "num_classes": result.num_classes,
        "numbered": result.num_classes <= MAX_NUMBERED_CLASSES,
        "confusion": confusion_cells(after.get("confusion") or []),
        "per_class": worst_classes(after.get("per_class") or []),
        "pairs": frequent_mistakes(after, result.classes),
        "calibration": calibration_charts(after.get("calibration") or {}),
    }


def _samples(result: Result, sample: Sample, images: Mapping[Shown, str]) -> list[tuple[str, str, str]]:
    """(caption, data URI, what it is) of nine images: of the training, or some of those that were scored."""
    if result.is_run:
        found = sample_images(result.shards, result.dataset)
        named = [(class_name(result.classes, label), image) for image, label in found]
        return [
            (name, str(data_uri(encode(image))), f"Training image {number}, labelled {name}")
            for number, (name, image) in enumerate(named, 1)
        ]
    there = [each for each in _in_turn(sample.of_class) if each in images][:9]
    names = [class_name(result.classes, each.prediction) for each in there]
    return [(name, images[each], f"Image {each.id}, predicted {name}") for name, each in zip(names, there, strict=True)]


def _in_turn(of_class: Mapping[int, list[Shown]]) -> list[Shown]:
    """The first of each class, then the second of each, and so on."""
    ranked = [(rank, number, each) for number, held in of_class.items() for rank, each in enumerate(held)]
    return [each for _, _, each in sorted(ranked, key=lambda item: item[:2])]


def _with_images(shown: Sequence[Shown], images: Mapping[Shown, str]) -> list[tuple[Shown, str | None]]:
    """(image, its data URI, or None if it was not found)."""
    return [(each, images.get(each)) for each in shown]


def _predicted(result: Result, sample: Sample, images: Mapping[Shown, str]) -> dict[str, Any] | None:
    """How often each class was predicted, how sure, and images of each. None for a run, which has labels for all."""
    if result.is_run or not sample.images:
        return None
    groups = [
        (class_name(result.classes, number), there)
        for number, held in sample.of_class.items()
        if (there := [(each, images[each]) for each in held if each in images])
    ]
    shown = {"groups": groups, "one_each": max((len(held) for _, held in groups), default=0) == 1}
    if isinstance(sample, LabelSample):
        return shown | {
            **class_bars(sample.counts, result.classes, MAX_NUMBERED_CLASSES, sample.images),
            "is_exact": sample.is_whole,
            "labels": number_chart(sample.by_number),
            "labels_each": int(sample.counts.sum()) / sample.images,
        }
    counts, is_exact = _counts(result, sample)
    return shown | {
        **class_bars(counts, result.classes, MAX_NUMBERED_CLASSES),
        "is_exact": is_exact,
        "confidences": confidence_chart(sample.confidences),
        "mean": float(sample.confidences.mean()),
    }


def _counts(result: Result, sample: Sample) -> tuple[np.ndarray, bool]:
    """(num_classes,) predictions of each class, and whether all are counted: where every image has a label."""
    metrics = result.metrics
    after, score = metrics.get("after") or {}, metrics.get("score") or {}
    scored = (score.get("images") or 0) - (score.get("quarantined") or 0)
    if (matrix := after.get("confusion")) and after.get("num_seen") == scored:
        return np.array(matrix, np.int64).sum(axis=0), True
    return np.bincount(sample.predictions, minlength=result.num_classes), sample.is_whole


def _training_charts(epochs: list[dict[str, Any]], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Loss and accuracy by epoch, as far as they are known."""
    charts = (
        curve_chart(title, [(epoch["epoch"], epoch.get(key)) for epoch in epochs], after.get(key))
        for key, title in (("loss", "Loss"), ("accuracy", "Accuracy"))
    )
    return [chart for chart in charts if chart]


def _phases(seconds: dict[str, float | None]) -> list[tuple[str, float]]:
    """(phase, seconds) in the order of the flow. Time outside the phases is `other`."""
    phases = [(name, value) for name in ("start", "shard", "train", "score", "report") if (value := seconds.get(name))]
    rest = (seconds.get("total") or 0.0) - sum(value for _, value in phases)
    return phases + ([("other", rest)] if rest > 0.05 else [])
