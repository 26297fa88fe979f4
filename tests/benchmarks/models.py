"""Models as an actor computes them, by either engine, beside Keras' `predict`: `python -m tests.benchmarks.models`.

On one core: mlp and cnn at 28 pixels a side, three models of keras.applications at 96, with random weights and on
random images. What is measured is the computing alone, in the way that the first actor of a job would choose; by CPU
time, as others may use the machine. Where the CPU has bfloat16, OpenVINO's gain by it is told as well.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

ROUNDS, IMAGES = 5, 256
KNOWN = ("MobileNetV2", "EfficientNetB0", "ResNet50")


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from mnist_ray.models.build import Recipe, build
    from mnist_ray.models.runtime import import_keras

    keras = import_keras(threads=1)
    for architecture, rows in (("mlp", 16 * IMAGES), ("cnn", 4 * IMAGES)):
        recipe = Recipe(
            architecture=architecture, image_shape=(28, 28), num_classes=10, dropout=0.2, seed=0, precision="float32"
        )
        compare(architecture, build(recipe), rows)
    for name in KNOWN:
        compare(name, getattr(keras.applications, name)(input_shape=(96, 96, 3), weights=None, classes=10), IMAGES)


def compare(name: str, model: Any, rows: int) -> None:
    from mnist_ray.models.conversion import NotConverted, convert
    from mnist_ray.models.engines.tensorflow import KerasClassifier
    from mnist_ray.models.inference import Inference, fastest, has_bfloat16

    shape = tuple(model.input_shape[1:])
    images = np.random.default_rng(0).integers(0, 256, (rows, *shape)).astype(np.uint8)
    original = KerasClassifier(
        model=model, sha256="", input_shape=shape, num_classes=10, classes=None, pixels="0-255",
        gives_logits=name not in KNOWN,
    )  # fmt: skip
    began = time.perf_counter()
    converted = convert(original, images)
    assert not isinstance(converted, NotConverted), converted
    converting = time.perf_counter() - began
    openvino, tensorflow, narrow = (
        fastest(Inference(each, shape, most_rows=rows), images[:32], most_rows=rows, total_rows=10**7)
        for each in (converted, original, converted.in_precision("bfloat16"))
    )
    seconds = [
        (
            timed(openvino, images),
            timed(tensorflow, images),
            timed(model.predict, images, verbose=0),
            timed(narrow, images),
        )
        for _ in range(ROUNDS + 1)
    ][1:]  # without the one that compiles
    best = [1e6 * min(each) / rows for each in zip(*seconds, strict=True)]
    faster = [statistics.median(theirs[other] / theirs[0] for theirs in seconds) for other in (1, 2, 3)]
    gain = f"; bfloat16 {1 / faster[2]:.2f} x" if has_bfloat16() else ""
    print(
        f"{name}: OpenVINO {best[0]:,.1f} µs an image, TensorFlow {best[1]:,.1f} ({faster[0]:.2f} x), Keras' predict"
        f" {best[2]:,.1f} ({faster[1]:.2f} x); converted in {converting:.1f} s; {openvino.execution.batch_size} and"
        f" {tensorflow.execution.batch_size} at once, XLA {tensorflow.execution.jit}{gain}",
        flush=True,
    )


def timed(work: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    began = time.process_time()
    work(*arguments, **options)
    return time.process_time() - began


if __name__ == "__main__":
    main()
