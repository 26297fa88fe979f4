"""What the driver does for a scoring of many small files: `python -m tests.benchmarks.many_files [FILES [STORE]]`.

By default 100,000 Parquet files of ten images, each a unit of its own. Everything that the driver does, one step after
the other, with its seconds, CPU seconds and the most memory that the process has had by then: open the input, plan and
send it, hand out the units (to actors that answer at once) and count them, go on with all parts there, write the
manifest, verify.
Neither Ray nor a model takes part. STORE: a folder or s3:// URI to work in; by default a temporary folder.
"""

from __future__ import annotations

import pickle
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mnist_ray.cluster.machine import num_cpus
from mnist_ray.predictions import parts
from mnist_ray.predictions.parts import Committed, ScoredRows
from mnist_ray.predictions.plan import Plan, plan_units
from mnist_ray.predictions.tally import Tally
from mnist_ray.predictions.verify import verify
from mnist_ray.scoring.dispatch import Actors, Dispatch
from mnist_ray.scoring.ledger import Ledger
from mnist_ray.sources.base import Reading
from mnist_ray.sources.open import open_source
from mnist_ray.storage.location import Location
from mnist_ray.storage.parallel import in_parallel

ROWS = 10
CLASSES = 10


def main(files: int = 100_000, store: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Location.parse(store or scratch)
        with step("make the input (not the driver's)"):
            make_files(folder / "images", files)
        with step("read the footers and labels (pyarrow alone)"):
            for _ in in_parallel(footer_and_labels, (folder / "images").list(), at_once=16):
                pass
        with step("open the input"):
            source = open_source(str(folder / "images"), Reading(lenient=True, notify=print))
        with step("plan"):
            units = plan_units(source.units("all"), row_bytes=28 * 28)
            assert len(units) == files
            plan = Plan(
                model_sha256="ab" * 32, input_digest=source.identity(), split="all", limit=None, pixels="0-255",
                num_classes=CLASSES, units=tuple(units),
            ).freeze(folder / "out")  # fmt: skip
        with step("pickle the task for the actors"):
            print(f"  {len(pickle.dumps(source)) / 1e6:.1f} MB")
        with step("read 1,000 units' rows (an actor's)"):
            for start, stop in units[:: max(files // 1000, 1)]:
                assert len(source.read("all", start, stop).ids) == ROWS
        with step("commit the parts (the actors')"):
            done = list(in_parallel(lambda unit: commit(folder / "out", plan, unit), range(files), at_once=16))
        with step("hand out and count"):
            ledger = Ledger(plan, folder / "out", [], max_bad=1, on_progress=lambda *_: None)
            dispatch = Dispatch(AtOnce(done), ledger.units_left, load=lambda _: -1, work=lambda _, unit: unit)
            for each in dispatch.results():
                ledger.add(each)
            assert ledger.result(8, 1.0, ledger.images).images == files * ROWS
        with step("go on with all parts there"):
            assert sum(1 for _ in parts.resume(folder / "out", plan)) == files
        with step("write the manifest"):
            parts.write_manifest(folder / "out", plan, ledger.committed, ids=source.id_kind)
        with step("verify"):
            print(f"  {verify(folder / 'out', processes=num_cpus())}")


@contextmanager
def step(name: str) -> Iterator[None]:
    began, cpu_before = time.perf_counter(), time.process_time()
    yield
    seconds, cpu, peak = time.perf_counter() - began, time.process_time() - cpu_before, max_memory()
    print(f"{name:<46}{seconds:8.1f} s   {cpu:8.1f} s of CPU   {peak:7,.0f} MB", flush=True)


def max_memory() -> float:
    """The most that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class AtOnce(Actors):
    """Eight actors; a call is its own unit, and has ended when it begins. -1 is the loading of the model."""

    def __init__(self, done: Sequence[Committed]) -> None:
        super().__init__(0)
        self._done = done
        self.alive = list(range(8))

    def start(self) -> Any:
        raise NotImplementedError

    def kill(self, actor: Any) -> None:
        raise NotImplementedError

    def wait(self, calls: Sequence[Any], timeout: float) -> Any | None:
        return calls[0]

    def result(self, call: Any) -> Any:
        return None if call == -1 else self._done[call]


def make_files(folder: Location, files: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 28 * 28), np.uint8)
    table = pa.table({"image": [row.tobytes() for row in pixels], "label": pa.array(np.arange(ROWS) % CLASSES)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data = memoryview(sink.getvalue())
    folder.make_dir()

    def make(number: int) -> None:
        with folder.filesystem.open_output_stream((folder / f"{number:06d}.parquet").path) as stream:
            stream.write(data)

    for _ in in_parallel(make, range(files), at_once=16):
        pass


def footer_and_labels(file: Location) -> None:
    """The least that opening the input can cost."""
    with file.open_file() as opened:
        pq.ParquetFile(opened).read(columns=["label"], use_threads=False)


def commit(output: Location, plan: Plan, unit: int) -> Committed:
    start, stop = plan.units[unit]
    labels = np.arange(ROWS) % CLASSES
    probabilities = np.full((ROWS, CLASSES), 0.05, np.float32)
    probabilities[np.arange(ROWS), labels] = 0.55
    tally = Tally.of(labels, labels, np.zeros(ROWS), probabilities.max(1), CLASSES)
    scored = ScoredRows(
        ids=np.arange(start, stop), labels=labels, predictions=labels, probabilities=probabilities, sources=None,
        bad=[], tally=tally, input_name="images",
    )  # fmt: skip
    return parts.commit(output, plan, unit, scored)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
