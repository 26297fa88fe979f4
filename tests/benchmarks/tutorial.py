"""TensorFlow's beginner tutorial in one process, as a person would type it, on the embedded MNIST: the yardstick.

`--block N` compiles N steps into one call, which is what an expert would do in one process. `--timing FILE` keeps the
seconds of `fit`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from tests.benchmarks.tutorial_data import read


def main(block: int, timing: Path | None) -> None:
    (x_train, y_train), (x_test, y_test) = (read(split) for split in ("train", "t10k"))
    x_train, x_test = x_train / 255.0, x_test / 255.0
    model = tf.keras.models.Sequential(
        [
            tf.keras.layers.Input((28, 28)),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(128, activation="relu"),
            tf.keras.layers.Dropout(0.2),
            tf.keras.layers.Dense(10),
        ]
    )
    print(model(x_train[:1]).numpy(), tf.nn.softmax(model(x_train[:1])).numpy())
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss, metrics=["accuracy"], steps_per_execution=block)
    model.evaluate(x_test, y_test, verbose=2)
    began = time.perf_counter()
    model.fit(x_train, y_train, epochs=5)
    if timing:
        timing.write_text(json.dumps({"fit": time.perf_counter() - began}))
    model.evaluate(x_test, y_test, verbose=2)
    probabilities = tf.keras.Sequential([model, tf.keras.layers.Softmax()])
    print(probabilities(x_test[:5]).numpy())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--block", type=int, default=1)
    parser.add_argument("--timing", type=Path)
    arguments = parser.parse_args()
    main(arguments.block, arguments.timing)
