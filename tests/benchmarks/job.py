"""The whole default job against TensorFlow's tutorial as one script: `python -m tests.benchmarks.job`.

Both are timed from outside, in turn, so that the ratio holds when the machine's speed drifts.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MNIST_RAY = Path(sys.executable).with_name("mnist-ray")
RUNS = 3


def seconds(command: list[Any]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    ratios, fits = [], []
    print("job s   tutorial s   ratio   training s   fit s   ratio")
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as storage:
            job = seconds([MNIST_RAY, "run", "--storage", storage])
            trained = json.loads((Path(storage) / "mnist" / "metrics.json").read_text())["train"]["seconds"]
            timing = Path(storage) / "fit.json"
            tutorial = seconds([sys.executable, "-m", "tests.benchmarks.tutorial", "--timing", timing])
            fit = json.loads(timing.read_text())["fit"]
        ratios.append(job / tutorial)
        fits.append(trained / fit)
        print(f"{job:5.1f}   {tutorial:10.1f}   {ratios[-1]:5.2f}   {trained:10.1f}   {fit:5.1f}   {fits[-1]:5.2f}")
    print(f"median ratio of the whole: {statistics.median(ratios):.2f}   of the training alone: "
          f"{statistics.median(fits):.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
