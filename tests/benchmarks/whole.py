"""The whole command beside what an expert would write, from start to exit: `python -m tests.benchmarks.whole [FILES]`.

FILES files of 131,072 rows (32 by default), and 10,000 images: seconds of `score`, and of two plain processes with
TensorFlow and XLA that each take half of the files, imports and compiling included. In turn, several rounds.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.job import MNIST_RAY, seconds
from tests.benchmarks.scoring import CORES, ROUNDS, ROWS, in_two, make_input, make_model, plain


def main(files: int = 32) -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as scratch:
        folder = Path(scratch)
        make_model(folder / "run")
        make_input(folder / "images", files)
        make_input(folder / "few", 1, 10_000)
        ratios = []
        for _ in range(ROUNDS):
            ours = scoring(folder, "images")
            began = time.time()
            in_two(plain, folder, files * ROWS)
            theirs = time.time() - began
            few = scoring(folder, "few")
            ratios.append(ours / theirs)
            print(f"{files * ROWS:,} images: {ours:.1f} s, {CORES} plain processes {theirs:.1f} s; 10,000: {few:.1f} s")
        print(f"whole / plain: {statistics.median(ratios):.2f} (load {os.getloadavg()[0]:.1f})", flush=True)


def scoring(folder: Path, images: str) -> float:
    """Seconds."""
    output = folder / "out"
    shutil.rmtree(output, ignore_errors=True)
    return seconds([MNIST_RAY, "score", folder / images, "--model", folder / "run", "--output", output])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
