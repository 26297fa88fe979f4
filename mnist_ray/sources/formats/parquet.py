"""Parquet: one file or many, local or in an object store; a read takes only the row groups that it needs.

`image` may be raw pixels (binary), an encoded PNG or JPEG (also within {"bytes": …}, as Hugging Face stores them), or
lists of numbers, nested or flat. Raw and flat images have the shape in the schema metadata `image_shape`, as JSON, or
are gray squares. `label` may be missing or null.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mnist_ray.errors import InputError
from mnist_ray.sources import pixels
from mnist_ray.sources.base import Bad, Batch, Reading, Source
from mnist_ray.sources.formats import columns
from mnist_ray.sources.formats.parquet_files import DamagedError, open_parquet_file, read_footers
from mnist_ray.storage.location import Location, file_sha256, sha256

_LOOKS = 8  # files of encoded images whose first image is looked at
_ROWS_AT_ONCE = 8_192  # of a row group, so that huge ones stay out of memory
_PIXELS_AT_ONCE = 64 << 20
_LABELS_AT_ONCE = 1 << 20
_FEW_ROWS = 16  # tell how encoded and raw images are stored


@dataclass(frozen=True)
class ParquetFile:
    location: Location
    rows: int
    footer: str = ""
    """The file's size and its footer's sha256, which has the offsets, sizes and statistics of all its pages."""
    reason: str | None = None
    """Why nothing of it can be read; it then counts as one row."""


@dataclass(frozen=True, kw_only=True)
class ParquetSource(Source):
    files: Mapping[str, tuple[ParquetFile, ...]]
    layout: columns.Layout
    id_column: str | None = None
    label_column: str = "label"
    image_column: str = "image"
    text_ids: bool = False

    @property
    def id_kind(self) -> str:
        return "text" if self.text_ids else "row" if self.id_column is None else "integer"

    @property
    def is_encoded(self) -> bool:
        return self.layout.kind == "encoded"

    def units(self, split: str) -> list[tuple[int, int]]:
        ends = list(accumulate(file.rows for file in self.files[split]))
        return [(start, stop) for start, stop in zip([0, *ends], ends, strict=False) if stop > start]

    def read(self, split: str, start: int, stop: int, *, strict: bool = True) -> Batch:
        parts = [self._nothing()]
        for file, offset, low, high in self._overlapping(split, start, stop):
            parts += self._read_file(file, offset, low, high, strict)
        batch = Batch(
            np.concatenate([part.ids for part in parts]),
            _joined([part.images for part in parts]),
            np.concatenate([part.labels for part in parts]),
            bad=tuple(bad for part in parts for bad in part.bad),
        )
        return self._settled(split, batch, strict)

    def stream(self, split: str, start: int, stop: int, *, strict: bool = True) -> Iterator[Batch]:
        for file, offset, low, high in self._overlapping(split, start, stop):
            for part in self._read_file(file, offset, low, high, strict):
                yield self._settled(split, part, strict)

    def _overlapping(self, split: str, start: int, stop: int) -> Iterator[tuple[ParquetFile, int, int, int]]:
        """Each file that has some of the rows, the row that its first one is, and which of its own are asked for."""
        assert 0 <= start <= stop <= self.splits[split], (start, stop)
        offset = 0
        for file in self.files[split]:
            low, high = max(start - offset, 0), min(stop - offset, file.rows)
            if low < high:
                yield file, offset, low, high
            offset += file.rows

    def digest(self) -> str:
        return self._digest

    def identity(self) -> str:
        names = [self.id_column, self.label_column, self.image_column]
        footers = [(split, file.footer) for split, files in self.files.items() for file in files]
        return self._as_converted(sha256(json.dumps([names, footers]).encode()))

    @cached_property
    def _digest(self) -> str:
        total = hashlib.sha256(repr(self.id_column).encode())
        for split, files in self.files.items():
            for file in files:
                total.update(f"{split} {file.rows} {file_sha256(file.location)}\n".encode())
        return total.hexdigest()

    def _nothing(self) -> Batch:
        ids: NDArray[Any] = np.empty(0, object if self.text_ids else np.int64)
        return Batch(ids, np.empty((0, *self.image_shape), np.uint8), np.empty(0, np.int64))

    def _read_file(self, file: ParquetFile, offset: int, low: int, high: int, strict: bool) -> Iterator[Batch]:
        """Rows low..high of one file, whose first row is row `offset` of the split."""
        if file.reason is not None:
            yield self._lost(file.location, offset + low, offset + high, file.reason)
            return
        try:
            for batch in self._rows(file, offset, low, high):
                yield batch
                low += len(batch.ids) + len(batch.bad)
        except DamagedError as error:
            if strict:
                raise
            yield from self._by_groups(file, offset, low, high, error.reason)

    def _rows(self, file: ParquetFile, offset: int, low: int, high: int) -> Iterator[Batch]:
        with open_parquet_file(file.location) as reader:
            groups: list[int] = []
            first = None  # row of the first group that is read
            for number, (start, stop) in enumerate(_groups(file, reader)):
                if start < high and stop > low:
                    groups.append(number)
                    first = start if first is None else first
            wanted_names = (self.image_column, self.label_column, self.id_column)
            names = [name for name in wanted_names if name in reader.schema_arrow.names]
            row = first or 0
            most = max(1, min(_ROWS_AT_ONCE, _PIXELS_AT_ONCE // math.prod(self.layout.shape or self.image_shape)))
            for records in reader.iter_batches(most, groups, names, use_threads=False):
                skip = max(low - row, 0)
                wanted = records.slice(skip, max(min(high - row, len(records)) - skip, 0))
                if len(wanted):
                    yield self._from_columns(wanted, offset + row + skip, str(file.location))
                row += len(records)
                if row >= high:
                    return
            if row < high:
                raise DamagedError(
                    f"{file.location} has fewer rows than its footer says", "has fewer rows than it says"
                )

    def _by_groups(self, file: ParquetFile, offset: int, low: int, high: int, reason: str) -> Iterator[Batch]:
        """What can be read of a damaged file, row group by row group; the rest is lost."""
        try:
            with open_parquet_file(file.location) as reader:
                groups = _groups(file, reader)
        except DamagedError:
            groups = []
        for _, stop in groups:
            if low < (last := min(stop, high)):
                try:
                    for batch in self._rows(file, offset, low, last):
                        yield batch
                        low += len(batch.ids) + len(batch.bad)
                except DamagedError as error:
                    yield self._lost(file.location, offset + low, offset + last, error.reason)
                    low = last
        if low < high:
            yield self._lost(file.location, offset + low, offset + high, reason)

    def _lost(self, location: Location, start: int, stop: int, reason: str) -> Batch:
        return replace(self._nothing(), bad=tuple(Bad(row, str(location), reason) for row in range(start, stop)))

    def _from_columns(self, records: pa.RecordBatch, start: int, where: str) -> Batch:
        images, reasons = columns.to_images(
            records.column(self.image_column), self.layout, self.image_shape, self.convert
        )
        labels = np.full(len(records), -1, np.int64)
        if self.label_column in records.schema.names:
            labels, bad_labels = columns.to_labels(records.column(self.label_column))
            reasons = bad_labels | reasons
        ids: NDArray[Any] = np.arange(start, start + len(records))
        if self.id_column is not None:
            column = records.column(self.id_column)
            reasons |= {int(row): f"has no {self.id_column}" for row in np.flatnonzero(columns.null_rows(column))}
            if self.text_ids:
                ids, unreadable = columns.to_text(column)
                reasons |= unreadable
            else:
                ids = columns.to_numbers(column).astype(np.int64)
        if not reasons:
            return Batch(ids, images, labels)
        good = np.ones(len(records), bool)
        good[list(reasons)] = False
        bad = tuple(Bad(start + row, where, reasons[row]) for row in sorted(reasons))
        return Batch(ids[good], images[good], labels[good], bad=bad)


def open_parquet(files: Mapping[str, list[Location]], where: str, reading: Reading) -> ParquetSource:
    """Reads every file's footer and labels.

    Raises InputError where files are damaged, lack columns, or differ in them. Of several files, and where the reading
    is lenient, a damaged one counts as rows that cannot be read.
    """
    counted: dict[str, tuple[ParquetFile, ...]] = {}
    first: tuple[pa.Schema, Location] | None = None
    looks: list[tuple[columns.Layout, tuple[int, ...]]] = []
    highest, damaged = -1, None
    total = sum(map(len, files.values()))
    every, number = -(-total // _LOOKS), 0
    for split, locations in files.items():
        entries = []
        for location, footer in zip(locations, read_footers(locations), strict=True):
            try:
                if isinstance(footer, DamagedError):
                    raise footer
                identity, metadata = footer
                entry = ParquetFile(location, metadata.num_rows, identity)
                entries.append(entry)
                with open_parquet_file(location, metadata) as reader:
                    schema = _checked_schema(reader.schema_arrow, location, reading)
                    if first is None:
                        first = schema, location
                    elif _words(schema) != _words(first[0]):
                        raise InputError(
                            f"{location} has {_words(schema)}, but {first[1]} {_words(first[0])}; make them alike"
                        )
                    is_encoded = bool(looks) and looks[0][0].kind == "encoded"
                    if (not looks or (is_encoded and number % every == 0)) and (
                        look := _layout(reader, location, reading)
                    ):
                        looks.append(look)
                    highest = max(highest, _highest_label(reader, reading.label_column or "label"))
            except DamagedError as error:
                if not reading.lenient or total == 1:
                    raise
                damaged = damaged or error
                if isinstance(footer, DamagedError):
                    size = f"{location.size()} damaged"
                    entries.append(ParquetFile(location, 1, size, error.reason))
            number += 1
        counted[split] = tuple(entries)
    if first is None or not looks:
        raise damaged or InputError(f"{where} holds Parquet without a single image")
    column = reading.id_column or ("id" if "id" in first[0].names else None)
    layout, shape = looks[0]
    return ParquetSource(
        name=where,
        classes=pixels.class_names(highest),
        image_shape=shape,
        splits={split: sum(file.rows for file in entries) for split, entries in counted.items()},
        convert=reading.convert,
        sampled=tuple(dict.fromkeys(shape for _, shape in looks)),
        files=counted,
        layout=layout,
        id_column=column,
        label_column=reading.label_column or "label",
        image_column=reading.image_column or "image",
        text_ids=column is not None and not pa.types.is_integer(first[0].field(column).type),
    )


def _groups(file: ParquetFile, reader: Any) -> list[tuple[int, int]]:
    """(start, stop) of each row group. Raises InputError where they are not what the file was when it was opened."""
    if reader.metadata.num_rows != file.rows:
        raise InputError(f"{file.location} has {reader.metadata.num_rows} rows, not {file.rows}: it has changed")
    ends = list(accumulate(reader.metadata.row_group(group).num_rows for group in range(reader.num_row_groups)))
    return list(zip([0, *ends], ends, strict=False))


def _checked_schema(schema: pa.Schema, location: Location, reading: Reading) -> pa.Schema:
    """The fields of the columns that are read."""
    names = schema.names
    asked = {"--id-column": reading.id_column, "--label-column": reading.label_column}
    for option, name in {**asked, "--image-column": reading.image_column}.items():
        if name is not None and name not in names:
            raise InputError(f"{location} has no column `{name}` for {option}, only {', '.join(names)}")
    image, label = reading.image_column or "image", reading.label_column or "label"
    if image not in names:
        raise InputError(
            f"{location} has no column `image`, only {', '.join(names) or 'none'}; rename the images' column"
        )
    column = reading.id_column or ("id" if "id" in names else None)
    kept = [schema.field(name) for name in dict.fromkeys((image, label, column)) if name in names]
    types = {each.name: each.type for each in kept}
    if label in types and not (pa.types.is_integer(types[label]) or pa.types.is_floating(types[label])):
        raise InputError(f"{location}: `{label}` is {types[label]}; labels must be class numbers")
    if column and not (pa.types.is_integer(types[column]) or _is_text(types[column])):
        raise InputError(f"{location}: `{column}` is {types[column]}; ids must be integers or strings")
    return pa.schema(kept, metadata=schema.metadata)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _words(schema: pa.Schema) -> str:
    shape = (schema.metadata or {}).get(b"image_shape", b"").decode(errors="replace")
    return ", ".join(f"{each.name} {each.type}" for each in schema) + (f" of shape {shape}" if shape else "")


def _layout(reader: Any, location: Location, reading: Reading) -> tuple[columns.Layout, tuple[int, ...]] | None:
    """How the images are stored, and their shape, from the first row that has one. None where no row has."""
    name = reading.image_column or "image"
    metadata = reader.schema_arrow.metadata or {}
    is_lists = pa.types.is_nested(reader.schema_arrow.field(name).type)
    damage: Exception | None = None
    for group in range(reader.num_row_groups):
        try:
            sample = _sample(reader, group, name, pixels.SAMPLE_ROWS if is_lists else _FEW_ROWS)
        except (pa.ArrowInvalid, OSError) as error:  # perhaps another group can be read
            damage = damage or error
            continue
        if sample is None:
            continue
        try:
            named = json.loads(metadata[b"image_shape"]) if b"image_shape" in metadata else None
            if named is not None and not (isinstance(named, list) and all(isinstance(side, int) for side in named)):
                raise ValueError(f"its schema metadata `image_shape` is {named}, not a list of integers")
            shape = None if named is None else pixels.image_shape(tuple(named))
            return columns.layout_of(sample, shape, reading.convert)
        except ValueError as error:
            raise InputError(f"{location}: {error}") from error
    if damage is not None:
        raise damage
    return None


def _sample(reader: Any, group: int, name: str, rows: int) -> pa.Array | None:
    """A few images of a row group, the first that are there."""
    for records in reader.iter_batches(rows, [group], columns=[name]):
        if len(sample := columns.payload(records.column(0)).drop_null()):
            return sample
    return None


def _highest_label(reader: Any, name: str) -> int:
    """-1 where no label is known. Labels that are none do not count.

    They are read, although most footers have statistics: where those are damaged, asking pyarrow for them ends the
    process (it lets ParquetException through).
    """
    highest = -1
    if name in reader.schema_arrow.names:
        for records in reader.iter_batches(_LABELS_AT_ONCE, columns=[name], use_threads=False):
            labels, _ = columns.to_labels(records.column(0))
            highest = max(highest, int(labels.max(initial=-1)))
    return highest


def _joined(parts: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """One array of all; without a copy where only one has rows."""
    filled = [part for part in parts if len(part)]
    return filled[0] if len(filled) == 1 else np.concatenate(filled or parts)
