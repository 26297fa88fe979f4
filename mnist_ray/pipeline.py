"""The whole job: shard → train → score → metrics → report. Whoever reads `run` knows the product."""

from __future__ import annotations

from typing import Any

from mnist_ray import STARTED
from mnist_ray.cluster.connect import preflight
from mnist_ray.config import RunConfig, ScoreConfig, ShardConfig, TrainConfig
from mnist_ray.console import Console, print_shapes
from mnist_ray.models.build import check_architecture
from mnist_ray.runs.folder import RunFolder
from mnist_ray.scoring.pool import ActorPool
from mnist_ray.scoring.task import Settings
from mnist_ray.sources.base import Reading
from mnist_ray.sources.formats.shards import Manifest, ShardedSource
from mnist_ray.sources.open import open_source
from mnist_ray.steps.begin import connected, digest_of, fingerprint_of, print_what_is_there
from mnist_ray.steps.exclusive import check_destination, hold_output, hold_run
from mnist_ray.steps.metrics import Clock, dataset_metrics, output_metrics, scoring_metrics
from mnist_ray.steps.result import conclude, prepare_in_background, report_output, show_finished
from mnist_ray.steps.score import ScoringInput, evaluate_untrained, log_to, num_actors_for, score_split
from mnist_ray.steps.shard import shard_images
from mnist_ray.steps.track import tracked, tracked_output
from mnist_ray.steps.train import BackgroundTraining, training_job
from mnist_ray.storage.location import Location
from mnist_ray.training.job import recipe_of


def run(config: RunConfig, console: Console, began: float = STARTED) -> dict[str, Any]:
    """`mnist-ray run`: the whole job. Returns the content of metrics.json.

    A finished run is shown; an unfinished one continues from what is committed.
    """
    source = open_source(str(config.data), Reading.of(config, notify=console.print))
    source.require_training()
    check_architecture(config.architecture)
    folder = RunFolder.at(config.storage, config.name)
    fingerprint = fingerprint_of(config, data=digest_of(source, console))
    with (
        hold_run(folder, config, fingerprint, recipe_of(config, source), console) as (record, guard),
        tracked(config, folder, console) as show,
    ):
        if folder.metrics.exists():
            return show_finished(folder, console)
        clock = Clock.started(began, record, folder, console)
        print_shapes(source, console)
        print_what_is_there(folder, config, console)
        prepare_in_background(trains=True)
        workers, cpus = config.worker_range()[0], config.cpus_per_worker
        with (
            connected(config, console, clock, record, folder.root, workers=workers, cpus_per_worker=cpus) as ray,
            ActorPool(
                num_actors_for(config, source, source.splits["test"], ray), num_cpus=0, **log_to(folder.root, console)
            ) as actors,
        ):
            manifest = shard_images(source, folder.shards, config.num_shards, ray, console, record, require_labels=True)
            clock.lap("shard")
            record.update(phase="train", epoch=0)
            with record.lent():  # to rank 0
                job = training_job(config, manifest, folder.shards, folder, ray, guard, keeps_untrained=True)
                test = ShardedSource.open(folder.shards)
                with BackgroundTraining(job, console, show) as training:
                    before = evaluate_untrained(actors, training.untrained(), manifest, test, console)
                    trained = training.result()
            clock.lap("train")
            scored = score_split(
                actors, folder.model, test, "test", folder.predictions, config.max_bad, console, record,
                Settings(architecture=config.architecture),
            )  # fmt: skip
            clock.lap("score")
        metrics = {
            "dataset": dataset_metrics(manifest),
            "train": trained,
            "before": before.summary(),
            "after": scored.tally.summary(detailed=True),
            "score": scoring_metrics(scored),
        }
        return conclude(folder, metrics, clock, ray, console)


def shard(config: ShardConfig, console: Console, began: float = STARTED) -> Manifest:
    """`mnist-ray shard`: images → Parquet shards."""
    destination = Location.parse(config.destination)
    check_destination(destination, "DEST", [str(config.source)], marker="dataset.json", alone=True)
    preflight(config)
    source = open_source(str(config.source), Reading.of(config, notify=console.print))
    source.require_sharding()
    destination.check_writable()
    print_shapes(source, console)
    clock = Clock(began)
    with (
        hold_output(destination, "choose another DEST", console) as (_, record),
        connected(config, console, clock, record, destination) as ray,
    ):
        manifest = shard_images(source, destination, config.num_shards, ray, console, record, require_labels=False)
        record.update(phase="done")
        record.close()
    return manifest


def train(config: TrainConfig, console: Console, began: float = STARTED) -> dict[str, Any]:
    """`mnist-ray train`: the same run's folder as `run` makes, up to the model."""
    shards = Location.parse(config.shards)
    manifest = Manifest.load(shards)
    manifest.require_train_split(shards)
    check_architecture(config.architecture)
    folder = RunFolder.at(config.storage, config.name)
    fingerprint = fingerprint_of(config, data=manifest.digest, num_shards=len(manifest.shards["train"]))
    with (
        hold_run(folder, config, fingerprint, recipe_of(config, manifest), console) as (record, guard),
        tracked(config, folder, console) as show,
    ):
        if folder.metrics.exists():
            return show_finished(folder, console)
        clock = Clock.started(began, record, folder, console)
        print_shapes(ShardedSource.open(shards), console)
        print_what_is_there(folder, config, console)
        prepare_in_background(trains=True)
        workers, cpus = config.worker_range()[0], config.cpus_per_worker
        with connected(config, console, clock, record, folder.root, workers=workers, cpus_per_worker=cpus) as ray:
            record.update(phase="train", epoch=0)
            with record.lent():  # to rank 0
                job = training_job(config, manifest, shards, folder, ray, guard)
                with BackgroundTraining(job, console, show) as training:
                    trained = training.result()
            clock.lap("train")
        return conclude(folder, {"dataset": dataset_metrics(manifest), "train": trained}, clock, ray, console)


def score(config: ScoreConfig, console: Console, began: float = STARTED) -> dict[str, Any]:
    """`mnist-ray score`: predictions for any number of images."""
    output, model = Location.parse(config.output), Location.parse(config.model)
    preflight(config)
    scoring = ScoringInput.open(config, model, output, console)
    settings = scoring.settings
    clock = Clock(began)
    prepare_in_background(trains=False)
    with (
        hold_output(output, "choose another --output", console, scoring.job) as (place, record),
        tracked_output(config, place, console) as show,
        connected(config, console, clock, record, place) as ray,
    ):
        num_actors = num_actors_for(config, scoring.source, scoring.images, ray)
        most = config.num_actors or int(ray.cpus)
        cpus = min(1.0, ray.cpus / num_actors)
        reporting = log_to(place, console)
        with ActorPool(num_actors, most=most, num_cpus=cpus, engine=settings.engine, **reporting) as actors:
            source, split = scoring.at(place)
            if place != output:
                console.print(f"{output} holds another job's predictions; {place} will replace it when it is complete")
            scored = score_split(
                actors, model, source, split, place, config.max_bad, console, record, settings, scoring.known.sha256
            )
            clock.lap("score")
        metrics = output_metrics(scoring.config, source, scored, ray, clock)
        (place / "metrics.json").write_json(metrics)
        report_output(place, output.name, source, split, console)
        show(metrics)
        if scored.tally.num_seen:
            console.result(f"{'after':<13}{scored.tally.line}")
    console.result(f"predictions  {output}")
    if (output / "report.html").is_file():
        console.result(f"report       {output / 'report.html'}")
    return metrics
