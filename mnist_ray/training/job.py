"""What every train worker needs to know about a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mnist_ray.config import Training
from mnist_ray.models.build import Recipe
from mnist_ray.sources.base import Source
from mnist_ray.sources.formats.shards import Manifest
from mnist_ray.storage.lease import Guard
from mnist_ray.storage.location import Location


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training as the driver passes it to every worker."""

    config: Training
    recipe: Recipe
    manifest: Manifest
    """Of the dataset in `shards`."""
    shards: Location
    run: Location
    """The run's folder."""
    owner: dict[str, Any]
    """Identifies the driver in progress.json."""
    guard: Guard | None = None
    """Keeps rank 0 from writing once the driver holds the run no more; None where the driver's lock does."""
    channel: str = ""
    """Where rank 0 publishes its progress for the driver; nowhere if empty."""
    keeps_untrained: bool = False
    """Whether rank 0 saves the untrained model, converted, before it publishes anything."""
    is_local: bool = True
    """Whether Ray was started for this job alone: then none of its nodes is ever taken away."""
    patience: float = 0.0
    """Seconds for which the driver waits for room that the workers have lost, as with a node."""


def recipe_of(config: Training, dataset: Manifest | Source) -> Recipe:
    """The classifier that a configuration trains on a dataset."""
    return Recipe(
        architecture=config.architecture,
        image_shape=dataset.image_shape,
        num_classes=len(dataset.classes),
        dropout=config.dropout,
        seed=config.seed,
        precision=config.precision,
    )
