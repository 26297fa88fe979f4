"""The whole job: shard → train → score → metrics → report. Whoever reads `run` knows the product."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from importlib import import_module
from threading import Thread
from typing import Any

from mnist_ray import STARTED, cluster, overwrite, summary
from mnist_ray.config import RunConfig, ScoreConfig, ShardConfig, TrainConfig
from mnist_ray.driver import sole_driver
from mnist_ray.errors import InputError, TooManyBadImagesError, UserError
from mnist_ray.inputs import open_inputs
from mnist_ray.metrics import Tally
from mnist_ray.model import check_architecture, digest
from mnist_ray.plan import PLAN, sweep
from mnist_ray.progress import Narrator, ProgressRecord, owner
from mnist_ray.readers.pixels import Conversion
from mnist_ray.report import write_report
from mnist_ray.runs import RunFolder
from mnist_ray.scoring import Scored, Scorers
from mnist_ray.sharding import Manifest, ShardedSource, write_shards
from mnist_ray.sources import Reading, Source, open_source
from mnist_ray.storage import Location
from mnist_ray.training import Job, recipe, train
from mnist_ray.worker import Settings

_FILES = "_files.arrow"

_VALUES_PER_ACTOR = 100_000 * 28 * 28  # of pixels: a scoring actor takes seconds to start; fewer are sooner done by one
_DECODED = 10  # a value of a PNG or JPEG costs as many that are stored as they are


def run(config: RunConfig, tell: Narrator) -> dict[str, Any]:
    """The main job; metrics.json comes back. A finished run is shown, an unfinished one goes on where it was."""
    source = open_source(config.data)
    source.require_training()
    check_architecture(config.architecture)
    folder = RunFolder.at(config.storage, config.name)
    with _claimed(folder, config, {"data": source.digest(), **config.fingerprint()}, tell) as record:
        if folder.metrics.exists():
            return _show_finished(folder, tell)
        clock = _Clock()
        record.update(phase="start")
        tell.say(f"run {config.name!r} -> {folder.root}")
        summary.tell_shapes(source, tell)
        _import_meanwhile("pandas", "jinja2", "PIL.Image")
        workers, cpus = config.worker_range()[0], config.cpus_per_worker
        with (
            cluster.connect(config, workers=workers, cpus_per_worker=cpus) as ray,
            Scorers(_num_actors(config.num_actors, source, source.splits["test"], ray), num_cpus=0) as scorers,
        ):
            tell.say(f"{ray.label}, up after {clock.lap('start'):.1f} s")
            manifest = _shard(source, folder.shards, config.num_shards, ray, tell, record, require_labels=True)
            clock.lap("shard")
            training = _Training(_job(config, manifest, folder.shards, folder, ray), tell)
            test = ShardedSource.open(folder.shards)
            before = _untrained(scorers, config, manifest, test, tell)
            trained = training.result()
            record.leave()
            clock.lap("train")
            record = ProgressRecord(folder.progress, owner())
            scored = _score(
                scorers, folder.model, test, "test", folder.predictions, config.max_bad, tell, record, Settings()
            )
            clock.lap("score")
        metrics = {
            "dataset": summary.dataset(manifest),
            "train": trained,
            "before": before.summary(),
            "after": scored.tally.summary(detailed=True),
            "score": summary.scoring(scored),
        }
        return _conclude(folder, metrics, clock, ray, tell)


def shard(config: ShardConfig, tell: Narrator) -> Manifest:
    """`mnist-ray shard`: images → Parquet shards."""
    source = open_source(config.source)
    destination = Location.parse(config.destination)
    cluster.check(config)
    destination.check_writable()
    summary.tell_shapes(source, tell)
    with _alone(destination, "choose another DEST") as (_, record), cluster.connect(config) as ray:
        manifest = _shard(source, destination, config.num_shards, ray, tell, record, require_labels=False)
        record.update(phase="done")
        record.close()
    return manifest


def training(config: TrainConfig, tell: Narrator) -> dict[str, Any]:
    """`mnist-ray train`: the same run's folder as `run` makes, up to the model."""
    shards = Location.parse(config.shards)
    manifest = Manifest.load(shards)
    if not manifest.counts.get("train"):
        raise InputError(
            f"{shards} holds no train shards; `mnist-ray shard` makes them where a source has a train split"
        )
    check_architecture(config.architecture)
    folder = RunFolder.at(config.storage, config.name)
    fingerprint = {"data": manifest.digest, "num_shards": len(manifest.shards["train"]), **config.fingerprint()}
    with _claimed(folder, config, fingerprint, tell) as record:
        if folder.metrics.exists():
            return _show_finished(folder, tell)
        clock = _Clock()
        record.update(phase="start")
        tell.say(f"run {config.name!r} -> {folder.root}")
        workers, cpus = config.worker_range()[0], config.cpus_per_worker
        with cluster.connect(config, workers=workers, cpus_per_worker=cpus) as ray:
            tell.say(f"{ray.label}, up after {clock.lap('start'):.1f} s")
            trained = _Training(_job(config, manifest, shards, folder, ray), tell).result()
            clock.lap("train")
        return _conclude(folder, {"dataset": summary.dataset(manifest), "train": trained}, clock, ray, tell)


