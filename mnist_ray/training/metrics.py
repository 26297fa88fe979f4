"""The metrics of an epoch as sums over all workers: begun in one process and continued in another, and validation."""

from __future__ import annotations

from typing import Any

import numpy as np

from mnist_ray import collective
from mnist_ray.collective.callback import loss_row_count
from mnist_ray.models.pixels import feed, pixels_of

VALIDATION_ROWS = 1024
"""Rows of a validation batch."""


def build_metrics(model: Any, num_classes: int) -> None:
    """Create the compiled metrics' variables, which Keras does in the first step: too late for `continue_sums`."""
    model.compute_metrics(np.zeros((1, *model.input_shape[1:])), np.zeros(1, np.int64), np.zeros((1, num_classes)))
    model.reset_metrics()


def finite_or_none(value: Any) -> float | None:
    """A number as JSON can hold it: None in place of an infinity or NaN."""
    return float(value) if np.isfinite(value) else None


def metric_variables(model: Any) -> list[Any]:
    return [variable for metric in model.metrics for variable in metric.variables]


def sums_over_workers(ring: collective.Ring, model: Any, blank_steps: int) -> np.ndarray:
    """(n,) float64: all workers' sums, in the order of `metric_variables`; `blank_steps` of this one count nothing."""
    blank = {id(loss_row_count(model)): blank_steps}
    values = [np.array(v, np.float64).ravel() - blank.get(id(v), 0) for v in metric_variables(model)]
    return ring.all_reduce(np.concatenate(values))


def continue_sums(model: Any, sums: np.ndarray) -> None:
    """Begin an epoch's metrics with what `sums_over_workers` gave for its first part."""
    start = 0
    for variable in metric_variables(model):
        size = int(np.prod(variable.shape))
        variable.assign(sums[start : start + size].reshape(variable.shape))
        start += size


def validate(ring: collective.Ring, model: Any, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`val_loss` and `val_accuracy` over all workers' held-out rows, by counts. images: this worker's, uint8."""
    import tensorflow as tf

    model.reset_metrics()
    if len(labels):
        pixels = pixels_of(model)
        dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(VALIDATION_ROWS)
        model.evaluate(dataset.map(lambda x, y: (feed(x, pixels), y)), verbose=0)
    collective.all_reduce_variables(ring, metric_variables(model))
    return {f"val_{name}": float(value) for name, value in model.get_metrics_result().items()}
