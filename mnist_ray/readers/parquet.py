"""Parquet: one file or many, local or in an object store; a read takes only the row groups that it needs.

`image` may be raw pixels (binary), an encoded PNG or JPEG (also within {"bytes": …}, as Hugging Face stores them), or
lists of numbers, nested or flat. Raw and flat images have the shape in the schema metadata `image_shape`, as JSON, or
are gray squares. `label` may be missing or null.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mnist_ray.errors import InputError, RetryableError
from mnist_ray.readers import columns, pixels
from mnist_ray.sources import Bad, Batch, Source
from mnist_ray.storage import Location, sha256

_HASH_BLOCK = 8 << 20
_TAIL = 64 << 10  # bytes; most footers are within the last so many
_FOOTERS_AT_ONCE = 16
_ROWS_AT_ONCE = 16_384  # of a row group, so that huge ones stay out of memory


@dataclass(frozen=True)
class ParquetFile:
    location: Location
    rows: int
    footer: str = ""
    """The file's size and its footer's sha256, which has the offsets, sizes and statistics of all its pages."""


@dataclass(frozen=True, kw_only=True)
class ParquetSource(Source):
    files: Mapping[str, tuple[ParquetFile, ...]]
    layout: columns.Layout
    id_column: str | None = None
    text_ids: bool = False

    def units(self, split: str) -> list[tuple[int, int]]:
        ends = list(accumulate(file.rows for file in self.files[split]))
        return [(start, stop) for start, stop in zip([0, *ends], ends, strict=False) if stop > start]

    def read(self, split: str, start: int, stop: int, *, strict: bool = True) -> Batch:
        parts = [self._nothing(), *self.stream(split, start, stop, strict=False)]
        batch = Batch(
            np.concatenate([part.ids for part in parts]),
            _joined([part.images for part in parts]),
            np.concatenate([part.labels for part in parts]),
            bad=tuple(bad for part in parts for bad in part.bad),
        )
        return self._settled(split, batch, strict)

    def stream(self, split: str, start: int, stop: int, *, strict: bool = True) -> Iterator[Batch]:
        assert 0 <= start <= stop <= self.splits[split], (start, stop)
        offset = 0
        for file in self.files[split]:
            low, high = max(start - offset, 0), min(stop - offset, file.rows)
            if low < high:
                for part in self._read_file(file, offset, low, high):
                    yield self._settled(split, part, strict)
            offset += file.rows

    def digest(self) -> str:
        return self._digest

    def identity(self) -> str:
        told = [self.id_column, [(split, file.footer) for split, files in self.files.items() for file in files]]
        return sha256(json.dumps(told).encode())

    @cached_property
    def _digest(self) -> str:
        total = hashlib.sha256(repr(self.id_column).encode())
        for split, files in self.files.items():
            for file in files:
                total.update(f"{split} {file.rows} {_file_sha256(file.location)}\n".encode())
        return total.hexdigest()

    def _nothing(self) -> Batch:
        ids: NDArray[Any] = np.empty(0, object if self.text_ids else np.int64)
        return Batch(ids, np.empty((0, *self.image_shape), np.uint8), np.empty(0, np.int64))

    def _read_file(self, file: ParquetFile, offset: int, low: int, high: int) -> Iterator[Batch]:
        """Rows low..high of one file, whose first row is row `offset` of the split."""
        with opened(file.location) as reader:
            if reader.metadata.num_rows != file.rows:
                raise InputError(
                    f"{file.location} has {reader.metadata.num_rows} rows, not {file.rows}: it has changed"
                )
            groups, row = [], 0
            first = None  # row of the first group that is read
            for group in range(reader.num_row_groups):
                rows = reader.metadata.row_group(group).num_rows
                if row < high and row + rows > low:
                    groups.append(group)
                    first = row if first is None else first
                row += rows
            names = [name for name in ("image", "label", self.id_column) if name in reader.schema_arrow.names]
            row = first or 0
            for records in reader.iter_batches(_ROWS_AT_ONCE, groups, names, use_threads=False):
                skip = max(low - row, 0)
                wanted = records.slice(skip, max(min(high - row, len(records)) - skip, 0))
                if len(wanted):
                    yield self._converted(wanted, offset + row + skip, str(file.location))
                row += len(records)
                if row >= high:
                    return

    def _converted(self, records: pa.RecordBatch, start: int, where: str) -> Batch:
        images, reasons = columns.to_images(records.column("image"), self.layout, self.image_shape)
        labels = np.full(len(records), -1, np.int64)
        if "label" in records.schema.names:
            labels, bad_labels = columns.to_labels(records.column("label"))
            reasons = bad_labels | reasons
        ids: NDArray[Any] = np.arange(start, start + len(records))
        if self.id_column is not None:
            column = records.column(self.id_column)
            reasons |= {int(row): f"has no {self.id_column}" for row in np.flatnonzero(columns.null_rows(column))}
            ids = np.array(column.to_pylist(), object) if self.text_ids else columns.to_numbers(column).astype(np.int64)
        if not reasons:
            return Batch(ids, images, labels)
        good = np.ones(len(records), bool)
        good[list(reasons)] = False
        bad = tuple(Bad(start + row, where, reasons[row]) for row in sorted(reasons))
        return Batch(ids[good], images[good], labels[good], bad=bad)


def open_parquet(files: Mapping[str, list[Location]], where: Location, id_column: str | None) -> ParquetSource:
    """Reads every file's footer, and the labels of those whose footer has no statistics of them.

    Raises InputError where files are damaged, lack columns, or differ in them.
    """
    counted: dict[str, tuple[ParquetFile, ...]] = {}
    first: tuple[pa.Schema, Location] | None = None
    found: tuple[columns.Layout, tuple[int, ...]] | None = None
    highest = -1
    for split, locations in files.items():
        entries = []
        for location, (footer, metadata) in zip(locations, _footers(locations), strict=True):
            with opened(location, metadata) as reader:
                schema = _checked_schema(reader.schema_arrow, location, id_column)
                if first is None:
                    first = schema, location
                elif _words(schema) != _words(first[0]):
                    raise InputError(
                        f"{location} has {_words(schema)}, but {first[1]} {_words(first[0])}; make them alike"
                    )
                found = found or _layout(reader, location)
                highest = max(highest, _highest_label(reader))
                entries.append(ParquetFile(location, reader.metadata.num_rows, footer))
        counted[split] = tuple(entries)
    if first is None or found is None:
        raise InputError(f"{where} holds Parquet without a single image")
    column = id_column or ("id" if "id" in first[0].names else None)
    return ParquetSource(
        name=str(where),
        classes=pixels.class_names(highest),
        image_shape=found[1],
        splits={split: sum(file.rows for file in entries) for split, entries in counted.items()},
        files=counted,
        layout=found[0],
        id_column=column,
        text_ids=column is not None and not pa.types.is_integer(first[0].field(column).type),
    )


def _footers(locations: list[Location]) -> Iterator[tuple[str, Any]]:
    """Each file's identity and its metadata, in order; many at once, for each is a round trip to an object store."""
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
        yield from pool.map(_footer, locations)


