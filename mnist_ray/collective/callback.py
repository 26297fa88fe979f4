"""The Keras callback that keeps the workers of a ring alike: the same weights to start from, the same logs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .ring import Ring
from .variables import all_reduce_variables, broadcast_variables, part_seeds


def synchronize(ring: Ring, *, blank_steps: Callable[[], int] | None = None) -> Any:
    """A Keras callback, to be first in the list: on every worker the same weights to start from and the same logs.

    Metrics are summed by their counts, so the loss and the metrics of an epoch are over all workers' rows, and so are
    `val_loss` and the like where `fit` has `validation_data`: each worker's own share, in any number of batches.
    That is right for metrics whose state is a sum, as in all that Keras ships except the exact medians. Keras itself
    makes the losses of single outputs means over batches.

    blank_steps: returns the number of steps of this epoch in which this worker had no row of its own, but one at
    weight 0. Compile with `weighted_metrics` then: Keras counts a row in other metrics whatever its weight. In those
    steps a regularizer's penalty also counts in the loss that is shown. Raises ValueError before the first step where
    the workers cannot train together, such as with unlike numbers of steps.
    """
    import keras

    class Synchronize(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_begin(self, logs: Any = None) -> None:
            _check(ring, self.model, self.params)
            broadcast_variables(ring, [*self.model.variables, *self.model.optimizer.variables])
            part_seeds(ring, self.model.variables)

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.trained: dict[str, float] = {}
            self.validated: dict[str, float] = {}

        def on_test_begin(self, logs: Any = None) -> None:
            # Validation resets the training's metrics, and must see the averaged moving statistics.
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
                count = loss_row_count(self.model)
                count.assign(count - blank)
            return self._total()

        def _total(self) -> dict[str, float]:
            all_reduce_variables(ring, [v for metric in self.model.metrics for v in metric.variables])
            return {name: float(value) for name, value in self.model.get_metrics_result().items()}

    return Synchronize()


def _check(ring: Ring, model: Any, params: dict[str, Any]) -> None:
    """Raise ValueError where a training over more than one worker would fail, or be wrong, later."""
    if ring.size == 1:
        return
    if not getattr(model.optimizer, "is_data_parallel", False):
        if getattr(getattr(model.optimizer, "inner_optimizer", None), "is_data_parallel", False):
            raise ValueError(
                "one worker could skip a step that the others make: with float16, compile with"
                " data_parallel(keras.optimizers.LossScaleOptimizer(optimizer), ring)"
            )
        raise ValueError("the workers would train apart: compile with data_parallel(optimizer, ring)")
    if model.jit_compile:
        raise ValueError("XLA cannot call the ring: compile with jit_compile=False")
    for name in ("steps", "epochs", "steps_per_execution"):
        number = model.steps_per_execution if name == "steps_per_execution" else params.get(name)
        numbers = np.zeros(ring.size, np.int64)
        numbers[ring.rank] = -1 if number is None else number
        if len(set(ring.all_reduce(numbers).tolist())) > 1:
            raise ValueError(
                f"all workers need the same number of {name}, but from rank 0 on they have {numbers.tolist()}; batches"
                " may differ in size, if rows and global_rows are passed to data_parallel"
            )


def loss_row_count(model: Any) -> Any:
    """The variable with the number of rows in a compiled model's mean loss. Keras counts rows at weight 0, too."""
    return next(metric for metric in model.metrics if metric.name == "loss").count
