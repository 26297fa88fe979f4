"""The Keras callback that keeps the workers of a ring alike: the same weights to start from, the same logs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .ring import Ring
from .variables import all_reduce_variables, broadcast_variables


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
