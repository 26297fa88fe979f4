"""The fan-out: a pool of Ray actors that score units of work, each image exactly once.

A unit's part in storage is the record that it is done (`predictions.py`): a resume lists what is there, and an actor
that died, or did a unit twice, changes nothing.
"""

from __future__ import annotations

import functools
import itertools
import operator
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray import inference, model, predictions
from mnist_ray.errors import InputError, RetryableError, TooManyBadImagesError, UserError
from mnist_ray.inference import Inference, Way, label_table
from mnist_ray.metrics import Tally
from mnist_ray.model import Recipe, precision_of
from mnist_ray.plan import MANIFEST, QUARANTINE, Plan, limited, plan_units
from mnist_ray.predictions import Committed
from mnist_ray.sources import Bad, Batch, Source
from mnist_ray.storage import Location

UNITS_IN_FLIGHT = 2
"""An actor has its next unit waiting when it finishes one; more would only be lost work when it dies."""

_TIMED_ROWS = 256  # of the input, over and over
_COMPARED_ROWS = 4096

_MOST_RESTARTS = 4  # of an actor, and tries again of a unit that kills its actor


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What may be asked of a scoring. None leaves it to the model, the images and the machine."""

    limit: int | None = None
    """Only the first images of the split."""
    pixels: str | None = None
    """0-255 or 0-1."""
    top_k: int | None = None
    """Keep only so many classes of an image."""
    precision: str | None = None
    """float64, float32 or bfloat16."""
    jit: bool | None = None
    batch_size: int | None = None
    retry_quarantined: bool = False
    """Of units that are done, score what they have quarantined; its owner has mended it."""

    def known(self) -> dict[str, Any]:
        """The fields of the plan to come that follow from the settings alone."""
        asked = {"pixels": self.pixels, "precision": self.precision, "jit": self.jit, "batch_size": self.batch_size}
        given = {name: value for name, value in asked.items() if value is not None}
        return {"limit": self.limit, "top_k": self.top_k, **given}


@dataclass(frozen=True)
class Scored:
    """What a scoring gave."""

    tally: Tally
    images: int
    scored: int
    quarantined: int
    num_actors: int
    seconds: float
    """From the first unit begun to the last committed, of this start; where nothing was left to do, of the last one."""
    images_per_second: float
    plan: Plan
    """What was followed."""


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What an actor must know of a job. It gets it once, not with each unit."""

    model: Recipe | Location
    source: Source
    split: str
    most_rows: int
    """Of a unit."""
    total_rows: int
    """Of the job."""
    settings: Settings = Settings()
    digest: str | None = None
    """Of the model's archive."""
    vetted: bool = False
    """Whether another actor has tried the archive in a child process already."""
    output: Location | None = None
    plan: Plan | None = None


@dataclass(frozen=True)
class _Shared:
    """A task in Ray's object store. In a list Ray passes the reference on, so an actor that restarts can ask again."""

    key: str
    reference: list[Any]

    @classmethod
    def put(cls, task: _Task) -> _Shared:
        import ray

        return cls(uuid.uuid4().hex, [ray.put(task)])


