"""Drift: how far predictions and their confidences are from those of a reference output, in figures and in words."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError
from mnist_ray.report.formatting import class_name, format_probability
from mnist_ray.report.result import Result
from mnist_ray.report.sample import Sample
from mnist_ray.report.statistics import chi_square_test, kolmogorov_smirnov, stability_index

SOMEWHAT, MUCH = 0.1, 0.25
"""Population stability indices from which a change counts as moderate and as large, as is usual."""

LEVEL = 0.05
"""Of all tests of classes together: each is at this level divided by their number (Bonferroni)."""

_NUM_BINS = 10
_MOST_ROWS = 100


def drift(result: Result, sample: Sample, reference: Result) -> dict[str, Any]:
    """What the template shows of the drift since `reference`. Raises InputError where the two cannot be compared."""
    before = reference.sample()
    _check(result, sample, reference, before)
    num_classes = max(result.num_classes, reference.num_classes)
    counts, old = (np.bincount(each.predictions, minlength=num_classes) for each in (sample, before))
    of_classes = _finding(stability_index(old, counts), chi_square_test(old, counts), "The predicted classes")
    p = kolmogorov_smirnov(before.confidences, sample.confidences)[1]
    of_confidences = _finding(_index_of_values(before.confidences, sample.confidences), p, "The confidences")
    rows = _by_class(sample, before, counts, old)
    changed = [row for row in rows if row["is_changed"]]
    return {
        "reference": str(reference.folder),
        "same_model": _model(result) is not None and _model(result) == _model(reference),
        "images": (before.images, sample.images),
        "findings": [of_classes, of_confidences],
        "means": (float(before.confidences.mean()), float(sample.confidences.mean())),
        "rows": [row | {"name": class_name(result.classes, row["class"])} for row in rows[:_MOST_ROWS]],
        "num_rows": len(rows),
        "num_changed": len(changed),
        "changed": [class_name(result.classes, row["class"]) for row in changed[:5]],
        "level": LEVEL,
    }


def _check(result: Result, sample: Sample, reference: Result, before: Sample) -> None:
    for each, found in ((result, sample), (reference, before)):
        if not len(found.predictions):
            raise InputError(f"{each.folder} holds no predicted classes; --reference compares those of two outputs")
    one, other = result.classes, reference.classes
    if (one and other and one != other) or result.num_classes != reference.num_classes:
        raise InputError(
            f"{reference.folder} has other classes ({reference.num_classes}) than {result.folder}"
            f" ({result.num_classes}); give a --reference of the same classes"
        )


def _model(result: Result) -> str | None:
    return result.plan.model_sha256 if result.plan else None


def _index_of_values(reference: NDArray[np.float32], values: NDArray[np.float32]) -> float:
    """The stability index over tenths of the reference. Where many confidences are equal, there are fewer bins."""
    inner = np.unique(np.quantile(reference, np.linspace(0, 1, _NUM_BINS + 1)[1:-1]))
    counts = [
        np.bincount(np.searchsorted(inner, each, "right"), minlength=len(inner) + 1) for each in (reference, values)
    ]
    return stability_index(*counts)


def _finding(index: float, p: float, what: str) -> dict[str, Any]:
    """A figure, and what it says."""
    change = "have changed much" if index >= MUCH else "have changed" if index >= SOMEWHAT else "have hardly changed"
    chance = "more than chance explains" if p < LEVEL else "no more than chance explains"
    return {"what": what, "index": index, "p": format_probability(p), "words": f"{what} {change}, {chance}."}


def _by_class(
    sample: Sample, before: Sample, counts: NDArray[np.int64], old: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """What became of each class that was predicted at all; the largest changes of its share first."""
    groups = [_by_prediction(each, len(counts)) for each in (before, sample)]
    seen = np.flatnonzero(counts + old)
    level = LEVEL / (2 * max(len(seen), 1))
    rows = []
    for number in seen.tolist():
        shares = old[number] / before.images, counts[number] / sample.images
        of_share = chi_square_test(
            np.array([old[number], before.images - old[number]]),
            np.array([counts[number], sample.images - counts[number]]),
        )
        one, other = groups[0][number], groups[1][number]
        of_confidences = kolmogorov_smirnov(one, other)[1]
        rows.append({
            "class": number, "shares": shares, "p_share": format_probability(of_share),
            "means": tuple(float(each.mean()) if len(each) else None for each in (one, other)),
            "p_confidences": format_probability(of_confidences),
            "is_changed": of_share < level or of_confidences < level,
        })  # fmt: skip
    return sorted(rows, key=lambda row: (not row["is_changed"], -abs(row["shares"][1] - row["shares"][0])))


def _by_prediction(sample: Sample, num_classes: int) -> list[NDArray[np.float32]]:
    """The confidences of the images that were predicted as each class."""
    order = np.argsort(sample.predictions, kind="stable")
    borders = np.searchsorted(sample.predictions[order], np.arange(1, num_classes))
    return np.split(sample.confidences[order], borders)
