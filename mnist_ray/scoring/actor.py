"""One actor's work: load a model, choose how to compute it; read, score and commit units."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.errors import InputError, RetryableError, require
from mnist_ray.models import files, inference
from mnist_ray.models.build import Recipe
from mnist_ray.models.engines.base import Classifier, Execution
from mnist_ray.models.engines.openvino import ConvertedClassifier
from mnist_ray.models.inference import Inference
from mnist_ray.models.labels import match_labels
from mnist_ray.models.view import EMBEDDINGS
from mnist_ray.predictions import parts
from mnist_ray.predictions.answers import ClassAnswers, answers_of, top
from mnist_ray.predictions.parts import Committed, ScoredRows
from mnist_ray.predictions.tally import Tally, TallySum
from mnist_ray.scoring.asking import ask, reason_of
from mnist_ray.scoring.task import Facts, Settings, Task
from mnist_ray.sources.base import Bad, Batch
from mnist_ray.sources.labels import foreign_in, is_known, renumbered
from mnist_ray.storage.location import Location

_TIMED_ROWS = 256  # of the input, over and over
_COMPARED_ROWS = 4096
_MOST_VALUES = 4 << 20  # of a model's outputs at a time: 16 MB, several times over; with many classes, few rows
_NO_IMAGES = np.empty((0, 0, 0), np.uint8)  # in place of pixels that were scored; a slice of them would keep them all


class Scorer:
    """A model, loaded and ready for a task's units. Knows no Ray."""

    def __init__(self, task: Task, previous: Scorer | None = None) -> None:
        """previous: the scorer of another task, whose model is used again if it is the same."""
        ready = previous.inference if previous and previous._serves(task) else None
        classifier = ready.classifier if ready else _classifier(task)
        shape = inference.fitting_shape(classifier.input_shape, task.source.shapes, task.source.convert)
        if shape != task.source.image_shape:  # which is that of the first image, and the first image is the odd one
            task = replace(task, source=replace(task.source, image_shape=shape))
        self.task = task
        source = task.source
        self._labels = match_labels(
            source.classes, source.labels, classifier.classes, classifier.num_classes, numbered=source.numbered,
            kind=classifier.kind, several=source.several,
        )  # fmt: skip
        asks = ready is None and task.settings.pixels is None
        self._asked = ask(task, classifier, self._labels.table) if asks else None
        self.inference: Inference = ready or Inference(
            classifier, shape, most_rows=task.most_rows, execution=_execution(task.settings),
            pixels=self._asked.range if self._asked else task.settings.pixels,
        )  # fmt: skip

    def _serves(self, task: Task) -> bool:
        """Whether another task can use this model as it is computed here."""
        settings, mine = task.settings, self.task
        return (
            (_identity(mine.model), mine.digest, mine.most_rows) == (_identity(task.model), task.digest, task.most_rows)
            and mine.settings.architecture == settings.architecture
            and (mine.view, mine.settings.classes) == (task.view, settings.classes)
            and frozenset(mine.source.shapes) == frozenset(task.source.shapes)
            and settings.pixels in (None, self.inference.pixels)
            and settings.precision in (None, self.inference.classifier.precision)
            and _execution(settings) in (None, self.inference.execution)
        )

    # Once a job.

    def examine(self) -> Facts:
        """Choose how to compute the model, and return what the job's plan must know of it."""
        task, classifier = self.task, self.inference.classifier
        precision = classifier.precision
        changed = None
        compares = task.plan is None and classifier.kind != EMBEDDINGS  # a stored plan has it
        if task.settings.precision == "bfloat16" and compares:
            changed = self._changed_by_bfloat16()
        if _execution(task.settings) is None:
            self.inference = inference.fastest(
                self.inference, self._sample(_TIMED_ROWS), most_rows=task.most_rows, total_rows=task.total_rows,
                jit=task.settings.jit, batch_size=task.settings.batch_size,
            )  # fmt: skip
        reason, is_assumed = reason_of(task, classifier, self._asked)
        return Facts(
            digest=classifier.sha256,
            pixels=self.inference.pixels,
            pixels_reason=reason,
            pixels_assumed=is_assumed,
            kind=classifier.kind,
            kind_reason=task.settings.kind_reason(classifier.kind, classifier.gives_logits),
            num_classes=classifier.num_classes,
            classes=classifier.classes,
            precision=precision,
            execution=self.inference.execution,
            changed=changed,
            label_note=self._labels.note,
            is_emulated=precision == "bfloat16" and not inference.has_bfloat16(),
            engine=classifier.engine,
            engine_version=classifier.version,
            converted_sha256=classifier.content_sha256 if isinstance(classifier, ConvertedClassifier) else None,
        )

    def _changed_by_bfloat16(self) -> tuple[int, int]:
        """(predictions that differ from float32, images compared)."""
        sample = self._sample(_COMPARED_ROWS)
        narrow = self._predict(sample, "bfloat16")
        changed = int((narrow != self._predict(sample, "float32")).sum())
        self.inference = self.inference.recompiled(precision="bfloat16")
        return changed, len(sample)

    def _sample(self, rows: int) -> NDArray[np.uint8]:
        """The first images of the input that can be read."""
        return self.task.source.read(self.task.split, 0, min(rows, self.task.total_rows), strict=False).images

    def _predict(self, images: NDArray[np.uint8], precision: str) -> NDArray[np.int64]:
        """Predictions (n,) in a precision; of labels, the most likely one."""
        infer, rows = self.inference.recompiled(precision=precision), self._rows_at_once
        starts = range(0, max(len(images), 1), rows)
        return np.concatenate([infer(images[start : start + rows])[0].argmax(axis=1) for start in starts])

    # Once a unit.

    def evaluate(self, start: int, stop: int) -> Tally:
        """The tally of rows start..stop. Raises InputError for a row that cannot be read."""
        tally = TallySum(self.inference.classifier.num_classes)
        for batch in self._read(start, stop, strict=True):
            if batch.bad:
                first = batch.bad[0]
                raise InputError(f"{self.task.source.name}: {self.task.split} row {first.row} {first.reason}")
            tally.add(self._infer(batch)[2])
        return tally.total()

    def score(self, unit: int) -> Committed:
        """Score a unit's rows and commit them; of a unit that is to be tried again, only those in quarantine."""
        output, plan = self.task.output, self.task.plan
        assert output is not None
        assert plan is not None
        earlier = parts.committed(output, plan, unit) if unit in self.task.again else None
        if earlier is None:
            return parts.commit(output, plan, unit, self._score_rows(np.arange(*plan.units[unit])))
        if earlier.part.sha256 != self.task.again[unit]:  # another actor has tried it again already
            return earlier
        quarantined = parts.quarantined(output, earlier)
        rows = np.array(sorted(quarantined))
        retried = self._score_rows(rows)
        _check_sources(retried, rows, quarantined)
        return parts.commit_retried(output, plan, earlier, retried)

    def _score_rows(self, rows: NDArray[np.int64]) -> ScoredRows:
        """Read and score rows (n,), ascending, as few stretches as there are."""
        batches: list[Batch] = []
        predictions: list[NDArray[np.int64]] = []
        classes: list[NDArray[np.int64]] = []
        probabilities: list[NDArray[np.float32]] = []
        assert self.task.plan is not None
        answers = answers_of(self.task.plan)
        tally = answers.sum()
        for stretch in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
            for batch in self._read(int(stretch[0]), int(stretch[-1]) + 1, strict=False):
                if isinstance(answers, ClassAnswers):
                    predicted, probable, counts = self._infer(batch)
                    predictions.append(predicted)
                    if answers.top_k is not None:
                        most, probable = top(predicted, probable, answers.top_k)
                        classes.append(most)
                    tally.add(counts)
                else:
                    probable = self.inference(batch.images)[0].astype(np.float32, copy=False)
                    tally.add(answers.tally(batch.labels, probable))
                batches.append(replace(batch, images=_NO_IMAGES))
                probabilities.append(probable.astype(np.float32, copy=False))
        sources = [batch.sources for batch in batches if batch.sources is not None]
        return ScoredRows(
            ids=np.concatenate([batch.ids for batch in batches]),
            labels=np.concatenate([batch.labels for batch in batches]),
            predictions=np.concatenate(predictions) if predictions else None,
            probabilities=np.concatenate(probabilities),
            top_classes=np.concatenate(classes) if classes else None,
            sources=list(itertools.chain(*sources)) if len(sources) == len(batches) else None,
            bad=[bad for batch in batches for bad in batch.bad],
            tally=tally.total(),
            input_name=self.task.source.name,
        )

    def _infer(self, batch: Batch) -> tuple[NDArray[np.int64], NDArray[Any], Tally]:
        """Predictions (n,), probabilities (n, num_classes) and their tally."""
        outputs, probabilities = self.inference(batch.images)
        predictions = outputs.argmax(axis=1)
        losses = self.inference.losses(outputs, probabilities, predictions, batch.labels)
        confidences = probabilities[np.arange(len(predictions)), predictions].astype(np.float32)  # as in the part
        tally = Tally.of(batch.labels, predictions, losses, confidences, self.inference.classifier.num_classes)
        return predictions, probabilities, tally

    def _read(self, start: int, stop: int, *, strict: bool) -> Iterator[Batch]:
        """Rows start..stop, a few at a time, with the model's labels."""
        row = start
        for batch in self.task.source.stream(self.task.split, start, stop, strict=strict):
            rows = len(batch.ids) + len(batch.bad)
            yield from _pieces(self._with_models_labels(batch, row, row + rows), self._rows_at_once)
            row += rows
        require(row == stop, f"{self.task.source.name} gave rows up to {row}, not {stop}")

    @property
    def _num_classes(self) -> int:
        """That labels are numbered by: beside embeddings, the input's own."""
        classifier = self.inference.classifier
        return len(self._labels.table) if classifier.kind == EMBEDDINGS else classifier.num_classes

    @property
    def _rows_at_once(self) -> int:
        """Of how many images the outputs are held; whole batches, so that a piece is computed as it would be whole."""
        batch = self.inference.execution.batch_size
        return batch * max(1, _MOST_VALUES // (batch * self.inference.classifier.num_classes))

    def _with_models_labels(self, batch: Batch, start: int, stop: int) -> Batch:
        """The batch with the model's class numbers. A row whose label the model does not have is a bad one, unless the
        label is only the name of a folder that may be no class."""
        table, num_classes = self._labels.table, self._num_classes
        labels = renumbered(batch.labels, table, num_classes)
        is_foreign = is_known(batch.labels) & ~is_known(labels) & (self.task.source.labels != "auto")
        if not is_foreign.any():
            return replace(batch, labels=labels)
        rows = np.setdiff1d(np.arange(start, stop), [bad.row for bad in batch.bad])
        foreign = [
            Bad(
                int(rows[index]),
                batch.sources[index] if batch.sources else None,
                f"has label {foreign_in(batch.labels[index], table, self.task.source.classes)}, which is not one of the"
                f" model's {self.inference.classifier.num_classes} classes",
            )
            for index in np.flatnonzero(is_foreign)
        ]
        kept = ~is_foreign
        sources = [name for name, keep in zip(batch.sources, kept, strict=True) if keep] if batch.sources else None
        bad = sorted([*batch.bad, *foreign], key=lambda each: each.row)
        return Batch(batch.ids[kept], batch.images[kept], labels[kept], sources, tuple(bad))


def _pieces(batch: Batch, rows: int) -> Iterator[Batch]:
    """The batch, so many rows at a time; what is bad comes with the first."""
    for start in range(0, max(len(batch.ids), 1), rows):
        piece = slice(start, start + rows)
        yield Batch(
            batch.ids[piece], batch.images[piece], batch.labels[piece],
            batch.sources and batch.sources[piece], () if start else batch.bad,
        )  # fmt: skip


def _check_sources(retried: ScoredRows, rows: NDArray[np.int64], quarantined: dict[int, str]) -> None:
    """Raises InputError if a row (of rows, (n,)) is another image than when it was quarantined."""
    if retried.sources is None:
        return
    good_rows = np.setdiff1d(rows, [bad.row for bad in retried.bad])
    for row, source in zip(good_rows.tolist(), retried.sources, strict=True):
        if source != quarantined[row]:
            raise InputError(
                f"image {row} is {source}, but was {quarantined[row]} when it was quarantined: images were added,"
                " removed or renamed since; score the input into another --output",
                see="predictions.md#quarantine",
            )


def _classifier(task: Task) -> Classifier:
    """The task's model, as its options have it."""
    classifier = _loaded(task)
    if task.settings.precision:
        classifier = classifier.in_precision(task.settings.precision)
    if task.settings.classes:
        classifier = replace(classifier, classes=task.settings.classes)
    return classifier


def _loaded(task: Task) -> Classifier:
    """The task's model. Raises RetryableError if it is not the one that the job began with."""
    if not isinstance(task.model, Location):
        return ready(task.model)
    loaded = files.load(
        task.model, architecture=task.settings.architecture, vetted=task.digest if task.vetted else None,
        view=task.view,
    )  # fmt: skip
    if task.digest not in (None, loaded.sha256):
        raise RetryableError(f"the model in {task.model} was replaced while the job ran; start again")
    return loaded


def ready(model: Recipe | ConvertedClassifier) -> Classifier:
    return files.untrained(model) if isinstance(model, Recipe) else model


def _identity(model: Recipe | Location | ConvertedClassifier) -> Recipe | Location | str:
    """What two models of different tasks are compared by."""
    return model.content_sha256 if isinstance(model, ConvertedClassifier) else model


def _execution(settings: Settings) -> Execution | None:
    """The way to compute, if the settings leave nothing open."""
    if settings.jit is None or settings.batch_size is None:
        return None
    return Execution(jit=settings.jit, batch_size=settings.batch_size)