def _footer(location: Location) -> tuple[str, Any]:
    with _told(location), location.open_file() as file:
        size = file.size()
        tail = file.read_at(min(size, _TAIL), max(size - _TAIL, 0))
        length = int.from_bytes(tail[-8:-4], "little") + 8  # thrift, its length in 4 bytes, "PAR1"
        if len(tail) < length <= size:
            tail = file.read_at(length, size - length)
        # A file of nothing but its footer: parsed from memory, so that it is read once.
        return f"{size} {sha256(tail[-length:])}", pq.read_metadata(pa.BufferReader(b"PAR1" + tail[-length:]))


@contextmanager
def opened(location: Location, metadata: Any = None) -> Iterator[Any]:
    """A pyarrow ParquetFile; metadata: its footer, where it is read already."""
    with _told(location), location.open_file() as file:
        # Page checksums are verified where the writer made some, as ours does.
        yield pq.ParquetFile(file, metadata=metadata, page_checksum_verification=True, pre_buffer=not location.is_local)


@contextmanager
def _told(location: Location) -> Iterator[None]:
    """What pyarrow raises becomes one line that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{location} does not exist") from error
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        text = str(error).split("\n")[0]
        if isinstance(error, OSError) and not location.is_local:
            raise RetryableError(f"cannot read {location}: {text}") from error
        raise InputError(f"{location} is no Parquet file or is damaged ({text}); copy it again") from error


def _file_sha256(location: Location) -> str:
    """Of a file of any size, a block at a time."""
    total = hashlib.sha256()
    with location.open_file() as file:
        while block := file.read(_HASH_BLOCK):
            total.update(block)
    return total.hexdigest()


def _checked_schema(schema: pa.Schema, location: Location, id_column: str | None) -> pa.Schema:
    """The fields of the columns that are read."""
    names = schema.names
    if "image" not in names:
        raise InputError(
            f"{location} has no column `image`, only {', '.join(names) or 'none'}; rename the images' column"
        )
    if id_column is not None and id_column not in names:
        raise InputError(f"{location} has no column `{id_column}` for --id-column, only {', '.join(names)}")
    column = id_column or ("id" if "id" in names else None)
    kept = [schema.field(name) for name in dict.fromkeys(("image", "label", column)) if name in names]
    types = {each.name: each.type for each in kept}
    if "label" in types and not (pa.types.is_integer(types["label"]) or pa.types.is_floating(types["label"])):
        raise InputError(f"{location}: `label` is {types['label']}; labels must be class numbers")
    if column and not (pa.types.is_integer(types[column]) or _is_text(types[column])):
        raise InputError(f"{location}: `{column}` is {types[column]}; ids must be integers or strings")
    return pa.schema(kept, metadata=schema.metadata)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _words(schema: pa.Schema) -> str:
    shape = (schema.metadata or {}).get(b"image_shape", b"").decode(errors="replace")
    return ", ".join(f"{each.name} {each.type}" for each in schema) + (f" of shape {shape}" if shape else "")


def _layout(reader: Any, location: Location) -> tuple[columns.Layout, tuple[int, ...]] | None:
    """How the images are stored, and their shape, from the first row that has one. None where no row has."""
    metadata = reader.schema_arrow.metadata or {}
    for records in reader.iter_batches(pixels.SAMPLE_ROWS, columns=["image"]):
        column = columns.payload(records.column("image"))
        sample = column.drop_null()
        if not len(sample):
            continue
        try:
            named = json.loads(metadata[b"image_shape"]) if b"image_shape" in metadata else None
            if named is not None and not (isinstance(named, list) and all(isinstance(side, int) for side in named)):
                raise ValueError(f"its schema metadata `image_shape` is {named}, not a list of integers")
            return columns.layout_of(sample, None if named is None else pixels.image_shape(tuple(named)))
        except ValueError as error:
            raise InputError(f"{location}: {error}") from error
    return None


def _highest_label(reader: Any) -> int:
    """-1 where no label is known. Labels that are none do not count."""
    if "label" not in reader.schema_arrow.names:
        return -1
    index = [reader.schema.column(i).path for i in range(reader.metadata.num_columns)].index("label")
    highest = -1
    for group in range(reader.num_row_groups):
        told = reader.metadata.row_group(group).column(index).statistics
        if told and told.has_min_max and told.min >= 0 and told.max < pixels.MAX_CLASSES:
            highest = max(highest, int(told.max))
        else:
            labels, _ = columns.to_labels(reader.read_row_group(group, ["label"]).column("label").combine_chunks())
            highest = max(highest, int(labels.max(initial=-1)))
    return highest


def _joined(parts: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """One array of all; without a copy where only one has rows."""
    filled = [part for part in parts if len(part)]
    return filled[0] if len(filled) == 1 else np.concatenate(filled or parts)
