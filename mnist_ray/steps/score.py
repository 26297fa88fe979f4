"""The scoring steps: the untrained model's answers, and the predictions of a whole split."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

from mnist_ray.cluster.connect import Connection
from mnist_ray.config import ScoreConfig, Scoring
from mnist_ray.console import Console, number_row, print_remarks
from mnist_ray.errors import InputError, counted
from mnist_ray.models.build import Recipe, check_architecture
from mnist_ray.models.engines.openvino import ConvertedClassifier
from mnist_ray.models.inference import fitting_shape
from mnist_ray.models.labels import match_labels, name_classes, read_classes
from mnist_ray.models.outline import Outline, outline
from mnist_ray.models.pixels import SIGNED
from mnist_ray.models.view import CLASSES, LABELS
from mnist_ray.predictions.plan import PLAN
from mnist_ray.predictions.replace import beside
from mnist_ray.predictions.tally import Tally
from mnist_ray.runs.progress import ProgressRecord
from mnist_ray.scoring.pool import ActorPool
from mnist_ray.scoring.task import Scored, Settings
from mnist_ray.sources.base import Reading, Source
from mnist_ray.sources.formats.shards import Manifest
from mnist_ray.sources.specs import open_inputs
from mnist_ray.steps.begin import parts_there
from mnist_ray.steps.exclusive import check_destination
from mnist_ray.steps.preparation import as_trained
from mnist_ray.storage.location import Location
from mnist_ray.tracking.mlflow_server import mlflow_server

_FILES = "_files.arrow"

_VALUES_PER_ACTOR = 100_000 * 28 * 28  # pixels: an actor takes seconds to start, so fewer are done sooner by one
_DECODED = 10  # a pixel of a PNG or JPEG costs as much time as this many raw ones


def evaluate_untrained(
    actors: ActorPool, untrained: Recipe | ConvertedClassifier, manifest: Manifest, test: Source, console: Console
) -> Tally:
    """The untrained model's tally of the test images; its logits and probabilities of the first go to the console."""
    first = test.read("test", 0, 1)
    logits, probabilities = actors.infer_one(untrained, first.images[0])
    console.print(f"untrained, of test image 0 (a {manifest.classes[int(first.labels[0])]}):")
    console.print(f"  logits         {number_row(logits)}")
    console.print(f"  probabilities  {number_row(probabilities)}")
    before = actors.evaluate(untrained, test, "test")
    console.print(f"before  {before.line}")
    return before


@dataclass(frozen=True)
class ScoringInput:
    """What `score` reads, opened before anything is written or Ray is started."""

    config: ScoreConfig
    """Where the user leaves it open, images are prepared as in training."""
    settings: Settings
    known: Outline
    source: Source
    split: str
    listed_at: Location
    """The folder beside whose plan a long listing is kept."""
    console: Console

    @classmethod
    def open(cls, config: ScoreConfig, model: Location, output: Location, console: Console) -> ScoringInput:
        """Check the output, the model and the input, in this order. Raises the first UserError."""
        mlflow_server(config)
        check_destination(output, "--output", config.inputs(), marker=PLAN, alone=False)
        config = as_trained(config, model, console)
        if config.architecture is not None:
            check_architecture(config.architecture)
        classes = read_classes(Location.parse(config.classes)) if config.classes else None
        settings = Settings.of(config, classes)
        known = _known(config, model, settings)
        settings = settings.knowing(known)
        listed_at = beside(output)[0] if config.overwrite else output
        source, split = open_inputs(config.inputs(), config.split, _reading(config, known, listed_at, console))
        print_remarks(source, console)
        _check_model(known, source, settings)
        output.check_writable()
        return cls(config, settings, known, source, split, listed_at, console)

    @property
    def images(self) -> int:
        return min(self.source.splits[self.split], self.config.limit or self.source.splits[self.split])

    @property
    def job(self) -> dict[str, Any] | None:
        """What identifies this scoring to `--overwrite`; None without it."""
        if not self.config.overwrite:
            return None
        named = {"model_sha256": self.known.sha256, "input_digest": self.source.identity(), "split": self.split}
        return named | self.settings.known(self.known)

    def at(self, place: Location) -> tuple[Source, str]:
        """The source and its split, for an output that is written to `place`, of which it says what is there. Opened
        again where a listing that was kept beside another folder went with that folder."""
        if parts := parts_there(place):
            self.console.print(f"continuing {place}: {parts}")
        if not self.config.overwrite or (place == self.listed_at and (place / _FILES).exists()):
            return self.source, self.split
        reading = _reading(self.config, self.known, place, self.console)
        return open_inputs(self.config.inputs(), self.config.split, reading)


