"""Callbacks that write files beside each other, one that stops one worker alone, and loss scaling."""

from __future__ import annotations

from typing import Any

from tests.support.own_model import classifier

__all__ = ["callbacks", "classifier", "optimizer"]


def optimizer(learning_rate: float) -> Any:
    import keras

    return keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(learning_rate))


def callbacks() -> list[Any]:
    import keras

    from mnist_ray.collective import get_ring

    class StopsOne(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1 and get_ring().rank == 1:
                self.model.stop_training = True

    return [
        keras.callbacks.CSVLogger("log.csv"),
        keras.callbacks.ModelCheckpoint("best.keras", monitor="loss", save_best_only=True),
        StopsOne(),
    ]
