"""The whole `score` command with either engine, in turn: `python -m tests.benchmarks.engines [FILES]`.

10,000 images, where the start counts, and FILES files of 131,072 rows (16 by default), where the computing does:
seconds from the command's start to its exit, images/s, and an actor's peak memory.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.scale import score
from tests.benchmarks.scoring import ROUNDS, make_input, make_model

ENGINES = ("openvino", "tensorflow")


def main(files: int = 16) -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as scratch:
        folder = Path(scratch)
        make_model(folder / "run")
        make_input(folder / "few", 1, 10_000)
        make_input(folder / "many", files)
        for images in ("few", "many"):
            found: dict[str, list[dict[str, Any]]] = {engine: [] for engine in ENGINES}
            for _ in range(ROUNDS):
                for engine in ENGINES:
                    found[engine].append(score(folder, images, "--overwrite", "--engine", engine))
            report(images, found)


def report(images: str, found: dict[str, list[dict[str, Any]]]) -> None:
    for engine, told in found.items():
        wall, rate, peak, own = (
            statistics.median(each[name] for each in told)
            for name in ("wall", "images_per_second", "peak_megabytes", "own_megabytes")
        )
        print(
            f"{images}, {engine}: {wall:.1f} s, {rate:,.0f} images/s, an actor's peak {peak:,.0f} MB ({own:,.0f} its"
            " own)"
        )
    ratios = [mine["wall"] / theirs["wall"] for mine, theirs in zip(*found.values(), strict=True)]
    print(
        f"{images}: {statistics.median(ratios):.2f} x TensorFlow's seconds (load {os.getloadavg()[0]:.1f})", flush=True
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