def _known(config: ScoreConfig, model: Location, settings: Settings) -> Outline:
    """What the model's file tells, with the names that the user gives its classes."""
    known = outline(model, settings.view(config.size()), config.architecture, counts=settings.needs_count)
    if settings.classes is None:
        return known
    assert config.classes is not None
    return replace(known, classes=name_classes(settings.classes, known.classes, known.num_classes, str(config.classes)))


def _check_model(known: Outline, source: Source, settings: Settings) -> None:
    """Raises InputError where it is clear before the model is loaded that it does not fit the input or the options. The
    actors check all of it again, of the loaded model."""
    if (shape := known.input_shape) is not None:
        if None in shape and source.convert.size is None:
            height, width = source.image_shape[:2]
            raise InputError(
                f"the model takes images of any size; choose one by --resize HxW, such as --resize {height}x{width},"
                " the size of the first image"
            )
        fitting_shape(settings.view(source.convert.size).sized(shape), source.shapes, source.convert)
    if known.num_classes is not None:
        settings.require(known.num_classes, known.kind)
        match_labels(
            source.classes, source.labels, known.classes, known.num_classes, numbered=source.numbered,
            kind=known.kind or LABELS, several=source.several,
        )  # fmt: skip


def _reading(config: ScoreConfig, known: Outline, output: Location, console: Console) -> Reading:
    """How `config` reads its input, in which an image may have several labels unless the model gives it one class. A
    long listing is kept beside the output, and a plan refers to that listing."""
    return Reading.of(
        config, labels=config.labels, takes_several=known.kind != CLASSES, signed=config.pixels == SIGNED, lenient=True,
        notify=console.print, list_file=output / _FILES, reuse_listing=(output / PLAN).exists(),
    )  # fmt: skip


def score_split(
    actors: ActorPool, model: Location, source: Source, split: str, output: Location, max_bad: float, console: Console,
    record: ProgressRecord, settings: Settings, digest: str | None = None,
) -> Scored:  # fmt: skip
    """Score a split into `output`, each image once, with a bar and the progress record. digest: of the model, where it
    is known."""
    total = min(source.splits[split], settings.limit or source.splits[split])
    began = time.perf_counter()
    resumed: int | None = None
    record.update(phase="score", done=0, total=total, quarantined=0)
    with console.bar("scoring", total) as bar, console.waiting("scoring actors load the model") as waiting:

        def progress(done: int, total: int, quarantined: int) -> None:
            nonlocal resumed
            if resumed is None:  # the first call is of what was there
                resumed = done
            else:
                waiting.end()
            rate = (done - resumed) / (time.perf_counter() - began)
            now = record.update(
                phase="score", done=done, total=total, work=(done, total), per_second=round(rate),
                quarantined=quarantined,
            )  # fmt: skip
            bad = f", {quarantined:,} quarantined" if quarantined else ""
            bar.update(done, f"{rate:,.0f} images/s{bad}", now["seconds_left"])

        try:
            scored = actors.score(
                model, source, split, output, max_bad=max_bad, settings=settings, digest=digest, on_progress=progress
            )
            record.update(phase="done", done=total, total=total, quarantined=scored.quarantined)
        finally:
            record.close()
        engine = {"openvino": "OpenVINO", "tensorflow": "TensorFlow"}[scored.plan.engine]
        by = f"{counted(scored.num_actors, 'actor')} with {engine}"
        bar.finish(
            f"{counted(scored.scored, 'image')} by {by} in {scored.seconds:.1f} s"
            f" ({scored.images_per_second:,.0f} images/s), {scored.quarantined:,} quarantined,"
            f" pixels {scored.plan.pixels}"
        )
    for note in scored.notes:
        console.print(note)
    for warning in scored.warnings:
        console.warn(warning)
    return scored


def num_actors_for(config: Scoring, source: Source, images: int, ray: Connection) -> int:
    """`--num-actors`, else as many as the CPUs allow and the pixels are worth."""
    values = images * math.prod(source.image_shape) * (_DECODED if source.is_encoded else 1)
    return config.num_actors or max(1, min(int(ray.cpus), images, -(-values // _VALUES_PER_ACTOR)))


def log_to(place: Location, console: Console) -> dict[str, Any]:
    """Where actors keep their logs, and what is told of them as they work."""
    return {"place": place, "notify": console.print, "changed": lambda alive: console.event("actors", actors=alive)}
