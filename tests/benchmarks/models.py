"""Known architectures as an actor computes them beside Keras' `predict`, one core: `python -m tests.benchmarks.models`.

The models of keras.applications, with random weights, on random images of 96 x 96 pixels: what is measured is the
computing alone, by the way that the first actor of a job would choose, and `predict` with its default batch of 32.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

ROUNDS, IMAGES, SIDE = 5, 256, 96
MODELS = ("MobileNetV2", "EfficientNetB0", "ResNet50")


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from mnist_ray.models import inference
    from mnist_ray.models.engines.tensorflow import KerasClassifier
    from mnist_ray.models.runtime import import_keras

    keras = import_keras(threads=1)
    shape = (SIDE, SIDE, 3)
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, *shape)).astype(np.uint8)
    for name in MODELS:
        model = getattr(keras.applications, name)(input_shape=shape, weights=None, classes=10)
        loaded = KerasClassifier(
            model=model, sha256="", input_shape=shape, num_classes=10, classes=None, pixels="0-255"
        )
        usual = inference.Inference(loaded, shape, most_rows=IMAGES)
        ask = inference.fastest(usual, images[:32], most_rows=IMAGES, total_rows=10**6)
        timed(ask, images), timed(model.predict, images, verbose=0)  # compiled
        seconds = [(timed(ask, images), timed(model.predict, images, verbose=0)) for _ in range(ROUNDS)]
        ratio = statistics.median(theirs / mine for mine, theirs in seconds)
        rate = IMAGES / min(mine for mine, _ in seconds)
        print(f"{name}: {rate:,.0f} images/s, {ratio:.2f} x predict ({ask.execution})", flush=True)


def timed(work: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    began = time.perf_counter()
    work(*arguments, **options)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
