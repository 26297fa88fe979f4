"""What the driver keeps of many classes: `python -m tests.benchmarks.many_classes [CLASSES [UNITS [ROWS]]]`.

By default 20,000 classes and 100,000 units of 1,000 images, which are counted by the ledger as they come from actors.
Once for a million different pairs of label and prediction, once for as many as are kept, and once for images that are
all different, each in a process of its own: its seconds, without those that make the tallies, and its memory.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time

from mnist_ray.predictions.confusion import MOST_PAIRS
from mnist_ray.predictions.parts import Committed, File
from mnist_ray.predictions.plan import Plan, part_name
from mnist_ray.scoring.ledger import Ledger
from mnist_ray.storage.location import Location
from tests.support.many_classes import wide_units


def main(classes: int = 20_000, units: int = 100_000, rows: int = 1_000) -> None:
    for pairs in (1_000_000, MOST_PAIRS, 20 * MOST_PAIRS):
        arguments = map(str, (classes, units, rows, pairs))
        subprocess.run([sys.executable, "-m", "tests.benchmarks.many_classes", *arguments], check=True)


def drive(classes: int, units: int, rows: int, pairs: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        plan = Plan(
            model_sha256="ab" * 32, input_digest="cd" * 32, split="all", limit=None, pixels="0-255",
            num_classes=classes, units=tuple((unit * rows, (unit + 1) * rows) for unit in range(units)),
        )  # fmt: skip
        ledger = Ledger(plan, Location.parse(scratch), [], max_bad=0, on_progress=None)
        tallies = wide_units(units=units, rows=rows, num_classes=classes, most_pairs=pairs)
        seconds = 0.0
        made = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        for unit, tally in enumerate(tallies):
            part = File(path=part_name(unit), rows=rows, sha256=f"{unit:064x}")
            began = time.process_time()
            ledger.add(Committed(unit=unit, part=part, quarantine=None, tally=tally))
            seconds += time.process_time() - began
        began = time.process_time()
        tally = ledger.result(1, 1.0, plan.images).tally
        summary = tally.summary(detailed=True)
        seconds += time.process_time() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        assert tally.num_seen == units * rows
        listed = len(summary["confusion_cells"] or ())
        print(
            f"{classes:,} classes, {units:,} units of {rows:,} images, {len(tally.confusion):,} different pairs kept,"
            f" {listed:,} mistakes listed: {seconds:.1f} s of CPU, {peak:,.0f} MB ({made:,.0f} MB at the start)",
            flush=True,
        )


if __name__ == "__main__":
    numbers = list(map(int, sys.argv[1:]))
    drive(*numbers) if len(numbers) == 4 else main(*numbers)
