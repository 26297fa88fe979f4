"""What a scoring actor does: load a model, choose how to compute it; read, score and commit a unit. Knows no Ray."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError, RetryableError
from mnist_ray.models import anatomy, files, inference, runtime
from mnist_ray.models.anatomy import precision_of
from mnist_ray.models.build import Recipe
from mnist_ray.models.inference import Execution, Inference
from mnist_ray.models.labels import label_table
from mnist_ray.predictions import parts
from mnist_ray.predictions.parts import Committed
from mnist_ray.predictions.tally import Tally
from mnist_ray.scoring.task import Facts, Settings, Task
from mnist_ray.sources.base import Bad, Batch
from mnist_ray.storage.location import Location

_TIMED_ROWS = 256  # of the input, over and over
_COMPARED_ROWS = 4096
_NO_IMAGES = np.empty((0, 0, 0), np.uint8)  # in place of pixels that are let go of; an empty slice would hold them


class Scorer:
    """A model that is ready for a task's units."""

    def __init__(self, task: Task, before: Scorer | None = None) -> None:
        """before: whose model is taken over where it is the same."""
        self.inference: Inference = before.inference if before and before._serves(task) else _inference(task)
        loaded = self.inference.loaded
        shape = inference.fitting_shape(loaded, task.source.shapes)
        if shape != task.source.image_shape:  # that of the first image, which is the odd one
            task = replace(task, source=replace(task.source, image_shape=shape))
        self.task = task
        self._table = label_table(task.source.classes, loaded.classes, loaded.num_classes)

    def _serves(self, task: Task) -> bool:
        def wanted(of: Task) -> tuple[Any, ...]:
            return of.model, of.digest, frozenset(of.source.shapes), of.most_rows

        asked, has = task.settings, self.inference
        same_execution = _execution(asked) in (None, has.execution)
        return (
            wanted(self.task) == wanted(task)
            and asked.pixels in (None, has.pixels)
            and asked.precision in (None, precision_of(has.loaded.classifier))
            and same_execution
        )

    def facts(self) -> Facts:
        """Choose the execution; what the job's plan must know of the model."""
        task, loaded, changed = self.task, self.inference.loaded, None
        precision = precision_of(loaded.classifier)
        if task.settings.precision == "bfloat16" and task.plan is None:  # a stored plan tells it
            sample = self._sample(_COMPARED_ROWS)
            narrow = self._classes(sample)
            anatomy.recast(loaded.classifier, "float32")
            changed = int((narrow != self._classes(sample)).sum()), len(sample)
            anatomy.recast(loaded.classifier, precision)
        if _execution(task.settings) is None:
            self.inference = inference.fastest(
                self.inference, self._sample(_TIMED_ROWS), most_rows=task.most_rows, total_rows=task.total_rows,
                jit=task.settings.jit, batch_size=task.settings.batch_size,
            )  # fmt: skip
        pixels, execution = self.inference.pixels, self.inference.execution
        is_emulated = precision == "bfloat16" and not inference.has_bfloat16()
        return Facts(
            loaded.sha256, pixels, loaded.num_classes, loaded.classes, precision, execution, changed, is_emulated
        )

    def _sample(self, rows: int) -> NDArray[np.uint8]:
        """The input's first images that can be read."""
        return self.task.source.read(self.task.split, 0, min(rows, self.task.total_rows), strict=False).images

    def _classes(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        classes: NDArray[np.int64] = self.inference.retraced()(images)[0].argmax(axis=1)
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
        before = parts.committed(task.output, task.plan, unit) if task.settings.retry_quarantined else None
        aside = parts.quarantined(task.output, before) if before else {}
        if before and not aside:
            return before
        missing = np.array(sorted(aside)) if before else np.arange(start, stop)
        answered: list[tuple[Batch, NDArray[np.int64], NDArray[Any]]] = []
        tally = Tally.zero(num_classes)
        for rows in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1):
            for batch in self._read(int(rows[0]), int(rows[-1]) + 1, strict=False):
                chosen, probabilities, counts = self._ask(batch)
                answered.append((replace(batch, images=_NO_IMAGES), chosen, probabilities))
                tally += counts
        batches, predicted, chances = zip(*answered, strict=True)
        named = [batch.sources for batch in batches]
        sources = None if None in named else list(itertools.chain(*named))
        bad = [bad for batch in batches for bad in batch.bad]
        if before and sources is not None:
            for row, name in zip(np.setdiff1d(missing, [each.row for each in bad]).tolist(), sources, strict=True):
                if name != aside[row]:
                    raise InputError(
                        f"image {row} is {name}, but was {aside[row]} when it was quarantined: the input has changed"
                        " otherwise; score it into another --output",
                        see="predictions.md#quarantine",
                    )
        return parts.commit(
            task.output, task.plan, unit, ids=np.concatenate([batch.ids for batch in batches]),
            labels=np.concatenate([batch.labels for batch in batches]), predictions=np.concatenate(predicted),
            probabilities=np.concatenate(chances, dtype=np.float32),
            sources=sources, bad=bad, tally=tally, input_name=task.source.name, before=before,
        )  # fmt: skip

    def _ask(self, batch: Batch) -> tuple[NDArray[np.int64], NDArray[Any], Tally]:
        """Predictions (n,), probabilities (n, num_classes) and what they count."""
        outputs, probabilities = self.inference(batch.images)
        chosen = outputs.argmax(axis=1)
        losses = self.inference.losses(outputs, probabilities, chosen, batch.labels)
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


