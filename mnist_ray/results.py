"""What the functions of `api.py` return: the numbers of metrics.json, and where the files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Metrics = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's answers to labelled images: counts, divided once."""

    num_correct: int
    num_seen: int
    accuracy: float | None
    """None where it is undefined, as of no images."""
    loss: float | None

    @classmethod
    def of(cls, metrics: Metrics) -> Evaluation:
        """metrics: `before` or `after`."""
        return cls(**{name: metrics[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass over the training images."""

    epoch: int
    """From 1."""
    loss: float | None
    accuracy: float | None
    val_loss: float | None = None
    """With `validation_fraction`."""
    val_accuracy: float | None = None
    seconds: float
    images_per_second: float | None

    @classmethod
    def of(cls, metrics: Metrics) -> Epoch:
        return cls(**{name: metrics[name] for name in cls.__dataclass_fields__ if name in metrics})


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What `shard` wrote."""

    folder: str
    images: Mapping[str, int]
    """Of each split."""
    shards: Mapping[str, int]
    """Of each split."""
    image_shape: tuple[int, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A run up to the model, which `score` takes."""

    folder: str
    """Of the run; `score(..., model=folder)` takes its model."""
    epochs: tuple[Epoch, ...]
    seconds: float
    """Of the whole call that finished the run."""
    metrics: Metrics = field(repr=False)
    """metrics.json, which docs/runs.md describes."""


@dataclass(frozen=True, kw_only=True)
class RunResult(TrainResult):
    """A whole run."""

    before: Evaluation
    """The untrained model, of the test images."""
    after: Evaluation
    """The trained model, of the test images."""

    @property
    def accuracy(self) -> float | None:
        """Of the trained model."""
        return self.after.accuracy


@dataclass(frozen=True, kw_only=True)
class ScoreResult:
    """An output: predictions for images."""

    output: str
    images: int
    """Those of the input: scored and quarantined."""
    quarantined: int
    after: Evaluation | None
    """The labelled images, as in metrics.json; None where there are none, or where one may have several labels."""
    seconds: float
    """Of the whole call."""
    metrics: Metrics = field(repr=False)
    """metrics.json, which docs/predictions.md describes."""

    @property
    def scored(self) -> int:
        return self.images - self.quarantined

    @property
    def accuracy(self) -> float | None:
        return self.after.accuracy if self.after else None
