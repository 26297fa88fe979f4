"""Parquet files, local or in an object store. A read takes only the row groups that it needs.

The column `image` may hold raw pixels (binary), an encoded image file (also within {"bytes": …}, as Hugging Face
stores them, or as base64), or lists of numbers, nested or flat. Raw and flat images have the shape in the schema
metadata `image_shape`, as JSON, or that of their tensor type, or are gray squares. The column `label` may be missing,
and its values null, text or lists. A folder `label=3` is a column, too.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mnist_ray.errors import InputError, require
from mnist_ray.sources.base import Bad, Batch, Reading, Source, absent_classes
from mnist_ray.sources.formats import columns
from mnist_ray.sources.formats.arrow_types import class_names, kin, plain, plain_type
from mnist_ray.sources.formats.parquet_files import (
    DamagedError,
    ParquetFile,
    open_parquet_file,
    row_groups,
)
from mnist_ray.sources.formats.parquet_rows import read_rows
from mnist_ray.sources.formats.parquet_survey import Survey
from mnist_ray.sources.labels import HOT, Classes, classes_of
from mnist_ray.sources.pixels import rows_at_once
from mnist_ray.storage.location import Location, file_sha256, sha256
from mnist_ray.storage.parallel import in_parallel

_ROWS_AT_ONCE = 8_192  # of a row group, so that huge ones stay out of memory
_NOTIFY_SECONDS = 5.0


class _Part(NamedTuple):
    """Rows start..stop of a file, whose first row is row `offset` of the split."""

    file: ParquetFile
    offset: int
    start: int
    stop: int


def open_parquet(files: Mapping[str, list[Location]], name: str, reading: Reading) -> ParquetSource:
    """Reads the footer and the labels of every file.

    Raises InputError where files are damaged, lack columns or differ in them. Of several files, and where the reading
    is lenient, a damaged one counts as rows that cannot be read.
    """
    survey = Survey(reading, sum(map(len, files.values())))
    surveyed = {
        split: survey.add_split(split, _surveyed(locations, name, survey, reading))
        for split, locations in files.items()
    }
    if survey.schema is None or not survey.looks:
        kind = survey.schema and survey.schema.field(survey.image_column).type
        has_paths = kind is not None and pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
        why = f", only paths; {columns.PATHS_ALONE}" if has_paths else ""
        raise survey.damage or InputError(f"{name} holds Parquet files without a single image{why}")
    layout, shape = survey.looks[0]
    id_column = survey.id_column
    classes, found, numbered = _classes(survey, name, reading)
    return ParquetSource(
        name=name,
        classes=classes.names,
        several=classes.several,
        numbered=numbered,
        image_shape=shape,
        splits={split: sum(file.rows for file in each) for split, each in surveyed.items()},
        labels="none" if survey.label_column is None else "column",
        absent=absent_classes(found, classes.names, classes.several),
        remarks=(f"{name}: the images' channels come first; they are read as {shape}",)
        if layout.channels_first
        else (),
        convert=reading.convert,
        sampled=tuple(dict.fromkeys(shape for _, shape in survey.looks)),
        files=surveyed,
        layout=layout,
        id_column=id_column,
        label_column=survey.label_column,
        image_column=survey.image_column,
        text_ids=id_column is not None and not pa.types.is_integer(plain_type(survey.schema.field(id_column).type)),
    )


def _classes(survey: Survey, name: str, reading: Reading) -> tuple[Classes, dict[str, set[str]], bool]:
    """The classes, those of each split, and whether the names are the Hub's, of class numbers."""
    classes = classes_of(set().union(*survey.labels.values()), name, takes_several=reading.takes_several)
    schema, column = survey.schema, survey.label_column
    names: tuple[str, ...] = ()
    if schema is not None and column in schema.names and kin(schema.field(column).type).endswith("integers"):
        names = class_names(schema, str(column))
    most = len(names) if classes.several != HOT or len(classes.names) == len(names) else 0
    if not 0 < len(classes.names) <= most:
        return classes, survey.labels, False
    found = {} if classes.several else {split: {names[int(each)] for each in of} for split, of in survey.labels.items()}
    return classes._replace(names=names), found, True


def _surveyed(locations: list[Location], name: str, survey: Survey, reading: Reading) -> Iterator[ParquetFile]:
    """The files of a split, many read at once."""
    notified = time.monotonic()
    at_once = locations[0].reads_at_once if locations else 1
    with closing(in_parallel(survey.look, locations, at_once=at_once)) as looks:  # ends its threads
        for number, seen in enumerate(looks):
            yield survey.add(seen)
            if reading.notify and time.monotonic() - notified >= _NOTIFY_SECONDS:
                notified = time.monotonic()
                reading.notify(f"looking into {name}: {number + 1:,} of {len(locations):,} files …")