def _inference(task: Task) -> Inference:
    if isinstance(task.model, Recipe):
        loaded = files.untrained(task.model)
    else:
        loaded = files.load(task.model, vetted=task.digest if task.vetted else None)
        if task.digest not in (None, loaded.sha256):
            raise RetryableError(f"the model in {task.model} was replaced meanwhile; start again")
    if task.settings.precision:
        anatomy.recast(loaded.classifier, task.settings.precision)
    shape = inference.fitting_shape(loaded, task.source.shapes)
    return Inference(
        loaded, shape, most_rows=task.most_rows, pixels=task.settings.pixels, execution=_execution(task.settings)
    )


def _execution(settings: Settings) -> Execution | None:
    """What is asked for, where nothing of it is left open."""
    if settings.jit is None or settings.batch_size is None:
        return None
    return Execution(jit=settings.jit, batch_size=settings.batch_size)


@dataclass(frozen=True)
class SharedTask:
    """A task in Ray's object store. In a list Ray passes the reference on, so an actor that restarts can ask again."""

    key: str
    reference: list[Any]

    @classmethod
    def put(cls, task: Task) -> SharedTask:
        import ray

        return cls(uuid.uuid4().hex, [ray.put(task)])


# In the actors' processes.


class ScoringActor:
    """One process that scores. It keeps the model of the last task."""

    def __init__(self, threads: int) -> None:
        runtime.import_keras(threads=threads)
        self._key = ""
        self._worker: Scorer | None = None

    def ping(self) -> None:
        """Answers once the process is up."""

    def look(self, of: Recipe | Location, image: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
        return inference.compute_one(files.untrained(of) if isinstance(of, Recipe) else files.load(of), image)

    def facts(self, shared: SharedTask) -> Facts:
        return self._of(shared).facts()

    def prepare(self, shared: SharedTask) -> None:
        self._of(shared).inference.warm_up()

    def evaluate(self, shared: SharedTask, start: int, stop: int) -> Tally:
        return self._of(shared).evaluate(start, stop)

    def score(self, shared: SharedTask, unit: int) -> Committed:
        return self._of(shared).score(unit)

    def _of(self, shared: SharedTask) -> Scorer:
        """The worker for a task: the one that is there, the same model for another task, or one made anew."""
        if self._worker is None or self._key != shared.key:
            import ray

            self._worker = Scorer(ray.get(shared.reference[0]), self._worker)
            self._key = shared.key
        return self._worker
