"""What is read back of a run's or an output's JSON files: config.json, progress.json, failure.json, metrics.json.

All fields of metrics.json may be missing: an output has fewer than a run, and an older version wrote fewer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

from mnist_ray.storage.records import Count, Line, Real, Rule, Seconds, Sha256, Share


@dataclass(frozen=True, kw_only=True)
class ConfigRecord:
    """config.json."""

    fingerprint: Annotated[
        dict[Line, Any], Rule("must have a number of `epochs`", lambda fields: isinstance(fields.get("epochs"), int))
    ]
    """What else it has is only compared."""
    versions: dict[Line, Line]


@dataclass(frozen=True, kw_only=True)
class ReportedConfig:
    """What the report shows of config.json."""

    @dataclass(frozen=True)
    class Shards:
        shards: Line | None = None

    config: Shards = Shards()


@dataclass(frozen=True, kw_only=True)
class Owner:
    """`owner` of progress.json: the driver that wrote it."""

    host: Line
    pid: Annotated[int, Rule("must be a process's number", lambda value: 0 < value < 1 << 31)]
    job: (
        Annotated[str, Rule("must be the id of a job", lambda text: re.fullmatch(r"[\w.-]{1,200}", text) is not None)]
        | None
    ) = None


@dataclass(frozen=True, kw_only=True)
class ProgressRecord:
    """progress.json."""

    owner: Owner | None = None

    phase: Line
    heartbeat: Real
    done: Count = 0
    total: Count | None = None
    per_second: Real | None = None
    seconds_left: Seconds | None = None
    quarantined: Count = 0
    epoch: Count | None = None
    loss: Real | None = None
    accuracy: Real | None = None
    exit_code: Count = 1
    message: Line | None = None
    """Why it ended, in the phase `failed`."""

    def __post_init__(self) -> None:
        if self.phase == "train" and self.epoch is None:
            raise ValueError("has no `epoch`")


@dataclass(frozen=True, kw_only=True)
class FailureRecord:
    """failure.json."""

    exit_code: Annotated[int, Rule("must be from 1 to 255", lambda value: 0 < value < 256)]
    message: Line
    fingerprint: dict[str, Any]
    job_uid: Line | None = None
    """Of the job whose attempt failed; its other attempts end in the same way."""


# metrics.json


@dataclass(frozen=True, kw_only=True)
class Epoch:
    epoch: Count
    loss: Real | None = None
    accuracy: Real | None = None
    seconds: Seconds | None = None
    images_per_second: Seconds | None = None


def _are_in_order(epochs: list[Epoch]) -> bool:
    return all(one.epoch < other.epoch for one, other in pairwise(epochs))


@dataclass(frozen=True, kw_only=True)
class Trained:
    """`train`."""

    epochs: Annotated[list[Epoch], Rule("must be in order", _are_in_order)] | None = None
    num_workers: Count | None = None
    batch_size: Count | None = None
    seconds: Seconds | None = None
    milliseconds_per_step: Seconds | None = None
    restarts: Count | None = None
    resumed_from_epoch: Count | None = None


@dataclass(frozen=True, kw_only=True)
class Bin:
    count: Count
    low: Share
    high: Share
    accuracy: Share | None = None
    confidence: Share | None = None

    def __post_init__(self) -> None:
        if self.count and (self.accuracy is None or self.confidence is None):
            raise ValueError("has images, but no accuracy or confidence")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    ece: Share | None = None
    bins: list[Bin] | None = None


@dataclass(frozen=True, kw_only=True)
class ClassFigures:
    precision: Share | None = None
    recall: Share | None = None
    support: Count | None = None


def _is_square(rows: list[list[int]]) -> bool:
    return all(len(row) == len(rows) for row in rows)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """`before` and `after`."""

    num_correct: Count = 0
    num_seen: Count
    accuracy: Share | None = None
    loss: Real | None = None
    f1_micro: Share | None = None
    f1_macro: Share | None = None
    """In place of correct predictions, where an image may have several labels."""
    confusion: Annotated[list[list[Count]], Rule("must be a square matrix", _is_square)] | None = None
    confusion_cells: list[tuple[Count, Count, Count]] | None = None
    """(label, prediction, images) of the most frequent mistakes, where there are too many classes for a matrix."""
    per_class: list[ClassFigures] | None = None
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if self.num_correct > self.num_seen:
            raise ValueError(f"has {self.num_correct} correct of {self.num_seen}")


@dataclass(frozen=True, kw_only=True)
class ScoreFigures:
    images: Count | None = None
    quarantined: Count | None = None
    num_actors: Count | None = None
    seconds: Seconds | None = None
    images_per_second: Seconds | None = None


def _are_classes(value: Any) -> bool:
    if isinstance(value, int):
        return 0 <= value <= 10_000_000
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))


@dataclass(frozen=True, kw_only=True)
class DatasetFigures:
    name: Line | None = None
    train_images: Count | None = None
    test_images: Count | None = None
    image_shape: list[Count] | None = None
    classes: Annotated[Any, Rule("must be the names of the classes, or their number", _are_classes)] = None


@dataclass(frozen=True, kw_only=True)
class ScoredModel:
    path: Line
    sha256: Sha256


@dataclass(frozen=True, kw_only=True)
class MetricsRecord:
    """metrics.json of a run or an output."""

    dataset: DatasetFigures | None = None
    train: Trained | None = None
    before: Figures | None = None
    after: Figures | None = None
    score: ScoreFigures | None = None
    seconds: dict[Line, Seconds | None] | None = None
    environment: dict[Line, Any] | None = None
    config: dict[Line, Any] | None = None
    """The options of the command, in an output."""
    model: ScoredModel | None = None


# What the end of a job shows of a finished run. These fields are always there.


@dataclass(frozen=True, kw_only=True)
class FinishedEpoch:
    loss: Real | None
    accuracy: Share | None


@dataclass(frozen=True, kw_only=True)
class FinishedTraining:
    epochs: Annotated[list[FinishedEpoch], Rule("must have at least one", bool)]
    num_workers: Count
    milliseconds_per_step: Seconds | None


@dataclass(frozen=True, kw_only=True)
class FinishedFigures:
    num_correct: Count
    num_seen: Count
    accuracy: Share | None
    loss: Real | None


@dataclass(frozen=True, kw_only=True)
class FinishedRecord:
    """metrics.json of a finished run."""

    train: FinishedTraining
    seconds: Annotated[dict[Line, Seconds], Rule("must have a `total`", lambda phases: "total" in phases)]
    before: FinishedFigures | None = None
    after: FinishedFigures | None = None


@dataclass(frozen=True, kw_only=True)
class TrainedModelRecord:
    """What the driver reads of model.json once the training has ended."""

    trained: FinishedTraining
