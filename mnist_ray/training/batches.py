"""A rank's shards in memory, and its rows of the global batches as a tf.data.Dataset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mnist_ray.collective.ring import Ring
from mnist_ray.models.pixels import feed
from mnist_ray.sources.formats.shards import read_shard
from mnist_ray.training.job import Job
from mnist_ray.training.order import Order


def read_own_shards(
    job: Job, order: Order, held_out: list[int], rank: int, world: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(images (n, …) uint8, labels (n,) int64) of this rank's shards, to train on and held out; each is read once.

    held_out: the number of rows to hold out of each shard; the seed chooses which.
    """
    owned = order.owned(rank, world)
    shards = job.manifest.shards["train"]

    def empty(rows: int) -> tuple[np.ndarray, np.ndarray]:
        return np.empty((rows, *job.manifest.image_shape), np.uint8), np.empty(rows, np.int64)

    train, validation = (
        empty(sum(order.sizes[index] for index in owned)),
        empty(sum(held_out[index] for index in owned)),
    )
    start = validation_start = 0
    for index in owned:
        _, images, labels = read_shard(job.shards, shards[index], job.manifest.image_shape)
        rows = np.random.default_rng([job.config.seed, index]).permutation(len(labels))[: held_out[index]]
        is_held_out = np.zeros(len(labels), bool)
        is_held_out[rows] = True
        end, validation_end = start + order.sizes[index], validation_start + len(rows)
        train[0][start:end], train[1][start:end] = images[~is_held_out], labels[~is_held_out]
        validation[0][validation_start:validation_end] = images[is_held_out]
        validation[1][validation_start:validation_end] = labels[is_held_out]
        start, validation_start = end, validation_end
    return train, validation


class Batches:
    """This rank's rows of the global batches, as a tf.data.Dataset of one epoch.

    A batch in which the rank has no rows is one blank row at weight 0: an empty batch aborts oneDNN's kernels.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, order: Order, ring: Ring, pixels: str, epoch: Callable[[], int]
    ) -> None:
        """images, labels: this rank's, uint8 and int64. pixels: 0-255 or 0-1. epoch: called each time the dataset is
        begun; its order is that of the epoch that it returns."""
        import tensorflow as tf

        rank, world = ring.rank, ring.size
        self._pixels = pixels
        self._ends = np.cumsum(order.batch_rows(rank, world))
        self._starts = np.concatenate([[0], self._ends[:-1]])
        self._has_blanks = bool((self._starts == self._ends).any())
        if self._has_blanks:  # the blank row, also for a rank that has no other
            images = np.concatenate([images, np.zeros_like(images, shape=(1, *images.shape[1:]))])
            labels = np.append(labels, 0)
        self._images, self._labels = tf.constant(images), tf.constant(labels)
        self._indices: Callable[[], np.ndarray] = lambda: np.append(
            order.indices(epoch(), rank, world), len(labels) - 1
        )

    def from_step(self, first: int) -> Any:
        """The epoch's batches from a step on: (images, labels), or where some are blank (images, labels, weights)."""
        import tensorflow as tf

        bounds = tf.data.Dataset.from_tensor_slices((self._starts[first:], self._ends[first:]))

        def one_epoch(_: Any) -> Any:
            rows = tf.ensure_shape(tf.numpy_function(self._indices, [], tf.int64), (None,))
            return bounds.map(lambda start, end: self._batch(rows, start, end))

        options = tf.data.Options()
        options.autotune.enabled = False
        options.threading.private_threadpool_size = 1
        options.threading.max_intra_op_parallelism = 1
        whole = tf.data.Dataset.from_tensors(0).flat_map(one_epoch)
        return whole.apply(tf.data.experimental.assert_cardinality(len(self._starts) - first)).with_options(options)

    def _batch(self, rows: Any, start: Any, end: Any) -> tuple[Any, ...]:
        import tensorflow as tf

        index = rows[start : tf.maximum(end, start + 1)] if self._has_blanks else rows[start:end]
        images, labels = feed(tf.gather(self._images, index), self._pixels), tf.gather(self._labels, index)
        if not self._has_blanks:
            return images, labels
        return images, labels, tf.fill(tf.shape(index), tf.cast(end > start, tf.keras.backend.floatx()))