def score(config: ScoreConfig, tell: Narrator) -> dict[str, Any]:
    """`mnist-ray score`: predictions for any number of images."""
    output, model = Location.parse(config.output), Location.parse(config.model)
    settings = Settings(
        limit=config.limit, pixels=config.pixels, top_k=config.top_k, precision=config.precision,
        jit=None if config.jit == "auto" else config.jit == "on", batch_size=config.batch_size,
        retry_quarantined=config.retry_quarantined,
    )  # fmt: skip
    model_sha256 = digest(model)  # is there and readable
    cluster.check(config)
    kept = overwrite.beside(output)[0] if config.overwrite else output
    source, split = open_inputs(config.input, config.split, _reading(config, kept, tell))
    output.check_writable()
    job = None
    if config.overwrite:
        named = {"model_sha256": model_sha256, "input_digest": source.identity(), "split": split}
        job = named | settings.known()
    images = min(source.splits[split], config.limit or source.splits[split])
    clock = _Clock()
    with (
        _alone(output, "choose another --output", job) as (place, record),
        cluster.connect(config) as ray,
    ):
        num_actors = _num_actors(config.num_actors, source, images, ray)
        most = config.num_actors or int(ray.cpus)
        with Scorers(num_actors, most=most, num_cpus=min(1.0, ray.cpus / num_actors)) as scorers:
            tell.say(f"{ray.label}, up after {clock.lap('start'):.1f} s")
            if job and not (place == kept and (place / _FILES).exists()):  # what was listed beside is gone
                source, split = open_inputs(config.input, config.split, _reading(config, place, tell))
            if place != output:
                tell.say(f"{output} is another job's; {place} replaces it when it is whole")
            scored = _score(scorers, model, source, split, place, config.max_bad, tell, record, settings)
            clock.lap("score")
        metrics = _score_metrics(source, scored, ray, clock)
        (place / "metrics.json").write_json(metrics)
        if place != output:
            overwrite.replace(output, place)
    if scored.tally.num_seen:
        tell.say(f"after   {summary.told(scored.tally)}")
    tell.say(f"predictions  {output}")
    return metrics


# The steps.


def _import_meanwhile(*modules: str) -> None:
    """What the report will need, while Ray starts and this process only waits. None of it imports Ray."""
    Thread(target=lambda: [import_module(module) for module in modules], daemon=True).start()


@contextmanager
def _claimed(
    folder: RunFolder, config: RunConfig | TrainConfig, fingerprint: dict[str, Any], tell: Narrator
) -> Iterator[ProgressRecord]:
    """The folder for this driver alone and this configuration alone; a permanent failure leaves a mark in it.

    The record of progress comes back, which beats until the workers keep it.
    """
    if config.fresh or not folder.is_finished(fingerprint):
        cluster.check(config, workers=config.worker_range()[0], cpus_per_worker=config.cpus_per_worker)
        config.require_shards(fingerprint["num_shards"])
    with folder.lock():
        for warning in folder.claim(config, fingerprint, fresh=config.fresh):
            tell.say(f"warning: {warning}")
        record = ProgressRecord(folder.progress, owner(), until="train")
        try:
            yield record
        except BaseException as error:
            _tidy(folder.predictions)
            if isinstance(error, InputError | TooManyBadImagesError):
                folder.mark_failed(error, fingerprint)
            raise
        finally:
            record.leave()


