"""What a scoring costs as it grows, starts and goes on: `python -m tests.benchmarks.scale [LARGE [SMALL]]` (files).

- 20 M images beside 2 M: images/s (steady state), peak memory of an actor beside what its imports alone take, the
  driver's share of a CPU.
- From the start to the first part in storage, of 10,000 images, beside `ray.init` and `import tensorflow` alone.
- Going on with 90 % of the parts there, beside the whole, without what every start takes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.benchmarks.scoring import ROWS, make_input, make_model, steady

ROUNDS = 3
FLOOR = "import ray; ray.init(address='local', num_cpus=2, include_dashboard=False); import tensorflow"


def score(folder: Path, images: str, *more: str) -> dict[str, Any]:
    """What there is to tell of one command: metrics.json's score, and what was seen from outside."""
    output = folder / "out"
    command = [Path(sys.executable).with_name("mnist-ray"), "score", folder / images, "--model", folder / "run",
               "--output", output, *more]  # fmt: skip
    began = time.time()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen = {"peak_megabytes": 0.0, "own_megabytes": 0.0, "first_part": 0.0, "driver_cpu": 0.0, "driver_start": 0.0}
    while process.poll() is None:
        if not seen["first_part"] and list(output.glob("part-*.parquet")):
            seen["first_part"], seen["driver_start"] = time.time() - began, seen["driver_cpu"]
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, IndexError):  # it has just ended
                if (entry / "cmdline").read_bytes().startswith(b"ray::ScoringActor"):
                    status = (entry / "status").read_text()
                    for name, field in (("peak_megabytes", "VmHWM:"), ("own_megabytes", "RssAnon:")):
                        seen[name] = max(seen[name], int(status.partition(field)[2].split()[0]) / 1024)
        with suppress(OSError):
            times = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            seen["driver_cpu"] = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
        time.sleep(0.02)
    assert process.returncode == 0
    told = json.loads((output / "metrics.json").read_text())["score"]
    return {
        **told,
        **seen,
        "wall": time.time() - began,
        "steady": steady(output) if len(list(output.glob("part-*.parquet"))) > 2 else None,
    }


def imports() -> float:
    """Peak megabytes of a process that only imports what an actor computes with."""
    told = "from pathlib import Path; print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    command = [sys.executable, "-c", f"import ray, keras, pyarrow.parquet; {told}"]
    env = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return int(subprocess.run(command, check=True, capture_output=True, env=env).stdout) / 1024


def clear(folder: Path) -> None:
    subprocess.run(["rm", "-rf", folder / "out"], check=True)


def main(large: int = 153, small: int = 15) -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as scratch:
        folder = Path(scratch)
        for name, files in (("large", large), ("small", small)):
            make_input(folder / name, files)
        make_model(folder / "run")
        print(f"importing ray, tensorflow and pyarrow alone: {imports():.0f} MB", flush=True)
        way = ("--jit", "off", "--batch-size", "1024")
        rates, peaks = [], []
        for turn in range(ROUNDS):
            few, many = (measured(folder, name, way) for name in ("small", "large"))
            rates.append(many["steady"] / few["steady"])
            peaks.append(many["peak_megabytes"] / few["peak_megabytes"])
            if not turn:
                resume(folder, way, many)
        print(
            f"{large * ROWS:,} images beside {small * ROWS:,}, medians: images/s {statistics.median(rates):.2f} x, an"
            f" actor's peak {statistics.median(peaks):.2f} x",
            flush=True,
        )
        clear(folder)
        ratios = []
        for _ in range(ROUNDS):
            began = time.time()
            subprocess.run([sys.executable, "-c", FLOOR], check=True, capture_output=True)
            floor = time.time() - began
            first = score(folder, "small", "--limit", "10000")["first_part"]
            clear(folder)
            ratios.append(first / floor)
            print(f"first part after {first:.1f} s; ray.init and import tensorflow {floor:.1f} s", flush=True)
        print(f"median ratio: {statistics.median(ratios):.2f}")


def measured(folder: Path, images: str, way: tuple[str, ...]) -> dict[str, Any]:
    clear(folder)
    told = score(folder, images, *way)
    scoring, busy = told["wall"] - told["first_part"], told["driver_cpu"] - told["driver_start"]
    print(
        f"{told['images']:12,} images: {told['steady']:10,.0f} images/s, actor's peak {told['peak_megabytes']:.0f} MB"
        f" ({told['own_megabytes']:.0f} MB but for shared libraries), driver {told['driver_start']:.1f} s of a CPU"
        f" until the first part, then {busy:.1f} s in {scoring:.1f} s ({busy / scoring:.1%})",
        flush=True,
    )
    return told


def resume(folder: Path, way: tuple[str, ...], whole: dict[str, Any]) -> None:
    """A tenth of the parts is gone."""
    start = whole["wall"] - whole["seconds"]
    parts = sorted((folder / "out").glob("part-*.parquet"))
    for part in parts[::10]:
        part.unlink()
    (folder / "out" / "_manifest.json").unlink()
    left = len(parts) - len(list((folder / "out").glob("part-*.parquet")))
    told = score(folder, "large", *way)
    beyond = told["wall"] - start
    print(
        f"going on with {left} of {len(parts)} parts to do: {beyond:.1f} s beyond a start of {start:.1f} s,"
        f" {beyond / whole['seconds']:.1%} of the whole's {whole['seconds']:.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
