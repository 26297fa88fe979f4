"""Cutting a dataset into Parquet shards by Ray tasks, and reading them back, checked.

DEST/dataset.json is written last, so a folder that has one is complete. How many shards there are decides the order of
training (see `training.py`), so it never follows from the number of workers or tasks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from mnist_ray.errors import InputError, RetryableError, UserError
from mnist_ray.sources.base import Source
from mnist_ray.sources.formats.shards import MANIFEST, Manifest, Shard, encode
from mnist_ray.storage.location import Location, sha256

_OURS = re.compile(r"part-\d{5}\.parquet|\..*\.tmp")  # what an earlier attempt may have left


def bounds(rows: int, num_shards: int) -> list[tuple[int, int]]:
    """The shards' row ranges: contiguous, sizes differ by at most one, the longer first; empty where rows run out."""
    assert rows >= 0
    assert num_shards >= 1
    size, longer = divmod(rows, num_shards)
    ends = list(accumulate(size + (shard < longer) for shard in range(num_shards)))
    return list(zip([0, *ends], ends, strict=False))


@dataclass(frozen=True)
class _Part:
    """A shard to be written."""

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
    on_progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Cut each split into `num_shards` Parquet files, by Ray tasks of one CPU; Ray must be up.

    What lies there already for the same content and number of shards is kept. `on_progress(shards done, shards)` is
    called in this thread. Raises InputError where a row cannot be read, or has no label although `require_labels`.
    """
    if kept := _reusable(source, destination, num_shards):
        return kept
    (destination / MANIFEST).delete()  # from here on until the end the folder is unfinished, and shows it
    parts = [
        _Part(f"{split}/part-{shard:05d}.parquet", split, start, stop)
        for split, rows in source.splits.items()
        for shard, (start, stop) in enumerate(bounds(rows, num_shards))
    ]
    _clear(destination, {part.path for part in parts})
    written: dict[str, Shard] = {}
    for shard in _written_by_tasks(source, destination, parts, num_tasks, require_labels):
        written[shard.path] = shard
        if on_progress:
            on_progress(len(written), len(parts))
    manifest = Manifest(
        source.name,
        source.image_shape,
        source.classes,
        source.digest(),
        {split: tuple(written[part.path] for part in parts if part.split == split) for split in source.splits},
    )
    (destination / MANIFEST).write_json(manifest.to_json())
    return manifest


def _reusable(source: Source, destination: Location, num_shards: int) -> Manifest | None:
    """The manifest that lies there, where it is of this dataset, cut alike, and all its files are there."""
    try:
        manifest = Manifest.load(destination)
    except InputError:
        return None
    wanted = (source.classes, source.image_shape, dict(source.splits), source.digest())
    if wanted != (manifest.classes, manifest.image_shape, manifest.counts, manifest.digest):
        return None
    for split, shards in manifest.shards.items():
        there = {f"{split}/{file.name}" for file in (destination / split).list()}
        if len(shards) != num_shards or not {shard.path for shard in shards} <= there:
            return None
    return manifest


def _clear(destination: Location, kept: set[str]) -> None:
    """Remove what an earlier attempt left and this one will not overwrite; nothing that is not ours."""
    for split in ("train", "test", "all"):
        (destination / split).sweep(lambda name: _OURS.fullmatch(name) is not None)
        for file in (destination / split).list():
            if _OURS.fullmatch(file.name) and f"{split}/{file.name}" not in kept:
                file.delete()


def _written_by_tasks(
    source: Source, destination: Location, parts: list[_Part], num_tasks: int, require_labels: bool
) -> Iterator[Shard]:
    """Shards as they come. Few tasks write several each, so that an input that is decoded whole is decoded seldom."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    shared = ray.put(source)  # pickled once for all tasks
    task = ray.remote(num_cpus=1, num_returns="streaming")(_write_parts)
    running: list[Any] = [task.remote(shared, destination, run, require_labels) for run in _evenly(parts, num_tasks)]
    try:
        while running:
            stream: Any = ray.wait(running, num_returns=1)[0][0]
            try:
                shard: Any = ray.get(next(stream))
            except StopIteration:
                running.remove(stream)
            else:
                yield shard
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None  # the user's one line, not the task's traceback
        raise
    except RayError as error:
        raise RetryableError(f"a task that wrote shards was lost ({type(error).__name__}); start it again") from error
    finally:
        for left in running:
            ray.cancel(left)


def _evenly(parts: list[_Part], num_tasks: int) -> list[list[_Part]]:
    """Contiguous runs of shards, of about as many rows each."""
    total = sum(part.stop - part.start for part in parts)
    runs: list[list[_Part]] = [[] for _ in range(max(num_tasks, 1))]
    rows = 0
    for part in parts:
        runs[min(rows * len(runs) // max(total, 1), len(runs) - 1)].append(part)
        rows += part.stop - part.start
    return [run for run in runs if run]


def _write_parts(source: Source, destination: Location, parts: list[_Part], require_labels: bool) -> Iterator[Shard]:
    for part in parts:
        batch = source.read(part.split, part.start, part.stop)
        if require_labels and (batch.labels < 0).any():
            row = part.start + int(np.argmax(batch.labels < 0))
            raise InputError(f"{source.name}: {part.split} row {row} has no label; training needs one for every image")
        data = encode(batch, source.image_shape)
        (destination / part.path).write_bytes(data)
        yield Shard(part.path, len(batch.ids), sha256(data))
