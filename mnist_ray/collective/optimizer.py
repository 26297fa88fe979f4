"""A Keras optimizer that applies the mean gradient of the whole group's batch.

Keras 3's `fit` does not run under `MultiWorkerMirroredStrategy` (https://github.com/keras-team/keras/issues/20585).
Here every worker builds and compiles the model as for one process, and the optimizer sums the gradients over the ring
first, in one fused all-reduce inside the compiled step, so that clipping and weight decay see the gradient of the
global batch.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .keras_private import step_counter
from .ring import Ring


def data_parallel(
    optimizer: Any, ring: Ring, *, rows: ArrayLike | None = None, global_rows: ArrayLike | None = None
) -> Any:
    """The same Keras optimizer (its `apply` is replaced), applying the mean gradient of the whole group's batch.

    Compile with `jit_compile=False`: XLA cannot call the ring. With float16, wrap the LossScaleOptimizer, not the
    optimizer in it: whether a step is skipped must be decided by the sum, which is the same on all workers.

    rows, global_rows: (steps of an epoch,) integers: `rows[k]` is the number of rows that this worker has in step k,
    `global_rows[k]` the number that all workers have together. The worker's gradient is that of Keras' usual mean loss;
    multiplied by its rows, summed and divided by all rows it is the gradient of the global batch, regularizers
    included. Without these tables all workers count alike.

    A weight without a gradient keeps none on every worker: Keras leaves it alone, as in one process.
    Sparse gradients (Embedding) are made dense. Adam and similar optimizers then differ from Keras in one process,
    which squares the rows of a sparse gradient one by one, even where an index repeats.
    """
    # One factor before the sum, rather than one before it and a division after it.
    weights = np.asarray([1 / ring.size]) if rows is None else np.asarray(rows) / np.asarray(global_rows)
    apply, step = optimizer.apply, step_counter(optimizer)
    # An optimizer that scales the loss leaves the counting to the one in it, which counts no step that is skipped.
    is_counting = hasattr(optimizer, "inner_optimizer")

    def apply_mean(grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> Any:
        if ring.size > 1:
            grads = _sum_over_ring(ring, grads, weights, step)
        if is_counting:
            step.assign_add(1)
        # Keras clips inside: after the sum, as one process would.
        return apply(grads, trainable_variables)

    # Neither a subclass, which no other program could load from a saved model, nor rebuilt from its config, which may
    # leave parts of it out.
    optimizer.apply = apply_mean
    optimizer.is_data_parallel = True
    return optimizer


def _sum_over_ring(ring: Ring, grads: Sequence[Any], weights: np.ndarray, step: Any) -> list[Any]:
    """The sum of all workers' gradients, each times its weight in this step; None where there is no gradient."""
    import tensorflow as tf

    def all_reduce(flat: np.ndarray) -> np.ndarray:
        _keep_thread_state()
        return ring.all_reduce(flat)  # in TensorFlow's own memory

    dense = [tf.convert_to_tensor(grad) for grad in grads if grad is not None]
    if not dense:
        return list(grads)
    wide = tf.float64 if any(grad.dtype == tf.float64 for grad in dense) else tf.float32
    flat = tf.concat([tf.reshape(tf.cast(grad, wide), [-1]) for grad in dense], 0)
    # This also makes memory that nothing else reads, so that the ring can add in place.
    flat *= tf.gather(tf.constant(weights, wide), tf.math.floormod(tf.convert_to_tensor(step), len(weights)))
    flat = tf.ensure_shape(tf.numpy_function(all_reduce, [flat], wide), flat.shape)
    parts = iter(tf.split(flat, [grad.shape.num_elements() for grad in dense]))
    return [None if grad is None else tf.cast(tf.reshape(next(parts), grad.shape), grad.dtype) for grad in grads]


_threads_kept = threading.local()


def _keep_thread_state() -> None:
    """Let this thread, one of TensorFlow's, keep its Python thread state until the process ends.

    Otherwise every call into Python makes a new one and throws it away again: 60 µs a call instead of 25.
    """
    if not hasattr(_threads_kept, "state"):
        # No PyGILState_Release follows, which would drop the state. The lock is released by the call's own pair.
        _threads_kept.state = ctypes.pythonapi.PyGILState_Ensure()