@contextmanager
def _alone(
    folder: Location, remedy: str, job: dict[str, Any] | None = None
) -> Iterator[tuple[Location, ProgressRecord]]:
    """The folder for this driver alone; where to write, and the record of progress.

    job: what `--overwrite` is to write; that is beside an output of another job.
    """
    with sole_driver(folder, remedy) as by_heartbeat:
        place = folder if job is None else overwrite.place(folder, job)
        record = ProgressRecord((folder if by_heartbeat else place) / "progress.json", owner())
        try:
            if by_heartbeat:
                record.update(phase="start")
                record.write()
            yield place, record
        except BaseException:
            _tidy(place)
            raise
        finally:
            record.leave()


def _tidy(output: Location) -> None:
    """Remove what actors were writing when they were ended. Where storage fails at it, the next start does it."""
    with suppress(UserError):
        sweep(output)


def _shard(
    source: Source, folder: Location, num_shards: int, ray: cluster.Connection, tell: Narrator,
    record: ProgressRecord | None = None, *, require_labels: bool,
) -> Manifest:  # fmt: skip
    began = time.perf_counter()
    num_tasks = max(1, min(num_shards, int(ray.cpus)))
    rows = sum(source.splits.values())
    with tell.bar("sharding", num_shards * len(source.splits)) as bar:

        def progress(done: int, total: int) -> None:
            bar.update(done, "shards")
            if record:
                record.update(phase="shard", done=done, total=total)

        manifest = write_shards(
            source,
            folder,
            num_shards,
            num_tasks=num_tasks,
            require_labels=require_labels,
            on_progress=progress,
        )
        shards = " + ".join(f"{len(shards)} {split}" for split, shards in manifest.shards.items())
        seconds = time.perf_counter() - began
        bar.finish(f"{num_tasks} tasks, {shards} shards, {rows:,} rows, {seconds:.1f} s")
    return manifest


def _untrained(scorers: Scorers, config: RunConfig, manifest: Manifest, test: Source, tell: Narrator) -> Tally:
    """What the model says before it has learnt anything."""
    untrained = recipe(config, manifest)
    first = test.read("test", 0, 1)
    logits, probabilities = scorers.look(untrained, first.images[0])
    tell.say(f"untrained, of test image 0 (a {manifest.classes[int(first.labels[0])]}):")
    tell.say(f"  logits         {summary.row(logits)}")
    tell.say(f"  probabilities  {summary.row(probabilities)}")
    before = scorers.evaluate(untrained, test, "test")
    tell.say(f"before  {summary.told(before)}")
    return before


class _Training:
    """Ray Train at work in a thread of its own, which leaves the main thread free for signals and the story."""

    def __init__(self, job: Job, tell: Narrator) -> None:
        self._job, self._tell, self._done = job, tell, Future[dict[str, Any]]()
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
            with self._tell.bar(f"epoch {told + 1}/{job.config.epochs}", rows) as bar:
                while True:
                    wait([self._done], 0.1)
                    progress = self._progress()
                    if progress.get("restarts", 0) != restarts:
                        restarts = progress["restarts"]
                        bar.stop()
                        told = max(told, progress["resumed_from_epoch"] or 0)
                        for warning in progress["warnings"]:
                            self._tell.say(f"warning: {warning}")
                        self._tell.say(f"going on from the last checkpoint: {told} epochs finished")
                        break
                    if len(finished := progress.get("epochs", ())) > told:
                        bar.finish(summary.epoch_line(finished[told], finished[told]["images_per_second"]))
                        told += 1
                        break
                    if self._done.done():
                        return self._done.result()
                    if progress.get("loss") is not None:
                        bar.update(progress["done"], summary.epoch_line(progress, progress["per_second"]))
        return self._done.result()

    def _progress(self) -> dict[str, Any]:
        try:
            record: dict[str, Any] = (self._job.run / "progress.json").read_json()
        except FileNotFoundError:
            return {}
        return record if record.get("phase") == "train" else {}


