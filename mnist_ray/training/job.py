"""What every train worker needs to know of a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mnist_ray.config import Training
from mnist_ray.models.build import Recipe
from mnist_ray.sources.formats.shards import Manifest
from mnist_ray.storage.location import Location


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker is told."""

    config: Training
    recipe: Recipe
    manifest: Manifest
    shards: Location
    run: Location
    owner: dict[str, Any]
    is_local: bool = True
    """Whether the Ray is this job's own: then no node of it is ever taken away."""


def recipe_of(config: Training, manifest: Manifest) -> Recipe:
    """The classifier that a configuration trains on a dataset."""
    return Recipe(
        architecture=config.architecture,
        image_shape=manifest.image_shape,
        num_classes=len(manifest.classes),
        dropout=config.dropout,
        seed=config.seed,
        precision=config.precision,
    )
