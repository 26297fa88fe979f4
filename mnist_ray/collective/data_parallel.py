"""Data-parallel Keras 3 on Ray Train: plain `fit`, with the gradients added up over a ring of the workers.

Keras 3's `fit` does not run under `MultiWorkerMirroredStrategy` (keras#20585). Here every worker builds and compiles
the model as for one process, and three small pieces make the group behave like one process with the global batch:

- `RingConfig`, a Ray Train backend: its workers stand in a ring (`ring.py`) before the training function begins;
- `data_parallel(optimizer, ring)`: the same optimizer, which first adds the gradients up over the ring, in one fused
  all-reduce inside the compiled step, so that clipping and weight decay see the global gradient;
- `synchronize(ring)`: the callback that starts all workers from rank 0's weights, averages moving statistics, and
  makes each epoch's metrics those of all workers, before any other callback acts on them.

Nothing here knows what is trained. With `ring.py` it is all that another project needs to take.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .ring import Ring


def data_parallel(
    optimizer: Any, ring: Ring, *, rows: ArrayLike | None = None, global_rows: ArrayLike | None = None
) -> Any:
    """The same Keras optimizer (its class is changed in place), applying the mean gradient of the whole group's batch.

    Compile with `jit_compile=False`: XLA cannot call the ring.

    `rows[k]` is how many rows this worker has in step k of an epoch, `global_rows[k]` how many all workers have
    together. The worker's gradient is that of Keras' usual mean loss; multiplied by its rows, added up and divided by
    all rows it is the gradient of the global batch, regularizers included. Without tables all shares count alike.
    A weight without gradient stays without on every worker: Keras leaves it alone, as in one process.
    Sparse gradients (Embedding) are made dense. Adam and its kin then differ from Keras in one process, which squares
    the rows of a sparse gradient one by one, even where an index repeats.
    """
    import tensorflow as tf

    # One factor before the sum, rather than one before it and a division after it.
    weights = np.asarray([1 / ring.size]) if rows is None else np.asarray(rows) / np.asarray(global_rows)

    def add_up(flat: np.ndarray) -> np.ndarray:
        _keep_thread_state()
        return ring.all_reduce(flat)  # in TensorFlow's own memory

    base: Any = type(optimizer)

    class DataParallel(base):  # type: ignore[misc]
        def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> Any:
            if ring.size > 1:
                grads = self._sum_over_ring(grads)
            # Keras clips inside: after the sum, as one process would.
            return super().apply(grads, trainable_variables)

        def _sum_over_ring(self, grads: Sequence[Any]) -> list[Any]:
            dense = [tf.convert_to_tensor(grad) for grad in grads if grad is not None]
            if not dense:
                return list(grads)
            wide = tf.float64 if any(grad.dtype == tf.float64 for grad in dense) else tf.float32
            flat = tf.concat([tf.reshape(tf.cast(grad, wide), [-1]) for grad in dense], 0)
            # Not `iterations`, which with `gradient_accumulation_steps` counts updates.
            step = tf.math.floormod(tf.convert_to_tensor(self._iterations), len(weights))
            # This also makes memory that nobody else reads, to be added up in place.
            flat *= tf.gather(tf.constant(weights, wide), step)
            flat = tf.ensure_shape(tf.numpy_function(add_up, [flat], wide), flat.shape)
            parts = iter(tf.split(flat, [grad.shape.num_elements() for grad in dense]))
            return [
                None if grad is None else tf.cast(tf.reshape(next(parts), grad.shape), grad.dtype) for grad in grads
            ]

    DataParallel.__name__ = DataParallel.__qualname__ = base.__name__
    optimizer.__class__ = DataParallel  # not rebuilt from its config, which need not hold all that it is
    return optimizer


_threads_kept = threading.local()


def _keep_thread_state() -> None:
    """Let this thread, one of TensorFlow's, keep what Python makes for it until the process ends.

    Otherwise every call into Python makes that anew and throws it away again: 60 µs a call instead of 25.
    """
    if not hasattr(_threads_kept, "state"):
        # Without a PyGILState_Release that would drop it. It does not keep the lock: the call's own pair does that.
        _threads_kept.state = ctypes.pythonapi.PyGILState_Ensure()


def all_reduce_variables(ring: Ring, variables: Sequence[Any], *, divide_by: int = 1) -> None:
    """Replace Keras variables by their sum over the ring, divided: one all-reduce for all of them, in float64."""
    _exchange(ring, variables, lambda flat: ring.all_reduce(flat) / divide_by)


def broadcast_variables(ring: Ring, variables: Sequence[Any]) -> None:
    """Give every worker rank 0's values. float64 holds each of the dtypes that Keras weights have exactly."""
    _exchange(ring, variables, ring.broadcast)


def _exchange(ring: Ring, variables: Sequence[Any], call: Callable[[np.ndarray], np.ndarray]) -> None:
    if ring.size == 1 or not variables:
        return
    values = [np.asarray(variable, np.float64) for variable in variables]
    flat = call(np.concatenate([value.ravel() for value in values]))
    start = 0
    for variable, value in zip(variables, values, strict=True):
        variable.assign(flat[start : start + value.size].reshape(value.shape))
        start += value.size


def synchronize(ring: Ring, *, blank_steps: Callable[[], int] | None = None) -> Any:
    """A Keras callback, to be first in the list: on every worker the same weights to start from and the same logs.

    Metrics are summed by their counts, so the loss and the metrics of an epoch are over all workers' rows, and so are
    `val_loss` and the like where `fit` has `validation_data`: each worker's own share, in as many batches as it likes.
    That is right for metrics whose state is a sum (Mean, accuracies, AUC, confusion counts: all that Keras ships but
    the exact medians). Keras itself makes the losses of single outputs means over batches.

    `blank_steps()` is the number of this epoch's steps in which this worker had a row at weight 0 and none of its own.
    Compile with `weighted_metrics` then: Keras counts a row in other metrics whatever its weight. A regularizer's
    penalty counts in the shown loss in those steps, too.
    """
    import keras

    class Synchronize(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_begin(self, logs: Any = None) -> None:
            broadcast_variables(ring, [*self.model.variables, *self.model.optimizer.variables])

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.trained: dict[str, float] = {}
            self.validated: dict[str, float] = {}

        def on_test_begin(self, logs: Any = None) -> None:
            # The last moment of the training's metrics; and validation must see the averaged statistics.
            self.trained = self._end_training()

        def on_test_end(self, logs: Any = None) -> None:
            self.validated = {f"val_{name}": value for name, value in self._total().items()}

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if logs is not None:
                logs.update(self.trained or self._end_training())
                logs.update(self.validated)

        def _end_training(self) -> dict[str, float]:
            moving = [v for v in self.model.non_trainable_variables if "float" in str(v.dtype)]
            all_reduce_variables(ring, moving, divide_by=ring.size)
            if blank_steps is not None and (blank := blank_steps()):
                # Keras counts a row in the mean loss whatever its weight.
                count = self.model._loss_tracker.count
                count.assign(count - blank)
            return self._total()

        def _total(self) -> dict[str, float]:
            all_reduce_variables(ring, [v for metric in self.model.metrics for v in metric.variables])
            return {name: float(value) for name, value in self.model.get_metrics_result().items()}

    return Synchronize()
