"""Showing a run elsewhere while it is made: in TensorBoard, on an MLflow server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mnist_ray.config import RunConfig, TrainConfig
from mnist_ray.console import Console, print_place
from mnist_ray.errors import Interrupted
from mnist_ray.runs.folder import RunFolder
from mnist_ray.runs.records import FinishedRecord
from mnist_ray.storage.records import read_checked
from mnist_ray.tracking.follower import Follower, Tracker
from mnist_ray.tracking.mlflow_place import mlflow_place
from mnist_ray.tracking.mlflow_run import MLflowRun
from mnist_ray.tracking.scalars import Snapshot
from mnist_ray.tracking.tensorboard import TensorBoard

Epochs = Sequence[Mapping[str, Any]]

_FINISHED_SECONDS = 300.0
"""How long a tracker may take for the model and the report …"""

_FAILED_SECONDS = 10.0
"""… and for how a run has ended that did not end well."""


@contextmanager
def tracked(config: RunConfig | TrainConfig, folder: RunFolder, console: Console) -> Iterator[Callable[[Epochs], None]]:
    """Show a run in the trackers that were asked for, while the block makes it. Yields what takes the finished epochs.

    A run that is finished at the end is shown as its metrics.json has it. No tracker can make the run fail.
    """
    trackers = _trackers(config, folder)
    known = _finished(folder) if trackers and folder.metrics.exists() else Snapshot()
    followers = [Follower(each, known, console.warn) for each in trackers]

    def show(epochs: Epochs) -> None:
        for follower in followers:
            follower.show(Snapshot(epochs))

    try:
        yield show
    except BaseException as error:
        status = "KILLED" if isinstance(error, Interrupted | KeyboardInterrupt) else "FAILED"
        _end(followers, status, _FAILED_SECONDS, console)
        raise
    if followers:
        snapshot = _finished(folder)
        for follower in followers:
            follower.show(snapshot)
        with console.waiting("waiting until the result is logged"):
            _end(followers, "FINISHED", _FINISHED_SECONDS, console)
        for tracker in trackers:
            if place := tracker.place:
                print_place(*place, console)


def _finished(folder: RunFolder) -> Snapshot:
    metrics = read_checked(folder.metrics, FinishedRecord, "restore it, or use --fresh or another --name")
    return Snapshot(metrics["train"]["epochs"], metrics)


def _trackers(config: RunConfig | TrainConfig, folder: RunFolder) -> list[Tracker]:
    trackers: list[Tracker] = []
    if config.tensorboard:
        trackers.append(TensorBoard(folder.tensorboard))
    if place := mlflow_place(config):
        data = {"data": config.data} if isinstance(config, RunConfig) else {"shards": config.shards}
        trackers.append(MLflowRun(folder, *place, data | config.fingerprint() | {"num_workers": config.num_workers}))
    return trackers


def _end(followers: Sequence[Follower], status: str, seconds: float, console: Console) -> None:
    for follower in followers:
        if warning := follower.end(status, seconds):
            console.warn(warning)
