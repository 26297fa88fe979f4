"""A small model whose training takes its time without using it: what drills of minutes need on any machine."""

from __future__ import annotations

import time
from typing import Any

SECONDS_A_BLOCK = 0.4


def mlp(image_shape: tuple[int, ...], num_classes: int) -> Any:
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(image_shape),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(num_classes),
        ]
    )


def callbacks() -> list[Any]:
    import keras

    class Rest(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            time.sleep(SECONDS_A_BLOCK)

    return [Rest()]
