"""A model, an optimizer and callbacks that remember: moving statistics, averages, rates, counts, the best weights."""

from __future__ import annotations

from typing import Any


def classifier(image_shape: tuple[int, ...], num_classes: int) -> Any:
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(image_shape),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(num_classes),
        ]
    )


def optimizer(learning_rate: float) -> Any:
    import keras

    return keras.optimizers.Adam(learning_rate, use_ema=True, ema_momentum=0.9)


def callbacks() -> list[Any]:
    """They slow down and stop by what they remember alone: no loss is better by 100 than the first."""
    import keras

    class EveryOther(keras.callbacks.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.losses: list[float] = []
            self.seen: dict[str, int] = {"blocks": 0}

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.seen["blocks"] += 1

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.losses.append(logs["loss"])
            if len(self.losses) % 2 == 0:
                rate = float(self.model.optimizer.learning_rate)
                self.model.optimizer.learning_rate = rate * (0.9 + self.seen["blocks"] / 1000)

    return [
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=2, min_delta=100, cooldown=1),
        EveryOther(),
        keras.callbacks.EarlyStopping("loss", patience=3, min_delta=100, restore_best_weights=True),
    ]
