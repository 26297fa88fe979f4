"""Row groups of pyarrow's default size beside small ones: `python -m tests.benchmarks.row_groups`.

The same 2,097,152 rows, snappy, as one file: in row groups of 1,048,576 rows, eight units each, and of 65,536. In turn,
several rounds: images/s of the real command, and an actor's peak memory.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

import numpy as np

from tests.benchmarks.scale import score
from tests.benchmarks.scoring import ROUNDS, make_model

ROWS, LARGE, SMALL = 1 << 21, 1 << 20, 1 << 16


def main() -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as scratch:
        folder = Path(scratch)
        make_model(folder / "run")
        for name, group in (("large", LARGE), ("small", SMALL)):
            make_file(folder / f"{name}.parquet", group)
        rates: dict[str, list[float]] = {"large": [], "small": []}
        peaks: dict[str, list[float]] = {"large": [], "small": []}
        for _ in range(ROUNDS):
            for name in rates:
                found = score(folder, f"{name}.parquet", "--overwrite")
                rates[name].append(found["images_per_second"])
                peaks[name].append(found["peak_megabytes"])
        for name in rates:
            rate, peak = statistics.median(rates[name]), statistics.median(peaks[name])
            print(f"{name} row groups: {rate:,.0f} images/s, an actor's peak {peak:,.0f} MB")
        ratio = statistics.median(large / small for large, small in zip(*rates.values(), strict=True))
        print(f"large / small: {ratio:.2f} x the images/s (load {os.getloadavg()[0]:.1f})", flush=True)


def make_file(path: Path, group: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.benchmarks.tutorial_data import read

    images, labels = read("train")
    schema = pa.schema({"image": pa.binary(), "label": pa.int64()}, metadata={"image_shape": "[28, 28]"})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, ROWS, LARGE):
            rows = np.arange(start, start + LARGE) % len(labels)
            pixels = pa.array([images[row].tobytes() for row in rows], pa.binary())
            writer.write_table(pa.table([pixels, pa.array(labels[rows].astype(np.int64))], schema=schema), group)


if __name__ == "__main__":
    main()
