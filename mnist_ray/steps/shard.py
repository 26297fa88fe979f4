"""The sharding step, with its bar and its progress record."""

from __future__ import annotations

import time

from mnist_ray.cluster.connect import Connection
from mnist_ray.console import Console
from mnist_ray.errors import counted
from mnist_ray.runs.progress import ProgressRecord
from mnist_ray.sharding import write_shards
from mnist_ray.sources.base import Source
from mnist_ray.sources.formats.shards import Manifest
from mnist_ray.storage.location import Location


def shard_images(
    source: Source, folder: Location, num_shards: int, ray: Connection, console: Console,
    record: ProgressRecord, *, require_labels: bool,
) -> Manifest:  # fmt: skip
    began = time.perf_counter()
    num_tasks = max(1, min(num_shards, int(ray.cpus)))
    rows = sum(source.splits.values())
    total = num_shards * len(source.splits)
    record.update(phase="shard", done=0, total=total, work=(0, total))
    with console.bar("sharding", total) as bar:

        def progress(done: int, total: int) -> None:
            now = record.update(phase="shard", done=done, total=total, work=(done, total))
            bar.update(done, "shards", now["seconds_left"])  # after the record: its lines name the phase

        manifest = write_shards(
            source,
            folder,
            num_shards,
            num_tasks=num_tasks,
            require_labels=require_labels,
            run=str(record.folder),
            on_progress=progress,
        )
        shards = " + ".join(f"{len(shards)} {split}" for split, shards in manifest.shards.items())
        seconds = time.perf_counter() - began
        bar.finish(f"{counted(num_tasks, 'task')}, {shards} shards, {counted(rows, 'row')}, {seconds:.1f} s")
    return manifest
