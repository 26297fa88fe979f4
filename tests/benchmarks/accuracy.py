"""Seconds of training until 97.5 % of the test images are right: `python -m tests.benchmarks.accuracy`.

The tutorial as it stands; the best setting that was found, in one process as an expert would run it; and the same
setting by our job, with as many epochs as it takes. In turn, a seed a round. The single processes are looked at after
each epoch, which is not counted; the job's last epoch must be right enough for every seed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MNIST_RAY = Path(sys.executable).with_name("mnist-ray")
RUNS, TARGET, MOST_EPOCHS = 3, 0.975, 12
EPOCHS, BATCH, RATE, DROPOUT = 5, 128, 0.003, 0.1  # the best setting


def alone(seed: int, batch: int, rate: float, dropout: float, block: int) -> None:
    """One process; prints its seconds."""
    import keras

    from tests.benchmarks.tutorial_data import read

    keras.utils.set_random_seed(seed)
    (x_train, y_train), (x_test, y_test) = (read(split) for split in ("train", "t10k"))
    x_train, x_test = x_train / 255.0, x_test / 255.0
    layers = [keras.layers.Flatten(), keras.layers.Dense(128, activation="relu"), keras.layers.Dropout(dropout),
              keras.layers.Dense(10)]  # fmt: skip
    model = keras.Sequential([keras.Input((28, 28)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"], steps_per_execution=block)
    seconds = 0.0
    for _ in range(MOST_EPOCHS):
        began = time.perf_counter()
        model.fit(x_train, y_train, batch_size=batch, verbose=0)
        seconds += time.perf_counter() - began
        if model.evaluate(x_test, y_test, batch_size=1000, verbose=0)[1] >= TARGET:
            break
    print(seconds)


def single(*arguments: float) -> float:
    call = f"from tests.benchmarks.accuracy import alone; alone(*{arguments})"
    done = subprocess.run(
        [sys.executable, "-c", call], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    return float(done.stdout.split()[-1])


def ours(seed: int) -> float:
    with tempfile.TemporaryDirectory() as storage:
        run = [MNIST_RAY, "run", "--storage", storage, "--seed", str(seed), "--epochs", str(EPOCHS),
               "--batch-size", str(BATCH), "--learning-rate", str(RATE), "--dropout", str(DROPOUT)]  # fmt: skip
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        metrics = json.loads((Path(storage) / "mnist" / "metrics.json").read_text())
    assert metrics["after"]["accuracy"] >= TARGET, f"seed {seed}: {metrics['after']['accuracy']}"
    return float(metrics["train"]["seconds"])


def main() -> None:
    print("tutorial s   expert s   ours s   tutorial / ours   expert / ours")
    ratios = []
    for seed in range(RUNS):
        tutorial, expert = single(seed, 32, 0.001, 0.2, 1), single(seed, BATCH, RATE, DROPOUT, 100)
        job = ours(seed)
        ratios.append((tutorial / job, expert / job))
        print(
            f"{tutorial:10.1f}   {expert:8.1f}   {job:6.1f}   {ratios[-1][0]:15.2f}   {ratios[-1][1]:13.2f}", flush=True
        )
    medians = [statistics.median(each) for each in zip(*ratios, strict=True)]
    print(f"medians: {medians[0]:.2f} × the tutorial, {medians[1]:.2f} × the expert's single process")


if __name__ == "__main__":
    main()