@dataclass(frozen=True, kw_only=True)
class ParquetSource(Source):
    files: Mapping[str, tuple[ParquetFile, ...]]
    layout: columns.Layout
    id_column: str | None = None
    label_column: str | None = "label"
    """None: labels are not wanted."""
    image_column: str = "image"
    text_ids: bool = False

    @property
    def id_kind(self) -> str:
        return "text" if self.text_ids else "row" if self.id_column is None else "integer"

    @property
    def is_encoded(self) -> bool:
        return self.layout.kind == "encoded"

    @cached_property
    def _ends(self) -> dict[str, list[int]]:
        """The row of a split at which each file ends."""
        return {split: list(accumulate(file.rows for file in files)) for split, files in self.files.items()}

    def units(self, split: str) -> list[tuple[int, int]]:
        ends = self._ends[split]
        return [(start, stop) for start, stop in zip([0, *ends], ends, strict=False) if stop > start]

    def read(self, split: str, start: int, stop: int, *, strict: bool = True) -> Batch:
        batches = [self._empty()]
        for part in self._parts(split, start, stop):
            batches += self._read_part(part, strict)
        batch = Batch(
            np.concatenate([each.ids for each in batches]),
            _concatenated([each.images for each in batches]),
            np.concatenate([each.labels for each in batches]),
            bad=tuple(bad for each in batches for bad in each.bad),
        )
        return self._checked(split, batch, strict)

    def stream(self, split: str, start: int, stop: int, *, strict: bool = True) -> Iterator[Batch]:
        for part in self._parts(split, start, stop):
            for batch in self._read_part(part, strict):
                yield self._checked(split, batch, strict)

    def _parts(self, split: str, start: int, stop: int) -> Iterator[_Part]:
        """The parts of files that make up rows start..stop of a split."""
        require(0 <= start <= stop <= self.splits[split], f"{self.name} has no rows {start}..{stop}")
        ends = self._ends[split]
        number = bisect_right(ends, start)
        offset = ends[number - 1] if number else 0
        while offset < stop:
            file = self.files[split][number]
            first, last = max(start - offset, 0), min(stop - offset, file.rows)
            if first < last:
                yield _Part(file, offset, first, last)
            offset, number = ends[number], number + 1

    def digest(self) -> str:
        return self._digest

    def identity(self) -> str:
        names = [self.id_column, self.label_column, self.image_column]
        footers = [
            (split, file.footer, *self._partition_label(file)) for split, files in self.files.items() for file in files
        ]
        return self._as_converted(sha256(json.dumps([names, footers]).encode()))

    @cached_property
    def _digest(self) -> str:
        wanted = [self.image_column, *filter(None, [self.label_column])]
        named = str(wanted) if set(wanted) - {"image", "label"} else ""
        total = hashlib.sha256(f"{self.id_column!r}{named}".encode())
        for split, files in self.files.items():
            for file in files:
                parts = [split, str(file.rows), file_sha256(file.location), *self._partition_label(file)]
                total.update(f"{' '.join(parts)}\n".encode())
        return total.hexdigest()

    def _partition_label(self, file: ParquetFile) -> list[str]:
        """The label of all its rows, where the name of its folder has it."""
        return [value for name, value in file.partition.items() if name == self.label_column]

    def _empty(self) -> Batch:
        ids: NDArray[Any] = np.empty(0, object if self.text_ids else np.int64)
        return Batch(ids, np.empty((0, *self.image_shape), np.uint8), self._unlabelled(0))

    def _read_part(self, part: _Part, strict: bool) -> Iterator[Batch]:
        if part.file.reason is not None:
            yield self._lost(part, part.file.reason)
            return
        try:
            for batch in self._read_rows(part):
                yield batch
                part = part._replace(start=part.start + len(batch.ids) + len(batch.bad))
        except DamagedError as error:
            if strict:
                raise
            yield from self._read_damaged(part, error.reason)

    def _read_rows(self, part: _Part) -> Iterator[Batch]:
        file, offset, start, stop = part
        wanted = (self.image_column, self.label_column, self.id_column)
        of_labels = 8 * len(self.classes) if self.several else 0  # bytes
        size = max(math.prod(self.layout.shape or self.image_shape), of_labels)
        at_once = rows_at_once((size,), _ROWS_AT_ONCE)
        for row, records in read_rows(file, [name for name in wanted if name], start, stop, at_once):
            yield self._to_batch(records, offset + row, file)

    def _read_damaged(self, part: _Part, reason: str) -> Iterator[Batch]:
        """What can be read of a damaged file, row group by row group. The other rows are bad."""
        try:
            with open_parquet_file(part.file.location) as reader:
                groups = row_groups(part.file, reader)
        except DamagedError:
            groups = []
        for _, end in groups:
            group = part._replace(stop=min(end, part.stop))
            if group.start < group.stop:
                try:
                    for batch in self._read_rows(group):
                        yield batch
                        group = group._replace(start=group.start + len(batch.ids) + len(batch.bad))
                except DamagedError as error:
                    yield self._lost(group, error.reason)
                part = part._replace(start=group.stop)
        if part.start < part.stop:
            yield self._lost(part, reason)

    def _lost(self, part: _Part, reason: str) -> Batch:
        rows = range(part.offset + part.start, part.offset + part.stop)
        return replace(self._empty(), bad=tuple(Bad(row, str(part.file.location), reason) for row in rows))

    def _to_batch(self, records: pa.RecordBatch, start: int, file: ParquetFile) -> Batch:
        images, reasons = columns.to_images(
            records.column(self.image_column), self.layout, self.image_shape, self.convert
        )
        labels = self._unlabelled(len(records))
        if self.several:
            labels, bad_labels = columns.to_label_rows(records.column(self.label_column), self._numbers, self.several)
            reasons = bad_labels | reasons
        elif self.label_column is not None and not file.is_unlabelled:
            labels, bad_labels = columns.labels_of(records, self.label_column, file.partition, self._numbers)
            reasons = bad_labels | reasons
        ids: NDArray[Any] = np.arange(start, start + len(records))
        if self.id_column is not None:
            column = plain(records.column(self.id_column))
            if column.null_count:
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
        bad = tuple(Bad(start + row, str(file.location), reasons[row]) for row in sorted(reasons))
        return Batch(ids[good], images[good], labels[good], bad=bad)


def _concatenated(parts: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """One array of all, without a copy where only one of them has rows."""
    filled = [part for part in parts if len(part)]
    return filled[0] if len(filled) == 1 else np.concatenate(filled or parts)
