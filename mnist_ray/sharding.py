"""Ray tasks that cut a source into Parquet shards.

What a dataset of shards is on disk: `sources/formats/shards.py`. The number of shards decides the order of training
(see `training/order.py`), so it is never derived from the number of workers or tasks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from mnist_ray.cluster.failures import loss, raised_remotely
from mnist_ray.cluster.gauges import BytesRead
from mnist_ray.errors import InputError, RetryableError, require
from mnist_ray.sources.base import Source
from mnist_ray.sources.formats.shards import MANIFEST, Manifest, Shard, encode_shard
from mnist_ray.storage.attempt import Attempt, end_older
from mnist_ray.storage.location import Location, sha256

_OURS = re.compile(r"part-\d{5}\.parquet|\..*\.tmp")  # files that an earlier attempt may have left


def bounds(rows: int, num_shards: int) -> list[tuple[int, int]]:
    """The shards' row ranges (start, stop): contiguous, of sizes that differ by at most one, the longer first.

    Shards are empty where there are fewer rows than shards.
    """
    require(rows >= 0 and num_shards >= 1, f"{rows} rows in {num_shards} shards")
    size, longer = divmod(rows, num_shards)
    ends = list(accumulate(size + (shard < longer) for shard in range(num_shards)))
    return list(zip([0, *ends], ends, strict=False))


@dataclass(frozen=True)
class _Range:
    """Rows start..stop of a split, which become the shard `path`."""

    path: str
    split: str
    start: int
    stop: int


def write_shards(
    source: Source,
    destination: Location,
    num_shards: int,
    *,
    num_tasks: int,
    require_labels: bool = False,
    run: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Cut each split into `num_shards` Parquet files, by Ray tasks of one CPU each. Ray must be running.

    A finished dataset of the same content and number of shards is kept. run: what Ray's metrics call it, if not by its
    folder. `on_progress(shards done, shards)` is called in this thread. Raises InputError where a row cannot be read,
    or lacks a label although `require_labels`.
    """
    end_older(destination)  # before anything is looked at: the tasks of a driver that has lost the folder may live on
    if finished := _finished(source, destination, num_shards):
        return finished
    (destination / MANIFEST).delete()  # until it is written again, the dataset is visibly unfinished
    ranges = [
        _Range(f"{split}/part-{shard:05d}.parquet", split, start, stop)
        for split, rows in source.splits.items()
        for shard, (start, stop) in enumerate(bounds(rows, num_shards))
    ]
    _clear(destination, {each.path for each in ranges})
    written: dict[str, Shard] = {}
    with Attempt.begun(destination) as attempt:
        for shard in _run_tasks(source, attempt, ranges, num_tasks, require_labels, run or str(destination)):
            written[shard.path] = shard
            if on_progress:
                on_progress(len(written), len(ranges))
    manifest = Manifest(
        source.name,
        source.image_shape,
        source.classes,
        source.fingerprint(),
        {split: tuple(written[each.path] for each in ranges if each.split == split) for split in source.splits},
        source.absent,
        source.preparation,
    )
    (destination / MANIFEST).write_json(manifest.to_json())
    return manifest


def _finished(source: Source, destination: Location, num_shards: int) -> Manifest | None:
    """The manifest of a finished dataset with the source's content, the same number of shards and no file missing."""
    try:
        manifest = Manifest.load(destination)
    except InputError:
        return None
    wanted = (source.classes, source.image_shape, dict(source.splits), source.fingerprint())
    if wanted != (manifest.classes, manifest.image_shape, manifest.counts, manifest.digest):
        return None
    for split, shards in manifest.shards.items():
        existing = {f"{split}/{file.name}" for file in (destination / split).list()}
        if len(shards) != num_shards or not {shard.path for shard in shards} <= existing:
            return None
    return manifest


def _clear(destination: Location, paths: set[str]) -> None:
    """Remove the shards and temporary files of an earlier attempt, except `paths`. Other files are left alone."""
    for split in ("train", "test", "all"):
        (destination / split).sweep(lambda name: _OURS.fullmatch(name) is not None)
        for file in (destination / split).list():
            if _OURS.fullmatch(file.name) and f"{split}/{file.name}" not in paths:
                file.delete()


def _run_tasks(
    source: Source, attempt: Attempt, ranges: list[_Range], num_tasks: int, require_labels: bool, run: str
) -> Iterator[Shard]:
    """Yield shards as they are finished. A task writes several, as some inputs are decoded whole in every process."""
    import ray
    from ray.exceptions import RayError

    shared = ray.put(source)  # pickled once for all tasks
    task = ray.remote(num_cpus=1, num_returns="streaming")(_write)
    parts = _divide(ranges, num_tasks)
    running: list[Any] = [task.remote(shared, attempt, part, require_labels, run) for part in parts]
    try:
        while running:
            stream: Any = ray.wait(running, num_returns=1)[0][0]
            try:
                shard: Any = ray.get(next(stream))
            except StopIteration:
                running.remove(stream)
            else:
                yield shard
    except RayError as error:
        if raised := raised_remotely(error):
            raise raised from None  # a UserError: one line, without the task's traceback
        raise RetryableError(f"{loss('a sharding task was lost', error)}; start the command again") from error
    finally:
        for stream in running:
            ray.cancel(stream)


def _divide(ranges: list[_Range], num_tasks: int) -> list[list[_Range]]:
    """At most `num_tasks` contiguous parts, of about as many rows each."""
    total = sum(each.stop - each.start for each in ranges)
    parts: list[list[_Range]] = [[] for _ in range(max(num_tasks, 1))]
    rows = 0
    for each in ranges:
        parts[min(rows * len(parts) // max(total, 1), len(parts) - 1)].append(each)
        rows += each.stop - each.start
    return [part for part in parts if part]


def _write(source: Source, attempt: Attempt, ranges: list[_Range], require_labels: bool, run: str) -> Iterator[Shard]:
    """What one task does: write the shards of `ranges` while the attempt lasts, and yield each once it is in place."""
    counter = BytesRead(run)
    for each in ranges:
        batch = source.read(each.split, each.start, each.stop)
        counter.show()
        if require_labels and (batch.labels < 0).any():
            row = each.start + int(np.argmax(batch.labels < 0))
            raise InputError(f"{source.name}: {each.split} row {row} has no label; training needs one for every image")
        data = encode_shard(batch, source.image_shape)
        with attempt.fenced():
            (attempt.folder / each.path).write_bytes(data)
        yield Shard(each.path, len(batch.ids), sha256(data))
