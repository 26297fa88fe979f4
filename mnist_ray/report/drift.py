"""Drift: how far predictions and their scores are from those of a reference output, in figures and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError
from mnist_ray.report.formatting import class_name, format_probability
from mnist_ray.report.label_sample import LabelSample, scores_of
from mnist_ray.report.result import Result
from mnist_ray.report.sample import Sample
from mnist_ray.report.statistics import chi_square_test, kolmogorov_smirnov, stability_index

SOMEWHAT, MUCH = 0.1, 0.25
"""Population stability indices from which a change counts as moderate and as large, as is usual."""

LEVEL = 0.05
"""Of all tests of classes together: each is at this level divided by their number (Bonferroni)."""

_NUM_BINS = 10
_MOST_ROWS, _MOST_TOLD = 100, 5
_CLOSE = 0.005  # two means, where only the spread has changed


@dataclass(frozen=True)
class _Side:
    """One of the two outputs. A group is a class that was predicted, or a label, which overlaps with others."""

    images: int
    counts: NDArray[np.int64]
    """(k,) images of each group."""
    scores: list[NDArray[np.float32]]
    """k: of a class, the confidences of its images; of a label, the scores of all images that were looked at."""

    @classmethod
    def of_classes(cls, sample: Sample, num_classes: int) -> _Side:
        order = np.argsort(sample.predictions, kind="stable")
        borders = np.searchsorted(sample.predictions[order], np.arange(1, num_classes))
        counts = np.bincount(sample.predictions, minlength=num_classes)
        return cls(sample.images, counts, np.split(sample.confidences[order], borders))

    @classmethod
    def of_labels(cls, sample: LabelSample, result: Result) -> _Side:
        assert result.plan is not None
        return cls(sample.images, sample.counts, list(scores_of(result.predictions, result.plan).T))


def drift(result: Result, sample: Sample, reference: Result) -> dict[str, Any]:
    """What the template shows of the drift since `reference`. Raises InputError where the two cannot be compared."""
    before = reference.sample()
    _check(result, sample, reference, before)
    if isinstance(sample, LabelSample) and isinstance(before, LabelSample):
        sides = _Side.of_labels(before, reference), _Side.of_labels(sample, result)
        kind, whole = _LABELS, _of_labels(before, sample)
    else:
        num_classes = max(result.num_classes, reference.num_classes)
        sides = _Side.of_classes(before, num_classes), _Side.of_classes(sample, num_classes)
        kind, whole = _CLASSES, _of_classes(before, sample, sides)
    rows = _rows(*sides, is_seen=kind is _LABELS)
    named = [row | {"name": class_name(result.classes, row["group"])} for row in rows[:_MOST_ROWS]]
    changed = sum(row["is_changed"] for row in rows)
    return {
        "kind": kind,
        "reference": str(reference.folder),
        "same_model": _model(result) is not None and _model(result) == _model(reference),
        "same_thresholds": result.plan is None or reference.plan is None
        or result.plan.thresholds == reference.plan.thresholds,
        "images": (before.images, sample.images),
        **whole,
        "rows": named,
        "num_rows": len(rows),
        "num_changed": changed,
        "changed": [f"{row['name']} {_change(row, kind)}" for row in named[: min(changed, _MOST_TOLD)]],
        "level": LEVEL,
    }  # fmt: skip


_CLASSES = {"one": "class", "many": "classes", "given": "predicted", "score": "confidence"}
_LABELS = {"one": "label", "many": "labels", "given": "given", "score": "score"}


def _check(result: Result, sample: Sample, reference: Result, before: Sample) -> None:
    for each, found in ((result, sample), (reference, before)):
        if not found.images:
            raise InputError(f"{each.folder} holds no predicted classes; --reference compares those of two outputs")
    if isinstance(sample, LabelSample) != isinstance(before, LabelSample):
        several, one = (result, reference) if isinstance(sample, LabelSample) else (reference, result)
        raise InputError(
            f"{several.folder} has any number of labels for an image and {one.folder} one class; give a --reference of"
            " the same kind"
        )
    names, others = result.classes, reference.classes
    if (names and others and names != others) or result.num_classes != reference.num_classes:
        raise InputError(
            f"{reference.folder} has other classes ({reference.num_classes}) than {result.folder}"
            f" ({result.num_classes}); give a --reference of the same classes"
        )


def _model(result: Result) -> str | None:
    return result.plan.model_sha256 if result.plan else None


def _of_classes(before: Sample, sample: Sample, sides: tuple[_Side, _Side]) -> dict[str, Any]:
    """What is said of all images together."""
    old, counts = (each.counts for each in sides)
    of_classes = _finding(stability_index(old, counts), chi_square_test(old, counts), "The predicted classes")
    p = kolmogorov_smirnov(before.confidences, sample.confidences)[1]
    of_confidences = _finding(_index_of_values(before.confidences, sample.confidences), p, "The confidences")
    means = float(before.confidences.mean()), float(sample.confidences.mean())
    return {"findings": [of_classes, of_confidences], "means": means}


def _of_labels(before: LabelSample, sample: LabelSample) -> dict[str, Any]:
    """The same where images have several labels: the only histogram that has each image once is of their number."""
    most = max(len(each.by_number) for each in (before, sample))
    old, counts = (np.pad(each.by_number, (0, most - len(each.by_number))) for each in (before, sample))
    finding = _finding(stability_index(old, counts), chi_square_test(old, counts), "The labels per image")
    return {"findings": [finding], "means": tuple(int(each.counts.sum()) / each.images for each in (before, sample))}


def _index_of_values(reference: NDArray[np.float32], values: NDArray[np.float32]) -> float:
    """The stability index over tenths of the reference. Where many confidences are equal, there are fewer bins."""
    inner = np.unique(np.quantile(reference, np.linspace(0, 1, _NUM_BINS + 1)[1:-1]))
    counts = [
        np.bincount(np.searchsorted(inner, each, "right"), minlength=len(inner) + 1) for each in (reference, values)
    ]
    return stability_index(*counts)


def _finding(index: float, p: float, what: str) -> dict[str, Any]:
    """A figure, and what it says."""
    is_small, is_chance = index < SOMEWHAT, p >= LEVEL
    change = "have hardly changed" if is_small else "have changed much" if index >= MUCH else "have changed"
    chance = f"{'but ' if is_small != is_chance else ''}{'no ' if is_chance else ''}more than chance explains"
    return {"what": what, "index": index, "p": format_probability(p), "words": f"{what} {change}, {chance}."}


def _rows(before: _Side, now: _Side, *, is_seen: bool) -> list[dict[str, Any]]:
    """What became of each group; those that have changed first, and of them the largest changes of the share.

    is_seen: whether groups without images count, too.
    """
    seen = np.arange(len(now.counts)) if is_seen else np.flatnonzero(before.counts + now.counts)
    level = LEVEL / (2 * max(len(seen), 1))
    rows = []
    for group in seen.tolist():
        have = [np.array([each.counts[group], each.images - each.counts[group]]) for each in (before, now)]
        scores = [each.scores[group] for each in (before, now)]
        p_share, p_scores = chi_square_test(*have), kolmogorov_smirnov(*scores)[1]
        rows.append({
            "group": group, "shares": tuple(int(each[0]) / int(each.sum()) for each in have),
            "means": tuple(float(each.mean()) if len(each) else None for each in scores),
            "index": _index_of_values(*scores) if all(map(len, scores)) else None,
            "p_share": format_probability(p_share), "p_scores": format_probability(p_scores),
            "share_changed": p_share < level, "scores_changed": p_scores < level,
            "is_changed": p_share < level or p_scores < level,
        })  # fmt: skip
    return sorted(rows, key=lambda row: (not row["is_changed"], -abs(row["shares"][1] - row["shares"][0])))


def _change(row: dict[str, Any], kind: dict[str, str]) -> str:
    """What has changed of a group, in words."""
    words = []
    if row["share_changed"]:
        words.append(f"is {kind['given']} {'more' if row['shares'][1] > row['shares'][0] else 'less'} often")
    if row["scores_changed"]:
        one, other = row["means"]
        how = "spread differently" if abs(other - one) < _CLOSE else "higher" if other > one else "lower"
        words.append(f"has {kind['score']}s that are {how}")
    return " and ".join(words)
