"""Cutting a dataset into Parquet shards by Ray tasks, and reading them back, checked.

DEST/dataset.json is written last, so a folder that has one is complete. How many shards there are decides the order of
training (see `training.py`), so it never follows from the number of workers or tasks.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mnist_ray.errors import InputError, RetryableError, UserError
from mnist_ray.readers.columns import Layout
from mnist_ray.readers.parquet import ParquetFile, ParquetSource, opened
from mnist_ray.sources import PLAIN, Batch, Reading, Source
from mnist_ray.storage import Location, sha256

MANIFEST = "dataset.json"
_ROW_GROUP_BYTES = 32 << 20  # of pixels; a reader holds one row group at a time
_ROW_GROUP_ROWS = 65_536
_OURS = re.compile(r"part-\d{5}\.parquet|\..*\.tmp")  # what an earlier attempt may have left


@dataclass(frozen=True)
class Shard:
    """One file. `path` is relative to the dataset's folder."""

    path: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What dataset.json says."""

    name: str
    image_shape: tuple[int, ...]
    classes: tuple[str, ...]
    digest: str
    """Of the source's content."""
    shards: Mapping[str, tuple[Shard, ...]]
    """Of each split, in the order of the rows."""

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each split."""
        return {split: sum(shard.rows for shard in shards) for split, shards in self.shards.items()}

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "counts": self.counts}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        """Raises KeyError, TypeError or ValueError where it is no manifest."""
        shards = {split: tuple(Shard(**shard) for shard in shards) for split, shards in value["shards"].items()}
        manifest = cls(
            str(value["name"]), tuple(value["image_shape"]), tuple(value["classes"]), str(value["digest"]), shards
        )
        if manifest.counts != value["counts"]:
            raise ValueError(f"counts {value['counts']} but shards of {manifest.counts} rows")
        return manifest

    @classmethod
    def load(cls, folder: Location) -> Manifest:
        """Raises InputError where there is none or it is damaged."""
        file = folder / MANIFEST
        try:
            return cls.from_json(file.read_json())
        except FileNotFoundError as error:
            raise InputError(f"{folder} has no {MANIFEST}: it is no finished `mnist-ray shard` output") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{file} is damaged ({type(error).__name__}: {error}); shard the dataset again") from error


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


def encode(batch: Batch, image_shape: tuple[int, ...]) -> memoryview:
    """A shard's bytes: the same for the same rows. Columns id, image (raw pixels) and label (null if unknown)."""
    rows, size = len(batch.ids), math.prod(image_shape)
    pixels = pa.py_buffer(np.ascontiguousarray(batch.images))
    text_ids = batch.ids.dtype == object
    table = pa.table(
        {
            "id": pa.array(batch.ids, pa.string() if text_ids else pa.int64()),
            "image": pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), rows, [None, pixels]),
            "label": pa.array(batch.labels, pa.int64(), mask=batch.labels < 0),
        }
    ).replace_schema_metadata({"image_shape": json.dumps(image_shape)})
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=max(1, min(_ROW_GROUP_ROWS, _ROW_GROUP_BYTES // size)),
        compression="zstd",
        use_dictionary=["label"],  # of pixels it would be as large as they are
        write_statistics=["label"],
        write_page_checksum=True,  # a reader of a row range checks these; of a whole shard its sha256
    )
    return memoryview(sink.getvalue())


def read_shard(
    folder: Location, shard: Shard, image_shape: tuple[int, ...]
) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.int64]]:
    """A whole shard, once its sha256 is verified: ids (n,), images (n, *image_shape) uint8, labels (n,), -1 if unknown.

    Arrays may be read-only. Raises InputError where the file is missing or differs from what was written.
    """
    file = folder / shard.path
    remedy = f"remove {folder / MANIFEST} and start again: the shards are then written anew"
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; {remedy}") from error
    if sha256(data) != shard.sha256:
        raise InputError(f"{file} is damaged: its sha256 is not the one in {MANIFEST}; {remedy}")
    table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    assert table.num_rows == shard.rows, (file, table.num_rows, shard.rows)
    size = math.prod(image_shape)
    views = [
        np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * size, offset=chunk.offset * size)
        for chunk in table["image"].chunks
        if len(chunk)
    ]
    images = views[0] if len(views) == 1 else np.concatenate(views or [np.empty(0, np.uint8)])
    text_ids = table.schema.field("id").type == pa.string()
    ids = np.array(table["id"].to_pylist(), object) if text_ids else table["id"].to_numpy()
    labels = table["label"]
    return ids, images.reshape(-1, *image_shape), (labels.fill_null(-1) if labels.null_count else labels).to_numpy()


@dataclass(frozen=True, kw_only=True)
class ShardedSource(ParquetSource):
    """What `write_shards` wrote, as a source: the rows in their order, with the ids that they had."""

    content: str

    @classmethod
    def open(cls, folder: Location, reading: Reading = PLAIN) -> ShardedSource:
        """Raises InputError where there is no finished dataset, or a first shard is missing."""
        for option, name in (
            ("id", reading.id_column),
            ("label", reading.label_column),
            ("image", reading.image_column),
        ):
            if name not in (None, option):
                raise InputError(
                    f"--{option}-column {name}: the shards in {folder} have their {option}s in `{option}`; leave it out"
                )
        manifest = Manifest.load(folder)
        files = {
            split: tuple(ParquetFile(folder / shard.path, shard.rows) for shard in shards)
            for split, shards in manifest.shards.items()
        }
        with opened(next(iter(files.values()))[0].location) as reader:
            text_ids = reader.schema_arrow.field("id").type == pa.string()
        return cls(
            name=str(folder),
            classes=manifest.classes,
            image_shape=reading.convert.shape(manifest.image_shape),
            splits=manifest.counts,
            convert=reading.convert,
            files=files,
            layout=Layout("raw", shape=manifest.image_shape),
            id_column="id",
            text_ids=text_ids,
            content=manifest.digest,
        )

    def digest(self) -> str:
        return self.content

    def identity(self) -> str:
        return self._as_converted(self.content)
