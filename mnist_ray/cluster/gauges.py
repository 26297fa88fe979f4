"""The progress of a run as Ray's metrics, which Prometheus scrapes from each node. Ray puts `ray_` before the names.

deploy/monitoring/ has a dashboard and alerts made of these names; a test compares them.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from typing import Any

from mnist_ray.sources.meter import bytes_read

PHASES = ("start", "shard", "train", "score", "done")

GAUGES = {
    "phase": "1 for the phase that a run is in, 0 for the others",
    "done": "shards that are written, images of this epoch, or images that are scored or in quarantine",
    "total": "of the same",
    "images_per_second": "in training of this epoch, in scoring of this command",
    "seconds_left": "at the pace of the last half minute; of training: of all epochs",
    "epoch": "epochs that are finished",
    "restarts": "how often the training was started again",
    "step_milliseconds": "of training, in this epoch",
    "loss": "of this epoch",
    "accuracy": "of this epoch",
    "quarantined": "images that could not be scored",
}
"""Each gauge of a run, `mnist_ray_…` with the labels `run` and `phase`, and what it counts."""

COUNTERS = {"bytes_read": "of images, as they are stored: by sharding tasks, train workers and scoring actors"}
"""Each counter, with the label `run`. Every process has its own, and Prometheus calls it `…_total`."""

_FIELDS = {"images_per_second": "per_second"}  # of the progress record, where they are called otherwise


class Gauges:
    """The gauges of one run, of the process that writes its progress record."""

    def __init__(self, run: str) -> None:
        """Ray must be connected."""
        from ray.util.metrics import Gauge

        self._run = run
        self._gauges = {
            name: Gauge(f"mnist_ray_{name}", description=words, tag_keys=("run", "phase"))
            for name, words in GAUGES.items()
        }

    def show(self, fields: Mapping[str, Any]) -> None:
        """Set the gauges to a progress record. What it does not have keeps its value."""
        now = str(fields.get("phase"))
        for phase in PHASES:
            self._set("phase", float(phase == now), phase)
        for name in GAUGES.keys() - {"phase"}:
            value = fields.get(_FIELDS.get(name, name))
            if value is not None:
                self._set(name, float(value), now)

    def _set(self, name: str, value: float, phase: str) -> None:
        self._gauges[name].set(value, {"run": self._run, "phase": phase})


class BytesRead:
    """The counter of the bytes that this process reads for a run."""

    def __init__(self, run: str) -> None:
        self._run, self._shown, self._lock = run, bytes_read(), threading.Lock()

    def show(self) -> None:
        """Add what was read since the last time. Ray must be connected. An actor's threads may call it at once."""
        with self._lock:
            new = bytes_read() - self._shown
            self._shown += new
        if new:  # Ray refuses to add 0
            _counter("bytes_read").inc(new, {"run": self._run})


@functools.cache
def _counter(name: str) -> Any:
    from ray.util.metrics import Counter

    return Counter(f"mnist_ray_{name}", description=COUNTERS[name], tag_keys=("run",))
