"""Scoring PNG files beside decoding them alone, on two cores: `python -m tests.benchmarks.folders [IMAGES]`.

The real training images, a file each. Two plain processes read and decode them with the same decoder, half of the files
each, and do nothing else: what the cores can decode. Both are in the steady state, as in `tests.benchmarks.scoring`.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.scoring import in_two, make_model, ours

ROUNDS = 5  # a round takes seconds, and the machine is not always as fast


def main(images: int = 60_000) -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as scratch:
        folder = Path(scratch)
        make_files(folder / "images", images)
        make_model(folder / "run")
        found = []
        for turn in range(ROUNDS):
            found.append((ours(folder, turn), in_two(decode_alone, folder, images)))
            print("ours {:,.0f}  decode alone {:,.0f}".format(*found[-1]), flush=True)
    print(f"{images:,} PNG files: {statistics.median(mine / theirs for mine, theirs in found):.2f} × of decoding alone")


def make_files(folder: Path, images: int) -> None:
    from PIL import Image

    from tests.benchmarks.tutorial_data import read

    pixels, labels = read("train")
    for number in range(10):
        (folder / str(number)).mkdir(parents=True)
    for row in range(images):
        label = labels[row % len(labels)]
        Image.fromarray(pixels[row % len(pixels)]).save(folder / str(label) / f"{row:06d}.png")


def decode_alone(folder: Path, names: list[Path]) -> Callable[[], None]:
    from mnist_ray.sources.decoding import decode

    def loop() -> None:
        for name in names:
            decode(name.read_bytes(), (28, 28))

    return loop


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
