"""Outputs as `score` leaves them, made without Ray and without a model: what is read of them can be told exactly."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from mnist_ray.predictions import parts
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
    chances = generator.dirichlet(np.full(4, 0.5), plan.images).astype(np.float32)
    labels, chosen = generator.integers(-1, 4, plan.images), chances.argmax(1)
    losses = generator.uniform(0, 3, plan.images)
    ids = np.arange(plan.images) if ids is None else ids
    done = []
    for unit, (start, stop) in enumerate(plan.units):
        rows = np.setdiff1d(np.arange(start, stop), bad)
        tally = Tally.of(labels[rows], chosen[rows], losses[rows], chances[rows, chosen[rows]], 4)
        aside = [Bad(row, f"images/{row}.png", "is an empty file") for row in range(start, stop) if row in bad]
        done.append(
            parts.commit(
                output, plan, unit, ids=ids[rows], labels=labels[rows], predictions=chosen[rows],
                probabilities=chances[rows], sources=None, bad=aside, tally=tally, input_name="images",
            )
        )  # fmt: skip
    parts.write_manifest(output, plan, done)
    whole = sum((each.tally for each in done), Tally.zero(4))
    score = {"images": plan.images, "quarantined": len(bad)}
    (output / "metrics.json").write_json({"score": score, "after": whole.summary(detailed=True)})
    return {"probabilities": chances, "labels": labels, "predictions": chosen, "ids": ids, "losses": losses}
