"""Several finished runs or outputs side by side: what the template of the comparison shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnist_ray.errors import InputError
from mnist_ray.report.charts import curves_chart, difference_cells
from mnist_ray.report.context import MAX_NUMBERED_CLASSES
from mnist_ray.report.formatting import class_name, format_pairs, format_probability
from mnist_ray.report.images import kept
from mnist_ray.report.pairs import Changed, OtherImagesError, Pairs, compare
from mnist_ray.report.result import Result
from mnist_ray.report.statistics import MOST_EXACT, mcnemar, wilson_interval
from mnist_ray.storage.location import Location

MOST_RESULTS = 8
"""More curves could not be told apart."""

LEVEL = 0.05
_MOST_SHOWN = 96  # images, over all pairs
_MOST_CHANGES = 10
_DIGEST = re.compile("[0-9a-f]{64}")
_NOT_COMPARED = ("name", "storage", "output", "fresh", "overwrite", "quiet", "log_format", "started", "finished")


def comparison_context(folders: Sequence[Location]) -> dict[str, Any]:
    """All that the template shows. Raises InputError as `Result.read` does."""
    if len(folders) > MOST_RESULTS:
        raise InputError(f"report compares at most {MOST_RESULTS} runs, not {len(folders)}")
    if len({str(folder) for folder in folders}) < len(folders):
        raise InputError("report was given the same folder twice; give different runs")
    results = [Result.read(folder) for folder in folders]
    names = _names(folders)
    most_shown = max(2, min(12, _MOST_SHOWN // (2 * (len(results) - 1))))
    others = list(zip(names, results, strict=True))[1:]
    return {
        "names": names,
        "classes": results[0].classes,
        "is_run": results[0].is_run,
        "smooth": results[0].is_smooth,
        "numbered": results[0].num_classes <= MAX_NUMBERED_CLASSES,
        "results": [_result(name, result) for name, result in zip(names, results, strict=True)],
        "differences": _differences(results),
        "charts": _charts(names, results),
        "pairs": [_pair(names[0], results[0], name, result, most_shown) for name, result in others],
        "most_exact": MOST_EXACT,
    }


def _names(folders: Sequence[Location]) -> list[str]:
    """What tells the folders apart: their names, or where two are called the same, their paths."""
    names = [folder.name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _result(name: str, result: Result) -> dict[str, Any]:
    metrics = result.metrics
    after = metrics.get("after") or {}
    interval = wilson_interval(after.get("num_correct") or 0, after.get("num_seen") or 0)
    return {
        "name": name, "after": after, "interval": interval, "train": metrics.get("train") or {},
        "score": metrics.get("score") or {}, "seconds": metrics.get("seconds") or {},
    }  # fmt: skip


def _differences(results: Sequence[Result]) -> list[tuple[str, list[str | None]]]:
    """(what, its value in each result) of the options, models, computations and versions that differ."""
    columns = [dict(_described(result)) for result in results]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [(name, [column.get(name) for column in columns]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _described(result: Result) -> list[tuple[str, str]]:
    metrics, plan = result.metrics, result.plan
    dataset, train = metrics.get("dataset") or {}, metrics.get("train") or {}
    trained = {name: train.get(name) for name in ("restarts", "resumed_from_epoch") if train.get(name)}
    scored = {name: getattr(plan, name, None) for name in ("model_sha256", "engine", "precision", "pixels")}
    options = {name: value for name, value in result.config.items() if name not in _NOT_COMPARED}
    where = {name: value for name, value in (metrics.get("environment") or {}).items() if name not in _NOT_COMPARED}
    rows = format_pairs({"dataset": dataset.get("name")} | options | trained | scored | where)
    return [(name, f"{value[:12]}…" if _DIGEST.fullmatch(value) else value) for name, value in rows]


def _charts(names: Sequence[str], results: Sequence[Result]) -> list[dict[str, Any]]:
    epochs = [(result.metrics.get("train") or {}).get("epochs") or [] for result in results]
    charts = (
        curves_chart(
            title,
            [(name, [(each["epoch"], each.get(key)) for each in of]) for name, of in zip(names, epochs, strict=True)],
        )
        for key, title in (("loss", "Loss"), ("accuracy", "Accuracy"))
    )
    return [chart for chart in charts if chart]


def _pair(name: str, one: Result, other_name: str, other: Result, most_shown: int) -> dict[str, Any]:
    """What is shown of a result beside the first."""
    context: dict[str, Any] = {"first": name, "second": other_name, **_confusion(one, other)}
    there = {} if one.is_run else {**kept(other.folder), **kept(one.folder)}
    try:
        pairs = compare(one, other, most_shown, there)
    except OtherImagesError as error:
        return context | {"problem": str(error), "confusion": None, "changes": []}
    images = one.images([each.image for each in [*pairs.lost, *pairs.won, *pairs.others]], lambda shown: there)
    p = mcnemar(pairs.only_first, pairs.only_second)
    return context | {
        "pairs": pairs,
        "p": format_probability(p),
        "words": _words(name, other_name, pairs, p) if pairs.labelled else None,
        "is_exact": pairs.only_first + pairs.only_second <= MOST_EXACT,
        "changed": [
            (words, [(each, images.get(each.image)) for each in shown], total)
            for words, shown, total in _groups(name, other_name, pairs)
            if shown
        ],
    }


def _groups(name: str, other: str, pairs: Pairs) -> list[tuple[str, list[Changed], int]]:
    """(what they are, some images, how many there are)."""
    unlabelled = pairs.disagree if not pairs.labelled else len(pairs.others)
    return [
        (f"Only {other} is right", pairs.won, pairs.only_second),
        (f"Only {name} is right", pairs.lost, pairs.only_first),
        ("The two disagree, and no label is known", pairs.others, unlabelled),
    ]


def _words(name: str, other: str, pairs: Pairs, p: float) -> str:
    if pairs.only_first == pairs.only_second:
        return f"{name} and {other} are right equally often."
    better, worse = (name, other) if pairs.only_first > pairs.only_second else (other, name)
    if p < LEVEL:
        return f"{better} is better than {worse}: a difference like this is hardly chance."
    return f"{better} is right more often than {worse}, but the difference may be chance."


def _confusion(one: Result, other: Result) -> dict[str, Any]:
    """How the confusion matrix differs, and the classes whose recall changed most."""
    before, after = ((result.metrics.get("after") or {}) for result in (one, other))
    matrices = [np.array(each.get("confusion") or [], np.int64) for each in (before, after)]
    is_same = matrices[0].size and matrices[0].shape == matrices[1].shape
    return {
        "confusion": difference_cells(*matrices) if is_same else None,
        "changes": _recalls(before, after, one.classes),
    }


def _recalls(before: dict[str, Any], after: dict[str, Any], classes: list[str]) -> list[tuple[str, float, float]]:
    """(class, recall before, recall after), the largest changes first."""
    rows = zip(before.get("per_class") or [], after.get("per_class") or [], strict=False)
    known = [
        (number, one["recall"], other["recall"])
        for number, (one, other) in enumerate(rows)
        if one.get("recall") is not None and other.get("recall") is not None and one["recall"] != other["recall"]
    ]
    largest = sorted(known, key=lambda row: (-abs(row[2] - row[1]), row[0]))[:_MOST_CHANGES]
    return [(class_name(classes, number), one, other) for number, one, other in largest]
