"""Showing a run or a scoring elsewhere while it is made: in TensorBoard, on an MLflow server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from mnist_ray.config import RunConfig, ScoreConfig, TrainConfig
from mnist_ray.console import Console, print_place
from mnist_ray.errors import Interrupted
from mnist_ray.options import Group
from mnist_ray.runs.folder import RunFolder
from mnist_ray.runs.records import FinishedRecord
from mnist_ray.storage.location import Location
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
    data = {"data": config.data} if isinstance(config, RunConfig) else {"shards": config.shards}
    trackers: list[Tracker] = [TensorBoard(folder.tensorboard)] if config.tensorboard else []
    if place := mlflow_place(config):
        trackers.append(MLflowRun(folder, *place, data | config.fingerprint() | {"num_workers": config.num_workers}))
    known = _of_run(folder) if trackers and folder.metrics.exists() else Snapshot()
    with _followed(trackers, known, console) as show:
        yield lambda epochs: show(Snapshot(epochs))
        if trackers:
            show(_of_run(folder))
    for tracker in trackers:
        if shown := tracker.place:
            print_place(*shown, console)


@contextmanager
def tracked_output(
    config: ScoreConfig, place: Location, console: Console
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """The same for what the block scores into `place`. Yields what takes its metrics, once the report is there."""
    tracker = None
    if mlflow := mlflow_place(config):
        tracker = MLflowRun(RunFolder(place), *mlflow, _chosen(config), shown_as=Location.parse(config.output))
    with _followed([tracker] if tracker else [], Snapshot(), console) as show:
        yield lambda metrics: show(Snapshot(metrics=metrics))
    if tracker and (shown := tracker.place):
        console.result("{:<13}{}".format(*shown))


def _chosen(config: ScoreConfig) -> dict[str, Any]:
    """The input, the model, and what else was given of how images are found and computed."""
    chosen = {}
    for option in config.options():
        value = getattr(config, option.name)
        if option.rules.group in (None, Group.REQUIRED, Group.DATA, Group.MODEL) and value != option.default:
            chosen[option.name] = value
    return chosen


@contextmanager
def _followed(trackers: Sequence[Tracker], known: Snapshot, console: Console) -> Iterator[Callable[[Snapshot], None]]:
    """Have trackers follow what the block makes. known: what there is before it. Yields what takes later snapshots."""
    followers = [Follower(each, known, console.warn) for each in trackers]

    def show(snapshot: Snapshot) -> None:
        for follower in followers:
            follower.show(snapshot)

    try:
        yield show
    except BaseException as error:
        status = "KILLED" if isinstance(error, Interrupted | KeyboardInterrupt) else "FAILED"
        _end(followers, status, _FAILED_SECONDS, console)
        raise
    with console.waiting("waiting until the result is logged") if followers else nullcontext():
        _end(followers, "FINISHED", _FINISHED_SECONDS, console)


def _of_run(folder: RunFolder) -> Snapshot:
    metrics = read_checked(folder.metrics, FinishedRecord, "restore it, or use --fresh or another --name")
    return Snapshot(metrics["train"]["epochs"], metrics)


def _end(followers: Sequence[Follower], status: str, seconds: float, console: Console) -> None:
    for follower in followers:
        if warning := follower.end(status, seconds):
            console.warn(warning)