class Scorers:
    """The pool. Its actors import TensorFlow in the background from the start; end them by `close` or `with`."""

    def __init__(self, num_actors: int, *, num_cpus: float = 0, threads: int = 1) -> None:
        """num_cpus: reserved for each actor; with 0 they wait beside a training. threads: of TensorFlow in each.

        Ray must be up.
        """
        assert num_actors >= 1
        import ray

        actor = ray.remote(num_cpus=num_cpus, max_restarts=_MOST_RESTARTS, max_task_retries=_MOST_RESTARTS)(_Actor)
        places = itertools.repeat("DEFAULT") if num_cpus else itertools.cycle(_nodes_with_cpus())
        self._actors: list[Any] = [
            actor.options(scheduling_strategy=place).remote(threads) for place in itertools.islice(places, num_actors)
        ]

    def __enter__(self) -> Scorers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the actors, whatever they do. What is committed stays."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def look(self, of: Recipe | Location, image: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
        """(logits, probabilities) of one image (h, w[, 3])."""
        looked: tuple[list[float], list[float]] = _answer(self._first_ready().look.remote(of, image))
        return looked

    def evaluate(self, of: Recipe | Location, source: Source, split: str, *, limit: int | None = None) -> Tally:
        """The tally of a split's first `limit` images. Nothing is written; InputError for a row that cannot be read."""
        units = _units(source, split, limit)
        task = _Task(model=of, source=source, split=split, most_rows=_most_rows(units), total_rows=_rows(units))
        tally: Tally = functools.reduce(operator.add, self._spread("evaluate", task, units))
        return tally

    def score(
        self,
        of: Location,
        source: Source,
        split: str,
        output: Location,
        *,
        max_bad: float,
        settings: Settings = Settings(),
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Scored:
        """Predictions of a split into `output`. What is there already is gone on with.

        max_bad: share of all images that may be quarantined. on_progress(images done, images) is called in this thread.
        Raises InputError where `output` holds something else or the model does not fit, TooManyBadImagesError,
        RetryableError where actors were lost too often.
        """
        plan = Plan.load(output)  # a folder that cannot be used is refused before anything is loaded
        units = plan.units if plan else _units(source, split, settings.limit)
        if settings.retry_quarantined:
            _check_mended(plan, output, source, split, settings.limit)
        if plan:  # the way that it has chosen, unless another is asked for, which is then refused
            settings = replace(
                settings,
                jit=plan.jit if settings.jit is None else settings.jit,
                batch_size=settings.batch_size or plan.batch_size,
            )
        task = _Task(
            model=of, source=source, split=split, most_rows=_most_rows(units), total_rows=_rows(units),
            settings=settings, digest=model.digest(of),
        )  # fmt: skip
        input_digest = source.identity()  # while the actors import TensorFlow
        facts: _Facts = _answer(self._first_ready().facts.remote(_Shared.put(task)))
        if settings.top_k is not None and settings.top_k > facts.num_classes:
            raise InputError(
                f"--top-k {settings.top_k} is more than the model's {facts.num_classes} classes; give fewer"
            )
        plan = Plan(
            model_sha256=facts.digest, input_digest=input_digest, split=split, limit=settings.limit,
            pixels=facts.pixels, num_classes=facts.num_classes, units=tuple(units), top_k=settings.top_k,
            classes=facts.classes, precision=facts.precision, jit=facts.way.jit, batch_size=facts.way.batch_size,
            changed=facts.changed,
        ).freeze(output, is_mended=settings.retry_quarantined)  # fmt: skip
        settings = replace(settings, pixels=plan.pixels, precision=plan.precision, jit=plan.jit,
                           batch_size=plan.batch_size)  # fmt: skip
        done = predictions.resume(output, plan)
        if settings.retry_quarantined:
            done = [each for each in done if not each.quarantine]
        progress = _Progress(plan, output, max_bad, done, on_progress)
        if not progress.left and (told := progress.finished()):
            return progress.scored(told["num_actors"], told["seconds"], plan.images)
        for result in (MANIFEST, "metrics.json", "report.html"):
            (output / result).delete()  # until the end the output is unfinished, and shows it
        task = replace(task, output=output, plan=plan, settings=settings, vetted=True)
        done_before = progress.images
        for committed in self._spread("score", task, [(unit,) for unit in progress.left], on_begin=progress.begin):
            progress.add(committed)
        scored = progress.scored(len(self._actors), progress.seconds, progress.images - done_before)
        predictions.write_manifest(
            output, plan, progress.done, pixels=plan.pixels, num_actors=scored.num_actors, seconds=scored.seconds
        )
        return scored

    def _first_ready(self) -> Any:
        """An actor that has imported TensorFlow."""
        import ray

        calls = {actor.ping.remote(): actor for actor in self._actors}
        ready = ray.wait(list(calls), num_returns=1)[0][0]
        _answer(ready)
        return calls[ready]

    def _spread(
        self,
        method: str,
        task: _Task,
        units: Sequence[tuple[int, ...]],
        on_begin: Callable[[], None] | None = None,
    ) -> Iterator[Any]:
        """Call a method of the actors for each unit; the results as they come.

        An actor gets units once it has loaded the model: a slow one holds nobody up. on_begin is called before the
        first unit.
        """
        import ray

        shared, left, running = _Shared.put(task), deque(units), 0
        # A few units are not worth loading the model everywhere.
        calls = {actor.prepare.remote(shared): (actor, False) for actor in self._actors[: len(units)]}
        while left or running:
            ready = ray.wait(list(calls), num_returns=1)[0][0]
            actor, is_unit = calls.pop(ready)
            result = _answer(ready)
            if on_begin:
                on_begin()
                on_begin = None
            running -= is_unit
            for _ in range(min(1 if is_unit else UNITS_IN_FLIGHT, len(left))):
                calls[getattr(actor, method).remote(shared, *left.popleft())] = (actor, True)
                running += 1
            if is_unit:
                yield result


def _nodes_with_cpus() -> list[Any]:
    """Scheduling strategies, a node each as often as it has CPUs: an actor that reserves none could land on a head
    that is kept free (`num-cpus: "0"`)."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cpus = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}
    rounds = range(max(cpus.values(), default=0))
    nodes = [node for turn in rounds for node, count in cpus.items() if turn < count]
    return [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes] or ["DEFAULT"]


def _units(source: Source, split: str, limit: int | None) -> list[tuple[int, int]]:
    return plan_units(limited(source.units(split), limit), row_bytes=int(np.prod(source.image_shape)))


def _check_mended(plan: Plan | None, output: Location, source: Source, split: str, limit: int | None) -> None:
    """Raises InputError where an input cannot be that of an output, with some images mended."""
    if plan is None:
        raise InputError(f"{output} holds no predictions yet; leave --retry-quarantined out")
    images = min(source.splits[split], limit or source.splits[split])
    if images != plan.images:
        raise InputError(
            f"{source.name} gives {images:,} images now, but {output} is of {plan.images:,}; score it into another"
            " --output",
            see="Quarantine",
        )


def _rows(units: Sequence[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in units)


def _most_rows(units: Sequence[tuple[int, int]]) -> int:
    return max(stop - start for start, stop in units)


def _answer(call: Any) -> Any:
    """The result of a remote call; what the user can act on is raised as itself."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(call)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None  # the user's one line, not the actor's traceback
        raise
    except RayError as error:
        raise RetryableError(
            f"scoring actors were lost too often ({type(error).__name__}); the same command goes on from what is"
            " committed",
            see="Failures",
        ) from error


class _Progress:
    """What is committed, and whether too much of it is bad."""

    def __init__(
        self,
        plan: Plan,
        output: Location,
        max_bad: float,
        done: Sequence[Committed],
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self.done: list[Committed] = []
        self.images = self.quarantined = 0
        self.seconds = 0.0
        self._began = 0.0
        self._plan, self._output, self._max_bad, self._on_progress = plan, output, max_bad, on_progress
        finished = {each.unit for each in done}
        self.left = [unit for unit in range(len(plan.units)) if unit not in finished]
        for committed in done:
            self.add(committed)

    def begin(self) -> None:
        self._began = time.perf_counter()

    def add(self, committed: Committed) -> None:
        self.done.append(committed)
        self.images += committed.part.rows + committed.quarantined
        self.quarantined += committed.quarantined
        if self._began:
            self.seconds = time.perf_counter() - self._began
        if self.quarantined > self._max_bad * self._plan.images:
            raise TooManyBadImagesError(
                f"{self.quarantined:,} of {self._plan.images:,} images cannot be scored, more than --max-bad"
                f" {self._max_bad:g}; why is in {self._output / QUARANTINE}",
                see="Quarantine",
            )
        if self._on_progress:
            self._on_progress(self.images, self._plan.images)

    def finished(self) -> dict[str, Any] | None:
        """The manifest that is there, where it is of exactly these parts."""
        try:
            manifest: dict[str, Any] = (self._output / MANIFEST).read_json()
        except (FileNotFoundError, InputError):
            return None
        parts = [asdict(each.part) for each in sorted(self.done, key=lambda each: each.unit)]
        return manifest if manifest.get("parts") == parts else None

    def scored(self, num_actors: int, seconds: float, images: int) -> Scored:
        """images: that were scored within the seconds."""
        assert self.images == self._plan.images
        in_order = (each.tally for each in sorted(self.done, key=lambda each: each.unit))
        return Scored(
            # Losses are floats: added in the order of the units they give the same sum, whoever was first.
            tally=functools.reduce(operator.add, in_order, Tally.zero(self._plan.num_classes)),
            images=self.images,
            scored=self.images - self.quarantined,
            quarantined=self.quarantined,
            num_actors=num_actors,
            seconds=seconds,
            images_per_second=images / seconds if seconds else 0.0,
            plan=self._plan,
        )


# In the actors' processes.


@dataclass(frozen=True)
class _Facts:
    """What only the loaded model tells."""

    digest: str
    pixels: str
    num_classes: int
    classes: tuple[str, ...] | None
    precision: str
    way: Way
    changed: tuple[int, int] | None


class _Actor:
    """One process that scores. It keeps the model of the last task."""

    def __init__(self, threads: int) -> None:
        model.import_keras(threads=threads)
        self._key = ""
        self._worker: Worker | None = None

    def ping(self) -> None:
        """Answers once the process is up."""

    def look(self, of: Recipe | Location, image: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
        return inference.look(model.untrained(of) if isinstance(of, Recipe) else model.load(of), image)

    def facts(self, shared: _Shared) -> _Facts:
        return self._of(shared).facts()

    def prepare(self, shared: _Shared) -> None:
        self._of(shared).inference.warm_up()

    def evaluate(self, shared: _Shared, start: int, stop: int) -> Tally:
        return self._of(shared).evaluate(start, stop)

    def score(self, shared: _Shared, unit: int) -> Committed:
        return self._of(shared).score(unit)

    def _of(self, shared: _Shared) -> Worker:
        """The worker for a task: the one that is there, the same model for another task, or one made anew."""
        if self._worker is None or self._key != shared.key:
            import ray

            self._worker = Worker(ray.get(shared.reference[0]), self._worker)
            self._key = shared.key
        return self._worker


class Worker:
    """What is done with a unit. Knows nothing of Ray."""

    def __init__(self, task: _Task, before: Worker | None = None) -> None:
        """before: whose model is taken over where it is the same."""
        self.inference: Inference = before.inference if before and before._serves(task) else _inference(task)
        loaded = self.inference.loaded
        shape = inference.fitting_shape(loaded, task.source.shapes)
        if shape != task.source.image_shape:  # that of the first image, which is the odd one
            task = replace(task, source=replace(task.source, image_shape=shape))
        self.task = task
        self._table = label_table(task.source.classes, loaded.classes, loaded.num_classes)

    def _serves(self, task: _Task) -> bool:
        def wanted(of: _Task) -> tuple[Any, ...]:
            return of.model, of.digest, frozenset(of.source.shapes), of.most_rows

        asked, has = task.settings, self.inference
        same_way = _way(asked) in (None, has.way)
        return (
            wanted(self.task) == wanted(task)
            and asked.pixels in (None, has.pixels)
            and asked.precision in (None, precision_of(has.loaded.classifier))
            and same_way
        )

    def facts(self) -> _Facts:
        """Choose the way to compute; what the job's plan must know of the model."""
        task, loaded, changed = self.task, self.inference.loaded, None
        precision = precision_of(loaded.classifier)
        if task.settings.precision == "bfloat16":
            sample = self._sample(_COMPARED_ROWS)
            narrow = self._classes(sample)
            model.recast(loaded.classifier, "float32")
            changed = int((narrow != self._classes(sample)).sum()), len(sample)
            model.recast(loaded.classifier, precision)
        if _way(task.settings) is None:
            self.inference = inference.fastest(
                self.inference, self._sample(_TIMED_ROWS), most_rows=task.most_rows, total_rows=task.total_rows,
                jit=task.settings.jit, batch_size=task.settings.batch_size,
            )  # fmt: skip
        pixels, way = self.inference.pixels, self.inference.way
        return _Facts(loaded.sha256, pixels, loaded.num_classes, loaded.classes, precision, way, changed)

    def _sample(self, rows: int) -> NDArray[np.uint8]:
        """The input's first images that can be read."""
        return self.task.source.read(self.task.split, 0, min(rows, self.task.total_rows), strict=False).images

    def _classes(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        classes: NDArray[np.int64] = self.inference.again()(images)[0].argmax(axis=1)
        return classes

    def evaluate(self, start: int, stop: int) -> Tally:
        tally = Tally.zero(self.inference.loaded.num_classes)
        for batch in self._read(start, stop, strict=True):
            if batch.bad:
                first = batch.bad[0]
                raise InputError(f"{self.task.source.name}: {self.task.split} row {first.row} {first.reason}")
            tally += self._ask(batch)[2]
        return tally

    def score(self, unit: int) -> Committed:
        """Score a unit's rows; with retry_quarantined, where it is done already, just those it has quarantined."""
        task, num_classes = self.task, self.inference.loaded.num_classes
        assert task.plan is not None
        assert task.output is not None
        start, stop = task.plan.units[unit]
        before = predictions.committed(task.output, task.plan, unit) if task.settings.retry_quarantined else None
        aside = predictions.quarantined(task.output, before) if before else {}
        if before and not aside:
            return before
        missing = np.array(sorted(aside)) if before else np.arange(start, stop)
        parts: list[tuple[Batch, NDArray[np.int64], NDArray[Any]]] = []
        tally = Tally.zero(num_classes)
        for rows in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1):
            for batch in self._read(int(rows[0]), int(rows[-1]) + 1, strict=False):
                chosen, probabilities, counts = self._ask(batch)
                parts.append((replace(batch, images=batch.images[:0]), chosen, probabilities))  # pixels are let go of
                tally += counts
        batches, predicted, chances = zip(*parts, strict=True)
        named = [batch.sources for batch in batches]
        sources = None if None in named else list(itertools.chain(*named))
        bad = [bad for batch in batches for bad in batch.bad]
        if before and sources is not None:
            for row, name in zip(np.setdiff1d(missing, [each.row for each in bad]).tolist(), sources, strict=True):
                if name != aside[row]:
                    raise InputError(
                        f"image {row} is {name}, but was {aside[row]} when it was quarantined: the input has changed"
                        " otherwise; score it into another --output",
                        see="Quarantine",
                    )
        return predictions.commit(
            task.output, task.plan, unit, ids=np.concatenate([batch.ids for batch in batches]),
            labels=np.concatenate([batch.labels for batch in batches]), predictions=np.concatenate(predicted),
            probabilities=np.concatenate(chances, dtype=np.float32),
            sources=sources, bad=bad, tally=tally, input_name=task.source.name, before=before,
        )  # fmt: skip

    def _ask(self, batch: Batch) -> tuple[NDArray[np.int64], NDArray[Any], Tally]:
        """Predictions (n,), probabilities (n, num_classes) and what they count."""
        outputs, probabilities = self.inference(batch.images)
        chosen = outputs.argmax(axis=1)
        losses = self.inference.losses(outputs, probabilities, batch.labels)
        confidences = probabilities[np.arange(len(chosen)), chosen].astype(np.float32)  # as they are written
        tally = Tally.of(batch.labels, chosen, losses, confidences, self.inference.loaded.num_classes)
        return chosen, probabilities, tally

    def _read(self, start: int, stop: int, *, strict: bool) -> Iterator[Batch]:
        """Rows start..stop, a few at a time, with the model's labels."""
        row = start
        for batch in self.task.source.stream(self.task.split, start, stop, strict=strict):
            rows = len(batch.ids) + len(batch.bad)
            yield self._relabelled(batch, row, row + rows)
            row += rows
        assert row == stop, (row, stop)

    def _relabelled(self, batch: Batch, start: int, stop: int) -> Batch:
        """A label that the model has not is as bad as a broken image."""
        known = batch.labels >= 0
        labels = np.where(known, -1, batch.labels)
        fits = known & (batch.labels < len(self._table))
        labels[fits] = self._table[batch.labels[fits]]
        alien = known & (labels < 0)
        if not alien.any():
            return replace(batch, labels=labels)
        rows = np.setdiff1d(np.arange(start, stop), [bad.row for bad in batch.bad])
        bad = [
            Bad(
                int(rows[index]),
                batch.sources[index] if batch.sources else None,
                f"has label {batch.labels[index]}, which is none of the model's"
                f" {self.inference.loaded.num_classes} classes",
            )
            for index in np.flatnonzero(alien)
        ]
        kept = ~alien
        sources = [name for name, keep in zip(batch.sources, kept, strict=True) if keep] if batch.sources else None
        merged = sorted([*batch.bad, *bad], key=lambda each: each.row)
        return Batch(batch.ids[kept], batch.images[kept], labels[kept], sources, tuple(merged))


def _inference(task: _Task) -> Inference:
    if isinstance(task.model, Recipe):
        loaded = model.untrained(task.model)
    else:
        loaded = model.load(task.model, vetted=task.digest if task.vetted else None)
        if task.digest not in (None, loaded.sha256):
            raise RetryableError(f"the model in {task.model} was replaced meanwhile; start again")
    if task.settings.precision:
        model.recast(loaded.classifier, task.settings.precision)
    shape = inference.fitting_shape(loaded, task.source.shapes)
    return Inference(loaded, shape, most_rows=task.most_rows, pixels=task.settings.pixels, way=_way(task.settings))


def _way(settings: Settings) -> Way | None:
    """What is asked for, where nothing of it is left open."""
    if settings.jit is None or settings.batch_size is None:
        return None
    return Way(jit=settings.jit, batch_size=settings.batch_size)
