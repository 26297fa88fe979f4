"""What metrics.json keeps of each step, and the seconds of each phase."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from mnist_ray.cluster.connect import Connection
from mnist_ray.config import ScoreConfig
from mnist_ray.console import Console
from mnist_ray.report.formatting import without_secrets
from mnist_ray.runs.folder import RunFolder, versions
from mnist_ray.runs.progress import ProgressRecord
from mnist_ray.scoring.task import Scored
from mnist_ray.sources.base import Source
from mnist_ray.sources.formats.shards import Manifest
from mnist_ray.storage.location import Location


class Clock:
    """The seconds of each phase since a job began."""

    def __init__(self, began: float) -> None:
        """began: in seconds since the epoch."""
        self.seconds = dict.fromkeys(("start", "shard", "train", "score", "report"), 0.0)
        self.began = self._last = began

    @classmethod
    def started(cls, began: float, record: ProgressRecord, folder: RunFolder, console: Console) -> Clock:
        """The clock of a run that begins or goes on now, which the record and the console show."""
        record.update(phase="start")
        console.print(f"run {folder.root.name!r} -> {folder.root}")
        return cls(began)

    def lap(self, phase: str) -> float:
        now = time.time()
        self.seconds[phase] = round(now - self._last, 3)
        self._last = now
        return self.seconds[phase]

    def total(self) -> float:
        return round(time.time() - self.began, 3)


def dataset_metrics(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "train_images": manifest.counts.get("train", 0),
        "test_images": manifest.counts.get("test", 0),
        "image_shape": list(manifest.image_shape),
        "classes": list(manifest.classes),
    }


_CHOSEN = (
    "pixels_reason", "pixels_assumed", "engine_reason", "kind", "output_name", "output_layer", "thresholds"
)  # fmt: skip
"""Of the plan, what most scorings leave open."""


def scoring_metrics(scored: Scored) -> dict[str, Any]:
    plan = scored.plan
    return {
        "images": scored.images,
        "quarantined": scored.quarantined,
        "num_actors": scored.num_actors,
        "seconds": round(scored.seconds, 4),
        "images_per_second": round(scored.images_per_second, 1),
        "engine": plan.engine,
        "precision": plan.precision,
        "jit": plan.jit,
        "batch_size": plan.batch_size,
        "pixels": plan.pixels,
        **{name: value for name in _CHOSEN if (value := getattr(plan, name)) is not None},
        **(
            {"changed_by_precision": dict(zip(("predictions", "of"), plan.changed, strict=True))}
            if plan.changed
            else {}
        ),
    }


def environment(ray: Connection, clock: Clock) -> dict[str, Any]:
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "cpus": ray.cpus,
        "python": platform.python_version(),
        **{package.replace("-", "_"): version for package, version in versions().items()},
        "address": ray.address,
        "started": datetime.fromtimestamp(clock.began, UTC).isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def output_metrics(
    config: ScoreConfig, source: Source, scored: Scored, ray: Connection, clock: Clock
) -> dict[str, Any]:
    """metrics.json of an output. Its classes are the model's, by which the confusion is counted."""
    metrics: dict[str, Any] = {
        "dataset": {
            "name": source.name,
            "image_shape": list(source.image_shape),
            "classes": scored.plan.classes and list(scored.plan.classes),
        },
        "model": {"path": str(Location.parse(config.model)), "sha256": scored.plan.model_sha256},
        "score": scoring_metrics(scored),
        "config": {name: _public(value) for name, value in asdict(config).items()},
    }
    if scored.tally.num_seen:
        metrics["after"] = scored.tally.summary(detailed=True)
    return metrics | {"environment": environment(ray, clock), "seconds": clock.seconds | {"total": clock.total()}}


def _public(value: Any) -> Any:
    """An option without the password of a URI: an output is shown around."""
    if isinstance(value, tuple):
        return [_public(each) for each in value]
    return without_secrets(value) if isinstance(value, str) else value
