"""Test accuracy of the default job for five seeds: `python -m tests.benchmarks.seeds [OPTION ...]`."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MNIST_RAY = Path(sys.executable).with_name("mnist-ray")


def accuracy(seed: int, options: list[str]) -> float:
    with tempfile.TemporaryDirectory() as storage:
        run = [MNIST_RAY, "run", "--storage", storage, "--seed", str(seed), *options]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
        return float(json.loads((Path(storage) / "mnist" / "metrics.json").read_text())["after"]["accuracy"])


def main(options: list[str]) -> None:
    found = []
    for seed in range(5):
        found.append(accuracy(seed, options))
        print(f"seed {seed}  accuracy {found[-1]:.4f}", flush=True)
    print(f"mean    accuracy {statistics.mean(found):.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
