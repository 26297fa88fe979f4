"""The sharding step, with its bar and its progress record."""

from __future__ import annotations

import time

from mnist_ray.cluster.connect import Connection
from mnist_ray.console import Console
from mnist_ray.runs.pace import Pace
from mnist_ray.runs.progress import ProgressRecord
from mnist_ray.sharding import write_shards
from mnist_ray.sources.base import Source
from mnist_ray.sources.formats.shards import Manifest
from mnist_ray.storage.location import Location


def shard_images(
    source: Source, folder: Location, num_shards: int, ray: Connection, console: Console,
    record: ProgressRecord | None = None, *, require_labels: bool,
) -> Manifest:  # fmt: skip
    began = time.perf_counter()
    num_tasks = max(1, min(num_shards, int(ray.cpus)))
    rows = sum(source.splits.values())
    pace = Pace(num_shards * len(source.splits))
    with console.bar("sharding", num_shards * len(source.splits)) as bar:

        def progress(done: int, total: int) -> None:
            left = pace.update(done)
            if record:  # before the bar: its lines name the phase
                record.update(phase="shard", done=done, total=total, seconds_left=left)
            bar.update(done, "shards", left)

        manifest = write_shards(
            source,
            folder,
            num_shards,
            num_tasks=num_tasks,
            require_labels=require_labels,
            on_progress=progress,
        )
        shards = " + ".join(f"{len(shards)} {split}" for split, shards in manifest.shards.items())
        seconds = time.perf_counter() - began
        bar.finish(f"{num_tasks} tasks, {shards} shards, {rows:,} rows, {seconds:.1f} s")
    return manifest
