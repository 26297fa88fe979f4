"""Outputs as `score` leaves them, made without Ray and without a model: so what readers find can be checked exactly."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from mnist_ray.predictions import parts
from mnist_ray.predictions.answers import answers_of, top
from mnist_ray.predictions.parts import ScoredRows
from mnist_ray.predictions.plan import Plan
from mnist_ray.predictions.tally import Tally
from mnist_ray.sources.base import Bad
from mnist_ray.storage.location import Location

NAMES = ("ape", "bee", "cat", "dog")


def make_output(
    folder: Path | str,
    *,
    units: tuple[int, ...] = (6, 5, 7),
    bad: tuple[int, ...] = (7, 8, 13),
    seed: int = 0,
    **changed: Any,
) -> dict[str, np.ndarray]:
    """An output as `score` leaves it, and what it is of. `changed`: of the plan, or `ids`."""
    ids = changed.pop("ids", None)
    borders = np.cumsum((0, *units)).tolist()
    plan = Plan(
        **{
            "model_sha256": "ab" * 32, "input_digest": "cd" * 32, "split": "all", "limit": None, "pixels": "0-255",
            "num_classes": 4, "units": tuple(itertools.pairwise(borders)), **changed,
        }
    )  # fmt: skip
    output = Location.parse(folder)
    plan.freeze(output)
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(4, 0.5), plan.images).astype(np.float32)
    labels, predictions = generator.integers(-1, 4, plan.images), probabilities.argmax(1)
    losses = generator.uniform(0, 3, plan.images)
    ids = np.arange(plan.images) if ids is None else ids
    done = []
    for unit, (start, stop) in enumerate(plan.units):
        rows = np.setdiff1d(np.arange(start, stop), bad)
        confidences = probabilities[rows, predictions[rows]]
        scored = ScoredRows(
            ids=ids[rows], labels=labels[rows], predictions=predictions[rows], sources=None, input_name="images",
            **kept(predictions[rows], probabilities[rows], plan.top_k),
            bad=[Bad(row, f"images/{row}.png", "is an empty file") for row in range(start, stop) if row in bad],
            tally=Tally.of(labels[rows], predictions[rows], losses[rows], confidences, 4),
        )  # fmt: skip
        done.append(parts.commit(output, plan, unit, scored))
    parts.write_manifest(output, plan, done)
    whole = sum((each.tally for each in done), Tally.zero(4))
    score = {"images": plan.images, "quarantined": len(bad)}
    (output / "metrics.json").write_json({"score": score, "after": whole.summary(detailed=True)})
    return {"probabilities": probabilities, "labels": labels, "predictions": predictions, "ids": ids, "losses": losses}


def kept(predictions: np.ndarray, probabilities: np.ndarray, top_k: int | None) -> dict[str, np.ndarray]:
    """What an actor keeps of the probabilities, as fields of ScoredRows."""
    if top_k is None:
        return {"probabilities": probabilities}
    return dict(zip(("top_classes", "probabilities"), top(predictions, probabilities, top_k), strict=True))


def retry(
    output: Location, plan: Plan, made: dict[str, np.ndarray], before: parts.Committed, mended: tuple[int, ...]
) -> parts.Committed:
    """What `score --retry-quarantined` does to a unit; of the rows aside, the mended ones can be read now."""
    aside = sorted(parts.quarantined(output, before))
    rows = np.array([row for row in aside if row in mended], np.int64)
    predictions, probabilities = made["predictions"][rows], made["probabilities"][rows]
    labels, losses = made["labels"][rows], made["losses"][rows]
    retried = ScoredRows(
        ids=made["ids"][rows], labels=labels, predictions=predictions, sources=None, input_name="images",
        **kept(predictions, probabilities, plan.top_k),
        bad=[Bad(row, None, "is an empty file") for row in aside if row not in mended],
        tally=Tally.of(labels, predictions, losses, probabilities[np.arange(len(rows)), predictions], 4),
    )  # fmt: skip
    return parts.commit_retried(output, plan, before, retried)


def rows_of(bad: tuple[int, ...], seed: int) -> ScoredRows:
    """Unit 1 as an actor has it, whose probabilities are its own."""
    rows = np.setdiff1d(np.arange(6, 11), bad)
    probabilities = np.random.default_rng(seed).dirichlet(np.full(4, 0.5), len(rows)).astype(np.float32)
    predictions = probabilities.argmax(1)
    confidences = probabilities[np.arange(len(rows)), predictions]
    return ScoredRows(
        ids=rows, labels=predictions, predictions=predictions, probabilities=probabilities, sources=None,
        input_name="images", bad=[Bad(row, None, "is an empty file") for row in bad],
        tally=Tally.of(predictions, predictions, np.zeros(len(rows)), confidences, 4),
    )  # fmt: skip


def make_label_output(folder: Path, scores: np.ndarray, *, units: tuple[int, ...], names: tuple[str, ...]) -> None:
    """An output of a model that gives labels, without known labels. scores: (n, num_labels), from 0.5 on given."""
    borders = np.cumsum((0, *units)).tolist()
    plan = Plan(
        model_sha256="ab" * 32, input_digest="cd" * 32, split="all", limit=None, pixels="0-255",
        num_classes=scores.shape[1], units=tuple(itertools.pairwise(borders)), kind="labels", classes=names,
        thresholds=(0.5,) * scores.shape[1],
    )  # fmt: skip
    output, answers, done = Location.parse(folder), answers_of(plan), []
    plan.freeze(output)
    for unit, (start, stop) in enumerate(plan.units):
        values, labels = scores[start:stop].astype(np.float32), np.full(stop - start, -1)
        scored = ScoredRows(
            ids=np.arange(start, stop), labels=labels, predictions=None, probabilities=values, sources=None, bad=[],
            tally=answers.tally(labels, values), input_name="images",
        )  # fmt: skip
        done.append(parts.commit(output, plan, unit, scored))
    parts.write_manifest(output, plan, done)
    score = {"images": plan.images, "quarantined": 0}
    (output / "metrics.json").write_json({"score": score, "dataset": {"name": "scenes", "classes": list(names)}})
