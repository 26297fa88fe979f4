"""Which pixels a model takes, where its layers do not tell: it is given labelled images each way."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.models.engines.base import Classifier
from mnist_ray.models.inference import Inference
from mnist_ray.models.pixels import RANGES, Pixels, judged_by_labels
from mnist_ray.models.view import EMBEDDINGS
from mnist_ray.scoring.task import Task
from mnist_ray.sources.labels import as_rows, is_known, renumbered

_PLACES, _ROWS = 8, 64  # of the input: the images of a class may follow each other


def ask(task: Task, classifier: Classifier, table: NDArray[np.int64]) -> Pixels | None:
    """table: the model's class for each label of the input, -1 where it has none. None where the layers tell, or the
    images do not."""
    if (classifier.pixels and not classifier.pixels_are_usual) or classifier.kind == EMBEDDINGS or not len(table):
        return None
    images, labels = _labelled(task, table, classifier.num_classes)
    if len(np.unique(labels, axis=0)) < 2:  # always the same class is not right
        return None
    right = {
        pixels: _has(labels, Inference(classifier, images.shape[1:], most_rows=_ROWS, pixels=pixels)(images)[0])
        for pixels in RANGES
    }
    return judged_by_labels(right, classifier.pixels)


def reason_of(task: Task, classifier: Classifier, asked: Pixels | None) -> tuple[str | None, bool]:
    """(why the model is given its pixels, None where the user has said so; whether that is only assumed)."""
    if task.settings.pixels is not None:
        return None, False
    if asked is not None:
        return asked.reason, False
    reason, is_assumed = classifier.pixels_reason, classifier.pixels_are_usual
    return f"assumed: {reason}" if is_assumed else reason, is_assumed


def _has(labels: NDArray[Any], outputs: NDArray[Any]) -> NDArray[np.bool_]:
    """(n,): whether what the model is surest of is the label of an image, or one of its labels."""
    rows = as_rows(labels, outputs.shape[1])
    has: NDArray[np.bool_] = rows[np.arange(len(labels)), outputs.argmax(axis=1)] == 1
    return has


def _labelled(task: Task, table: NDArray[np.int64], num_classes: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Images from places all over the input, and the model's class of each, or classes."""
    images, labels = [], []
    rows = task.total_rows if task.total_rows < _PLACES * _ROWS else _ROWS  # all, or stretches that do not overlap
    for start in np.unique(np.linspace(0, task.total_rows - rows, _PLACES).astype(int)).tolist():
        batch = task.source.read(task.split, start, start + rows, strict=False)
        found = renumbered(batch.labels, table, num_classes)
        known = is_known(found)
        images.append(batch.images[known])
        labels.append(found[known])
    return np.concatenate(images), np.concatenate(labels)