def _reading(config: ScoreConfig, output: Location, tell: Narrator) -> Reading:
    """A long listing is kept beside the output; once the plan is frozen, it is what the plan is of."""
    return Reading(
        id_column=config.id_column, label_column=config.label_column, image_column=config.image_column,
        convert=Conversion(config.size(), config.gray, offered=True), lenient=True, say=tell.say,
        list_file=output / _FILES, is_listed=(output / PLAN).exists(),
    )  # fmt: skip


def _score(
    scorers: Scorers, model: Location, source: Source, split: str, output: Location, max_bad: float, tell: Narrator,
    record: ProgressRecord, settings: Settings,
) -> Scored:  # fmt: skip
    """Predictions of a split, each image once."""
    total = min(source.splits[split], settings.limit or source.splits[split])
    began = time.perf_counter()
    with tell.bar("scoring", total) as bar:

        def progress(done: int, total: int) -> None:
            rate = done / (time.perf_counter() - began)
            record.update(phase="score", done=done, total=total, per_second=round(rate))
            bar.update(done, f"{rate:,.0f} images/s")

        try:
            scored = scorers.score(
                model, source, split, output, max_bad=max_bad, settings=settings, on_progress=progress
            )
            record.update(phase="done", done=total, total=total)
        finally:
            record.close()
        actors = f"{scored.num_actors} actor{'s' if scored.num_actors > 1 else ''}"
        bar.finish(
            f"{scored.scored:,} images by {actors} in {scored.seconds:.1f} s"
            f" ({scored.images_per_second:,.0f} images/s), {scored.quarantined:,} quarantined,"
            f" pixels {scored.plan.pixels}"
        )
    for note in scored.notes:
        tell.say(note)
    return scored


def _conclude(
    folder: RunFolder, metrics: dict[str, Any], clock: _Clock, ray: cluster.Connection, tell: Narrator
) -> dict[str, Any]:
    """The result and its report. A run that has metrics.json is finished."""
    metrics["environment"] = summary.environment(ray)
    metrics["seconds"] = clock.seconds | {"total": clock.total()}
    folder.metrics.write_json(metrics)
    write_report(folder.root)
    clock.lap("report")
    metrics["seconds"] = clock.seconds | {"total": clock.total()}
    folder.metrics.write_json(metrics)
    summary.tell_result(folder, metrics, tell)
    return metrics


def _show_finished(folder: RunFolder, tell: Narrator) -> dict[str, Any]:
    tell.say(f"run {folder.root.name!r} is finished; --fresh or another --name runs anew. Its result:")
    metrics: dict[str, Any] = folder.metrics.read_json()
    if not folder.report.exists():
        write_report(folder.root)
    summary.tell_result(folder, metrics, tell)
    return metrics


class _Clock:
    """The seconds of each phase; the first began with the process."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("start", "shard", "train", "score", "report"), 0.0)
        self._last = STARTED

    def lap(self, phase: str) -> float:
        now = time.time()
        self.seconds[phase] = round(now - self._last, 3)
        self._last = now
        return self.seconds[phase]

    def total(self) -> float:
        return round(time.time() - STARTED, 3)


def _job(
    config: RunConfig | TrainConfig, manifest: Manifest, shards: Location, folder: RunFolder, ray: cluster.Connection
) -> Job:
    return Job(
        config=config,
        recipe=recipe(config, manifest),
        manifest=manifest,
        shards=shards,
        run=folder.root,
        owner=owner(),
        is_local=ray.is_local,
    )


def _num_actors(asked: int | None, source: Source, images: int, ray: cluster.Connection) -> int:
    values = images * math.prod(source.image_shape) * (_DECODED if source.is_encoded else 1)
    return asked or max(1, min(int(ray.cpus), images, -(-values // _VALUES_PER_ACTOR)))


def _score_metrics(source: Source, scored: Scored, ray: cluster.Connection, clock: _Clock) -> dict[str, Any]:
    """metrics.json of an output. Its classes are those of the model, in which the confusion is counted."""
    metrics: dict[str, Any] = {
        "dataset": {
            "name": source.name,
            "image_shape": list(source.image_shape),
            "classes": scored.plan.classes and list(scored.plan.classes),
        },
        "score": summary.scoring(scored),
    }
    if scored.tally.num_seen:
        metrics["after"] = scored.tally.summary(detailed=True)
    return metrics | {"environment": summary.environment(ray), "seconds": clock.seconds | {"total": clock.total()}}
