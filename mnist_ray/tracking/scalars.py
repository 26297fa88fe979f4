"""What a run or a scoring has to show, by epoch: the one form of it that all trackers take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from mnist_ray import STARTED

PREFIXES = {"train": "", "validation": "val_", "test": "test_", "score": "score_"}
"""Of names, by split: as Keras has them, and for the figures of the scoring itself."""

_RESULTS = ("loss", "accuracy", "f1_micro", "f1_macro")
_FIGURES = ("images", "quarantined", "seconds", "images_per_second")
_SETTINGS = ("engine", "precision", "pixels")


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
    """What is known of a run or a scoring at a time. It only grows, unless an epoch must be trained again."""

    epochs: Sequence[Mapping[str, Any]] = ()
    """Those of metrics.json; none of a scoring."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """metrics.json, once all is done."""

    def scalars(self) -> list[Scalar]:
        """Those of the epochs; of the test images, before and after the training; of the scoring. What is not finite is
        left out."""
        found = [scalar for epoch in self.epochs for scalar in _of_epoch(epoch)]
        last, end = len(self.epochs), self._finished()
        trained = found[-1].unix_time if found else end
        if found:
            begun = found[0].unix_time - (self.epochs[0].get("seconds") or 0.0)
            found += self._of_phase("before", "test", _RESULTS, 0, begun)
        return [
            *found,
            *self._of_phase("after", "test", _RESULTS, last, trained),
            *self._of_phase("score", "score", _FIGURES, last, end),
        ]

    def _of_phase(self, phase: str, split: str, names: Sequence[str], epoch: int, when: float) -> list[Scalar]:
        figures = self.metrics.get(phase) or {}
        return [Scalar(split, name, epoch, figures[name], when) for name in names if figures.get(name) is not None]

    def _finished(self) -> float:
        text = (self.metrics.get("environment") or {}).get("finished")
        return datetime.fromisoformat(text).timestamp() if text else STARTED

    def settings(self) -> dict[str, str]:
        """What scored, of which the options leave some open."""
        score, model = (self.metrics.get(phase) or {} for phase in ("score", "model"))
        found = {name: score.get(name) for name in _SETTINGS} | {"model_sha256": model.get("sha256")}
        return {name: value for name, value in found.items() if value is not None}


def _of_epoch(epoch: Mapping[str, Any]) -> list[Scalar]:
    when = epoch.get("unix_time", STARTED)  # earlier versions kept none
    found = []
    for name, value in epoch.items():
        if name not in ("epoch", "unix_time") and value is not None:
            split = "validation" if name.startswith(PREFIXES["validation"]) else "train"
            found.append(Scalar(split, name.removeprefix(PREFIXES[split]), epoch["epoch"], value, when))
    return found
