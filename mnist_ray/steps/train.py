"""The training step: Ray Train in the background, its epochs on the console."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from threading import Event, Thread
from types import TracebackType
from typing import Any

from mnist_ray.cluster.capacity import LOST_SECONDS, Shortage
from mnist_ray.cluster.connect import Connection
from mnist_ray.cluster.ray_private import published
from mnist_ray.cluster.ray_train_private import end_training, last_loss
from mnist_ray.config import RunConfig, TrainConfig
from mnist_ray.console import Bar, Console, Waiting, epoch_line
from mnist_ray.errors import counted
from mnist_ray.models.build import Recipe
from mnist_ray.models.engines.openvino import ConvertedClassifier
from mnist_ray.models.files import load_untrained
from mnist_ray.runs.folder import RunFolder
from mnist_ray.runs.progress import owner
from mnist_ray.sources.formats.shards import Manifest
from mnist_ray.storage.lease import Guard
from mnist_ray.storage.location import Location
from mnist_ray.training.job import Job, recipe_of

_ENDING_SECONDS = 10.0
"""How long an interrupted training may take to end."""


class BackgroundTraining:
    """Ray Train in a thread of its own, which leaves the main thread free for signals and the console.

    Its block ends the training, unless that is done.
    """

    def __init__(self, job: Job, console: Console, show: Callable[[Sequence[dict[str, Any]]], None]) -> None:
        """show: is given the finished epochs each time that there are more."""
        self._job, self._console, self._show, self._done = job, console, show, Future[dict[str, Any]]()
        self._restarts, self._ended = 0, Event()
        self._noted = dict[str, Any]()
        self._loss: tuple[float, str] | None = None
        self._waiting = self._wait("start")
        fewest = job.config.worker_range()[0]
        self._shortage = Shortage(fewest, job.config.cpus_per_worker, job.patience, console.warn)
        Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            from mnist_ray.training.trainer import train  # and with it Ray Train, which takes a second

            if self._ended.is_set():
                return
            self._done.set_result(train(self._job, self._ended))
        except BaseException as error:
            self._done.set_exception(error)

    def __enter__(self) -> BackgroundTraining:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.end()
        self._ended.set()
        if self._job.is_local:  # then Ray ends, too, and with it all of its processes
            return
        deadline = time.monotonic() + _ENDING_SECONDS
        while not wait([self._done], 0.1).done and time.monotonic() < deadline:
            end_training(self._job.channel)  # again: it may not have been there yet

    def _wait(self, what: str) -> Waiting:
        """Until the first step is done."""
        return self._console.waiting(f"train workers {what}: they import TensorFlow and connect to each other")

    def untrained(self) -> Recipe | ConvertedClassifier:
        """The model that the training begins with, as soon as rank 0 has it; its recipe, where it is not converted.

        Raises what the training has ended with meanwhile.
        """
        job = self._job
        while not published(job.channel) and not self._is_over():
            pass
        if self._done.done():
            self._done.result()
        found = load_untrained(job.recipe, job.run / "model")
        return found if isinstance(found, ConvertedClassifier) else job.recipe

    def result(self) -> dict[str, Any]:
        """Show each epoch as rank 0 publishes it, until the training ends. Returns what it gave, or raises."""
        job, shown = self._job, 0
        rows = job.manifest.counts["train"] - round(job.manifest.counts["train"] * job.config.validation_fraction)
        while shown < job.config.epochs:
            with self._console.bar(f"epoch {shown + 1}/{job.config.epochs}", rows) as bar:
                shown = self._follow(bar, shown)
        self._waiting.end()
        return self._done.result()

    def _is_over(self) -> bool:
        """Whether the training has ended, after a moment's wait. Raises RetryableError where it has lost its room."""
        if not self._job.is_local:
            self._shortage.check()
        return bool(wait([self._done], 0.1).done)

    def _follow(self, bar: Bar, shown: int) -> int:
        """Move the bar until an epoch ends, or the training ends or restarts. Returns the epochs that were shown."""
        while True:
            is_over = self._is_over()  # asked first: then nothing that was published is missed
            progress = published(self._job.channel)
            if progress.get("restarts", 0) != self._restarts:
                bar.stop()
                return self._show_restart(progress, shown)
            self._note_loss()
            self._note(progress)
            if len(finished := progress.get("epochs", ())) > shown:
                bar.finish(epoch_line(finished[shown], finished[shown]["images_per_second"]))
                self._console.event("epoch", **finished[shown])
                self._show(finished)
                return shown + 1
            if is_over:
                return self._job.config.epochs
            if progress.get("loss") is not None:
                self._waiting.end()
                if progress["done"] < bar.total:  # else it is still of the epoch before, or its line is about to come
                    line = epoch_line(progress, progress["per_second"])
                    bar.update(progress["done"], line, progress.get("seconds_left"))

    def _note_loss(self) -> None:
        """Say why workers were lost as soon as Ray Train knows; they start again after that."""
        loss = last_loss(self._job.channel)
        if loss and loss != self._loss:
            self._console.event("lost", message=loss[1])
            self._console.warn(f"a train worker was lost: {loss[1]}; all start again from the last checkpoint")
        self._loss = loss

    def _note(self, progress: dict[str, Any]) -> None:
        """Note who trains, and checkpoints within an epoch."""
        before, self._noted = self._noted, progress
        workers, checkpoint = progress.get("num_workers"), progress.get("checkpoint")
        if workers and workers != before.get("num_workers"):
            self._console.event("workers", workers=workers)
        if checkpoint and checkpoint[1] and checkpoint != before.get("checkpoint"):
            self._console.event("checkpoint", epochs=checkpoint[0], step=checkpoint[1])

    def _show_restart(self, progress: dict[str, Any], shown: int) -> int:
        self._restarts, self._noted = progress["restarts"], {}
        for warning in progress["warnings"]:
            self._console.warn(warning)
        self._waiting.end()
        self._waiting = self._wait("start again")
        shown = max(shown, progress["resumed_from_epoch"] or 0)
        self._console.event("restart", restarts=self._restarts, epochs=shown)
        self._console.print(f"continuing from the last checkpoint: {counted(shown, 'epoch')} finished")
        return shown


def training_job(
    config: RunConfig | TrainConfig, manifest: Manifest, shards: Location, folder: RunFolder, ray: Connection,
    guard: Guard | None, *, keeps_untrained: bool = False,
) -> Job:  # fmt: skip
    return Job(
        config=config,
        recipe=recipe_of(config, manifest),
        manifest=manifest,
        shards=shards,
        run=folder.root,
        owner=owner(),
        guard=guard,
        channel=secrets.token_hex(8),
        keeps_untrained=keeps_untrained,
        is_local=ray.is_local,
        patience=config.wait_for_resources or LOST_SECONDS,
    )
