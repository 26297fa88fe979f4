"""`score --precision bfloat16` beside float32, on two cores: `python -m tests.benchmarks.precision [mlp] [cnn]`.

For the mlp and the cnn, in turn, several rounds: the real command, as in `tests.benchmarks.scoring`; and computing
alone, on images that lie in memory, by the way that the command would choose. A CPU without instructions for bfloat16
is told of: there is nothing to compare.
"""

from __future__ import annotations

import functools
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.scoring import CORES, in_two, make_input, make_model, ours

ROUNDS = 5
PRECISIONS = ("float32", "bfloat16")
INPUTS = {"mlp": (131_072, 48), "cnn": (8_192, 12)}
"""Rows of a file, and files."""


def main(*architectures: str) -> None:
    from mnist_ray.models.inference import has_bfloat16

    if not has_bfloat16():
        print("this CPU has no instructions for bfloat16 (AVX512_BF16, AMX): nothing to compare")
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as scratch:
        for architecture in architectures or INPUTS:
            rows, files = INPUTS[architecture]
            folder = Path(scratch) / architecture
            make_input(folder / "images", files, rows)
            make_model(folder / "run", architecture)
            gains: dict[str, list[float]] = {"score": [], "computing alone": []}
            for turn in range(ROUNDS):
                scored = [
                    ours(folder, f"{each}-{turn}", "--precision", each, "--num-actors", str(CORES))
                    for each in PRECISIONS
                ]
                alone = [in_two(functools.partial(infer, rows, each), folder, files * rows) for each in PRECISIONS]
                for (name, found), (slow, fast) in zip(gains.items(), (scored, alone), strict=True):
                    print(f"{architecture}, {name}: float32 {slow:,.0f}  bfloat16 {fast:,.0f}", flush=True)
                    found.append(fast / slow)
            for name, found in gains.items():
                print(f"{architecture}, {name}: bfloat16 / float32 {statistics.median(found):.2f} ×", flush=True)


def infer(rows: int, precision: str, folder: Path, names: list[Path]) -> Callable[[], None]:
    from mnist_ray.models import inference
    from mnist_ray.models.anatomy import recast
    from mnist_ray.models.files import load
    from mnist_ray.models.runtime import import_keras
    from mnist_ray.storage.location import Location
    from tests.benchmarks.tutorial_data import read

    import_keras(threads=1)
    images = read("train")[0][:rows]
    loaded = load(Location.parse(folder / "run"))
    recast(loaded.model, precision)
    usual = inference.Inference(loaded, images.shape[1:], most_rows=rows)
    ask = inference.fastest(usual, images[:256], most_rows=rows, total_rows=10**9)

    def loop() -> None:
        for _ in names:
            for start in range(0, rows, len(images)):
                ask(images[: min(rows - start, len(images))])

    return loop


if __name__ == "__main__":
    main(*sys.argv[1:])
