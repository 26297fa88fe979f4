"""The training step: Ray Train in the background, its epochs on the console."""

from __future__ import annotations

from concurrent.futures import Future, wait
from threading import Thread
from typing import Any

from mnist_ray.cluster.connect import Connection
from mnist_ray.config import RunConfig, TrainConfig
from mnist_ray.console import Console, epoch_line
from mnist_ray.runs.folder import RunFolder
from mnist_ray.runs.progress import owner
from mnist_ray.sources.formats.shards import Manifest
from mnist_ray.storage.location import Location
from mnist_ray.training.job import Job, recipe_of
from mnist_ray.training.trainer import train


class BackgroundTraining:
    """Ray Train in a thread of its own, which leaves the main thread free for signals and the console."""

    def __init__(self, job: Job, console: Console) -> None:
        self._job, self._console, self._done = job, console, Future[dict[str, Any]]()
        Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._done.set_result(train(self._job))
        except BaseException as error:
            self._done.set_exception(error)

    def result(self) -> dict[str, Any]:
        """Tell the epochs as progress.json shows them, until the training ends."""
        job, told, restarts = self._job, 0, 0
        rows = job.manifest.counts["train"] - round(job.manifest.counts["train"] * job.config.validation_fraction)
        while told < job.config.epochs:
            with self._console.bar(f"epoch {told + 1}/{job.config.epochs}", rows) as bar:
                while True:
                    wait([self._done], 0.1)
                    progress = self._progress()
                    if progress.get("restarts", 0) != restarts:
                        restarts = progress["restarts"]
                        bar.stop()
                        told = max(told, progress["resumed_from_epoch"] or 0)
                        for warning in progress["warnings"]:
                            self._console.print(f"warning: {warning}")
                        self._console.print(f"going on from the last checkpoint: {told} epochs finished")
                        break
                    if len(finished := progress.get("epochs", ())) > told:
                        bar.finish(epoch_line(finished[told], finished[told]["images_per_second"]))
                        told += 1
                        break
                    if self._done.done():
                        return self._done.result()
                    if progress.get("loss") is not None:
                        bar.update(progress["done"], epoch_line(progress, progress["per_second"]))
        return self._done.result()

    def _progress(self) -> dict[str, Any]:
        try:
            record: dict[str, Any] = (self._job.run / "progress.json").read_json()
        except FileNotFoundError:
            return {}
        return record if record.get("phase") == "train" else {}


def training_job(
    config: RunConfig | TrainConfig, manifest: Manifest, shards: Location, folder: RunFolder, ray: Connection
) -> Job:
    return Job(
        config=config,
        recipe=recipe_of(config, manifest),
        manifest=manifest,
        shards=shards,
        run=folder.root,
        owner=owner(),
        is_local=ray.is_local,
    )
