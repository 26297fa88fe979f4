"""What a run has to show, by epoch: the one form of it that all trackers take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mnist_ray import STARTED

PREFIXES = {"train": "", "validation": "val_", "test": "test_"}
"""The splits, and what Keras puts before the names of their metrics."""


class Scalar(NamedTuple):
    """A figure, by its split and the epochs that were finished then."""

    split: str
    name: str
    epoch: int
    value: float
    unix_time: float

    @property
    def full_name(self) -> str:
        return PREFIXES[self.split] + self.name


@dataclass(frozen=True)
class Snapshot:
    """What is known of a run. It only grows, unless an epoch must be trained again."""

    epochs: Sequence[Mapping[str, Any]] = ()
    """Those of metrics.json."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """metrics.json, once the run is finished."""

    def scalars(self) -> list[Scalar]:
        """Those of the epochs; of the test images, before and after the training. What is not finite is left out."""
        found = [scalar for epoch in self.epochs for scalar in _of_epoch(epoch)]
        if not found:
            return []
        before = found[0].unix_time - (self.epochs[0].get("seconds") or 0.0)
        for name, epoch, when in (("before", 0, before), ("after", len(self.epochs), found[-1].unix_time)):
            figures = self.metrics.get(name) or {}
            found += [
                Scalar("test", metric, epoch, figures[metric], when)
                for metric in ("loss", "accuracy")
                if figures.get(metric) is not None
            ]
        return found


def _of_epoch(epoch: Mapping[str, Any]) -> list[Scalar]:
    when = epoch.get("unix_time", STARTED)  # earlier versions kept none
    found = []
    for name, value in epoch.items():
        if name not in ("epoch", "unix_time") and value is not None:
            split = "validation" if name.startswith(PREFIXES["validation"]) else "train"
            found.append(Scalar(split, name.removeprefix(PREFIXES[split]), epoch["epoch"], value, when))
    return found
