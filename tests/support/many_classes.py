"""Outputs and tallies of many classes, made without a model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mnist_ray.predictions import parts
from mnist_ray.predictions.parts import ScoredRows
from mnist_ray.predictions.plan import Plan
from mnist_ray.predictions.tally import Tally, TallySum
from mnist_ray.storage.location import Location
from tests.support.output_maker import kept

_TOP = 3


def wide_units(*, units: int, rows: int, num_classes: int, most_pairs: int, seed: int = 0) -> Iterator[Tally]:
    """Tallies of units whose images make at most so many different pairs of label and prediction."""
    generator = np.random.default_rng(seed)
    distance = num_classes**2 // most_pairs
    confidences, losses = np.full(rows, 0.5, np.float32), np.ones(rows)
    for _ in range(units):
        labels, predictions = np.divmod(generator.integers(0, most_pairs, rows) * distance, num_classes)
        yield Tally.of(labels, predictions, losses, confidences, num_classes)


def make_wide_output(folder: Path, num_classes: int, rows: tuple[int, ...]) -> Tally:
    """An output of `--top-k 3`, as `score` leaves it, and its tally."""
    plan = Plan(
        model_sha256="ab" * 32, input_digest="cd" * 32, split="all", limit=None, pixels="0-255", top_k=_TOP,
        num_classes=num_classes, units=tuple(itertools.pairwise(np.cumsum((0, *rows)).tolist())),
    )  # fmt: skip
    output, whole = Location.parse(folder), TallySum(num_classes)
    plan.freeze(output)
    generator, done = np.random.default_rng(0), []
    for unit, (start, stop) in enumerate(plan.units):
        probabilities = np.zeros((stop - start, num_classes), np.float32)
        predictions, labels = generator.integers(0, num_classes, (2, stop - start))
        probabilities[np.arange(stop - start), predictions] = 0.75
        tally = Tally.of(
            labels, predictions, np.ones(stop - start), np.full(stop - start, 0.75, np.float32), num_classes
        )
        whole.add(tally)
        scored = ScoredRows(
            ids=np.arange(start, stop), labels=labels, predictions=predictions, sources=None, bad=[], tally=tally,
            input_name="images", **kept(predictions, probabilities, _TOP),
        )  # fmt: skip
        done.append(parts.commit(output, plan, unit, scored))
    parts.write_manifest(output, plan, done)
    (output / "metrics.json").write_json({"after": whole.total().summary(detailed=True)})
    return whole.total()
