"""Scoring from and to an object store that is far away: `python -m tests.benchmarks.distant [FILES [MILLISECONDS]]`.

FILES Parquet files of 4,096 real MNIST rows (64) on a moto server behind a proxy that answers each request
MILLISECONDS (50) late. In turn: `score` as it is, and `score` with one unit at a time for each actor, which reads,
computes and writes one after the other. Images/s while scoring, as metrics.json has it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from mnist_ray.storage.location import Location
from tests.benchmarks.scoring import ROUNDS, make_input, make_model
from tests.support.s3_server import ROOT, Faults, put, s3_server, settings

ROWS = 4_096
WAYS = {"as it is": None, "one at a time": 1}
SCORE = """
import sys
import mnist_ray.scoring.dispatch
from mnist_ray.cli import main
if sys.argv.pop(1) == "1":
    mnist_ray.scoring.dispatch.UNITS_IN_FLIGHT = 1
main()
"""


def main(files: int = 64, milliseconds: int = 50) -> None:
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as scratch, s3_server() as port:
        folder = Path(scratch)
        make_input(folder / "images", files, ROWS)
        make_model(folder / "run")
        os.environ |= settings(port)
        for name in ("images", "run"):
            put(folder / name, name)
        with Faults(port, seed=0, rate=1.0, kinds=("slow",), slow=milliseconds / 1000) as proxy:
            os.environ |= settings(proxy.port)
            for turn in range(ROUNDS):
                for way, units in WAYS.items():
                    rates[way].append(rate(f"{turn}-{units}", units))
                print("  ".join(f"{way} {rates[way][-1]:,.0f}" for way in WAYS), flush=True)
    ratio = statistics.median(mine / theirs for mine, theirs in zip(*rates.values(), strict=True))
    print(f"{ratio:.2f} x one unit at a time ({milliseconds} ms a request, load {os.getloadavg()[0]:.1f})")


def rate(name: str, units: int | None) -> float:
    output = f"{ROOT}/{name}"
    command = [sys.executable, "-c", SCORE, str(units), "score", f"{ROOT}/images", "--model", f"{ROOT}/run",
               "--output", output]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    told = json.loads(Location.parse(f"{output}/metrics.json").read_bytes())["score"]
    return float(told["images_per_second"])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
