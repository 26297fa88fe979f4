"""A model, an optimizer and a callback as users bring their own, and in numpy what two of their epochs give."""

from __future__ import annotations

from typing import Any

import numpy as np


def classifier(image_shape: tuple[int, ...], num_classes: int) -> Any:
    import keras

    layers = keras.layers
    return keras.Sequential(
        [keras.Input(image_shape), layers.Flatten(), layers.Dense(num_classes, kernel_initializer="zeros")]
    )


def optimizer(learning_rate: float) -> Any:
    import keras

    return keras.optimizers.SGD(learning_rate, momentum=0.5)


def callbacks() -> list[Any]:
    """No loss is better by 9 than the first: after the second epoch all workers stop."""
    import keras

    return [keras.callbacks.EarlyStopping("loss", min_delta=9)]


def by_hand(images: np.ndarray, labels: np.ndarray, learning_rate: float) -> tuple[np.ndarray, list[float]]:
    """Weights (pixels + 1, 10), the last row the bias, and losses after two steps, each over all images."""
    rows = np.column_stack([images.reshape(len(images), -1) / 255, np.ones(len(images))])
    is_class = np.eye(10)[labels]
    weights, velocity, losses = np.zeros((rows.shape[1], 10)), np.zeros((rows.shape[1], 10)), []
    for _ in range(2):
        chances = np.exp(rows @ weights)
        chances /= chances.sum(1, keepdims=True)
        losses.append(float(-np.log(chances[is_class == 1]).mean()))
        velocity = 0.5 * velocity - learning_rate * rows.T @ (chances - is_class) / len(images)
        weights += velocity
    return weights, losses
