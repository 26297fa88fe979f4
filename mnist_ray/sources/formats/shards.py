"""A dataset of shards on disk: dataset.json, the manifest, and the Parquet files that it names.

`sharding.py` writes it, the manifest last: a folder that has one is complete.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mnist_ray.errors import InputError
from mnist_ray.sources import meter
from mnist_ray.sources.base import DEFAULT_READING, Batch, Reading
from mnist_ray.sources.formats.columns import Layout
from mnist_ray.sources.formats.parquet import ParquetSource
from mnist_ray.sources.formats.parquet_files import ParquetFile, open_parquet_file
from mnist_ray.sources.pixels import ImageShape
from mnist_ray.sources.preparation import Preparation
from mnist_ray.storage.location import Location, sha256
from mnist_ray.storage.records import Count, Line, PathInside, Rule, Sha256, one_of, read_record

MANIFEST = "dataset.json"
_ROW_GROUP_BYTES = 32 << 20  # of pixels; a reader holds one row group in memory
_ROW_GROUP_ROWS = 65_536


@dataclass(frozen=True)
class Shard:
    """One Parquet file. `path` is relative to the dataset's folder."""

    path: PathInside
    rows: Count
    sha256: Sha256


@dataclass(frozen=True)
class Manifest:
    """The content of dataset.json."""

    name: Line
    image_shape: ImageShape
    classes: tuple[Line, ...]
    digest: Line
    """The source's digest."""
    shards: Annotated[
        Mapping[Annotated[str, one_of("train", "test", "all")], tuple[Shard, ...]],
        Rule("must have a shard for each split", lambda shards: shards and all(shards.values())),
    ]
    """The shards of each split, in the order of its rows."""
    absent: Mapping[Line, tuple[Line, ...]] = field(default_factory=dict)
    """The source's: the classes of which a split has no images. Unknown in what earlier versions wrote."""
    preparation: Preparation | None = None
    """The source's. Unknown in what earlier versions wrote."""

    @property
    def counts(self) -> dict[str, int]:
        """The number of rows in each split."""
        return {split: sum(shard.rows for shard in shards) for split, shards in self.shards.items()}

    def require_train_split(self, folder: Location) -> None:
        """Raises InputError where there are no train shards."""
        if not self.counts.get("train"):
            raise InputError(
                f"{folder} holds no train shards; `mnist-ray shard` writes them from a source with a train split"
            )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "counts": self.counts}

    @classmethod
    def load(cls, folder: Location) -> Manifest:
        """Raises InputError where the manifest is missing or damaged."""
        file, remedy = folder / MANIFEST, "shard the dataset again"
        try:
            manifest = read_record(file, cls, remedy)
            counts = read_record(file, _Counts, remedy).counts
        except FileNotFoundError as error:
            raise InputError(f"{folder} has no {MANIFEST}: it is not a finished output of `mnist-ray shard`") from error
        if manifest.counts != counts:
            raise InputError(f"{file} is damaged: its counts are not those of its shards; {remedy}")
        return manifest


@dataclass(frozen=True)
class _Counts:
    """The field of dataset.json that follows from the others."""

    counts: dict[str, Count]


def encode_shard(batch: Batch, image_shape: tuple[int, ...]) -> memoryview:
    """A Parquet file with the columns id, image (raw pixels) and label (null if unknown).

    Equal rows give equal bytes.
    """
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
        row_group_size=_group_rows(size),
        compression="zstd",
        use_dictionary=["label"],  # a dictionary of images would be as large as they are
        write_statistics=["label"],
        write_page_checksum=True,  # for readers of a row range; those of a whole shard check its sha256
    )
    return memoryview(sink.getvalue())


def _group_rows(size: int) -> int:
    """Rows of a row group of images of so many bytes: a power of two, so that units of work do not cut through one,
    of which both would have to unpack all that comes before."""
    return 1 << (max(1, min(_ROW_GROUP_ROWS, _ROW_GROUP_BYTES // size)).bit_length() - 1)


def read_shard(
    folder: Location, shard: Shard, image_shape: tuple[int, ...]
) -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.int64]]:
    """A whole shard: ids (n,), images (n, *image_shape) uint8, labels (n,), -1 if unknown. Arrays may be read-only.

    Raises InputError where the file is missing or its sha256 differs from the manifest's.
    """
    file = folder / shard.path
    remedy = f"remove {folder / MANIFEST} and start again, which writes the shards again"
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing; {remedy}") from error
    meter.count(len(data))
    if sha256(data) != shard.sha256:
        raise InputError(f"{file} is damaged: its sha256 is not the one in {MANIFEST}; {remedy}")
    table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    if table.num_rows != shard.rows:
        raise InputError(f"{file} has {table.num_rows} rows, not {shard.rows} as in {MANIFEST}; {remedy}")
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
    """A dataset of shards as a source: its rows in their order, with their ids."""

    content: str
    """The digest of the source that was cut into shards."""
    prepared: Preparation | None = None
    """How its images were prepared."""

    @classmethod
    def open(cls, folder: Location, reading: Reading = DEFAULT_READING) -> ShardedSource:
        """Raises InputError where the dataset is not finished or its first shard is missing, and for other columns."""
        columns = {"id": reading.id_column, "label": reading.label_column, "image": reading.image_column}
        for column, name in columns.items():
            if name not in (None, column):
                raise InputError(
                    f"--{column}-column {name}: the shards in {folder} have their {column}s in `{column}`; "
                    f"leave the option out"
                )
        manifest = Manifest.load(folder)
        files = {
            split: tuple(ParquetFile(folder / shard.path, shard.rows) for shard in shards)
            for split, shards in manifest.shards.items()
        }
        with open_parquet_file(next(iter(files.values()))[0].location) as reader:
            text_ids = reader.schema_arrow.field("id").type == pa.string()
        return cls(
            name=str(folder),
            classes=manifest.classes if reading.takes("column") else (),
            image_shape=reading.convert.shape(manifest.image_shape),
            splits=manifest.counts,
            convert=reading.convert,
            files=files,
            layout=Layout("raw", shape=manifest.image_shape),
            id_column="id",
            label_column="label" if reading.takes("column") else None,
            labels="column" if reading.takes("column") else "none",
            absent=manifest.absent if reading.takes("column") else {},
            text_ids=text_ids,
            content=manifest.digest,
            prepared=manifest.preparation,
        )

    @property
    def preparation(self) -> Preparation | None:
        return self.prepared and self.prepared.then(Preparation.of(self.convert))

    def digest(self) -> str:
        return self.content

    def identity(self) -> str:
        return self._as_converted(self.content)
