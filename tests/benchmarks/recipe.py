"""A step of ours against one of Ray's documented TensorflowTrainer recipe: `python -m tests.benchmarks.recipe`.

The same model, the same global batch of 64, two workers of one CPU each, both through Ray Train, in turn. The recipe
runs on Keras 2 (`tf-keras`): with Keras 3, `fit` fails under MultiWorkerMirroredStrategy.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RUNS, STEPS, BATCH = 3, 300, 64
MNIST_RAY = Path(sys.executable).with_name("mnist-ray")


def _recipe_loop(config: dict[str, Any]) -> None:
    """As in Ray's guide: a strategy, a model in its scope, the global batch, `fit`."""
    import numpy as np
    import tensorflow as tf
    from ray import train

    images = np.frombuffer(Path(config["images"]).read_bytes(), np.uint8).reshape(-1, 28, 28) / np.float32(255)
    labels = np.frombuffer(Path(config["labels"]).read_bytes(), np.uint8).astype(np.int64)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model = tf.keras.Sequential(
            [
                tf.keras.layers.Flatten(input_shape=(28, 28)),
                tf.keras.layers.Dense(128, activation="relu"),
                tf.keras.layers.Dropout(0.2),
                tf.keras.layers.Dense(10),
            ]
        )
        loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).repeat().batch(BATCH)
    milliseconds = []

    class Clock(tf.keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.began = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            milliseconds.append(1000 * (time.perf_counter() - self.began) / STEPS)

    model.fit(dataset, epochs=3, steps_per_epoch=STEPS, verbose=0, callbacks=[Clock()])
    if train.get_context().get_world_rank() == 0:
        Path(config["result"]).write_text(json.dumps(min(milliseconds[1:])))


def recipe(folder: Path) -> float:
    """Milliseconds a step of the recipe, in its best epoch after the first."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.tensorflow import TensorflowTrainer

    from tests.benchmarks.tutorial_data import read

    images, labels = read("train")
    config = {name: str(folder / name) for name in ("images", "labels", "result")}
    Path(config["images"]).write_bytes(images[:6400].tobytes())
    Path(config["labels"]).write_bytes(labels[:6400].tobytes())
    # Ray's backend sets this too, but in a worker that has imported TensorFlow already that is too late.
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        TensorflowTrainer(
            _recipe_loop,
            train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(storage_path=str(folder / "ray"), name="recipe"),
        ).fit()
    finally:
        ray.shutdown()
        del os.environ["TF_USE_LEGACY_KERAS"]
    return float(json.loads(Path(config["result"]).read_text()))


def ours(folder: Path) -> float:
    run = [MNIST_RAY, "run", "--storage", folder, "--batch-size", str(BATCH), "--epochs", "3"]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
    return float(json.loads((folder / "mnist" / "metrics.json").read_text())["train"]["milliseconds_per_step"])


def main() -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ratios = []
    print("recipe ms a step   ours   ratio")
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            theirs, mine = recipe(Path(folder)), ours(Path(folder))
        ratios.append(theirs / mine)
        print(f"{theirs:16.2f}   {mine:4.2f}   {ratios[-1]:5.1f}", flush=True)
    print(f"median ratio: {statistics.median(ratios):.1f}")


if __name__ == "__main__":
    main()
