"""Rows of a Parquet file. What reads on where an earlier read of this process has ended goes on with its row group.

A row group can only be unpacked from its beginning, and pyarrow's default is 1,048,576 rows of them: eight units of
work. Each would unpack what lies before it again.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa

from mnist_ray.sources import meter
from mnist_ray.sources.formats.parquet_files import (
    DamagedError,
    ParquetFile,
    parquet_errors,
    parquet_reader,
    row_groups,
    stored_bytes,
)

_MOST_AHEAD = 64 << 20  # bytes of row groups that are read together; from an object store, they are fetched before
_MOST_PAUSED = 2  # one for each unit that a scoring actor works on

_Place = tuple[str, str, tuple[str, ...], int, int]
_paused: dict[_Place, _OpenRows] = {}
_lock = threading.Lock()


def read_rows(
    file: ParquetFile, names: Sequence[str], start: int, stop: int, at_once: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Rows start..stop, at most `at_once` a batch, with the row that each batch begins at.

    names: the columns; those that the file lacks are left out. Which rows make up a batch follows from the arguments
    alone. Raises InputError where the file is damaged, or has changed since it was opened as a source.
    """
    place = str(file.location), file.footer, tuple(names), at_once
    with parquet_errors(file.location):
        reading = _taken((*place, start)) or _OpenRows(file, names, at_once)
        try:
            yield from reading.rows(start, stop)
        except BaseException:  # or it was given up
            reading.close()
            raise
        if reading.is_within_group:
            _pause((*place, stop), reading)
        else:
            reading.close()


def _taken(place: _Place) -> _OpenRows | None:
    with _lock:
        return _paused.pop(place, None)


def _pause(place: _Place, reading: _OpenRows) -> None:
    with _lock:
        surplus = [_paused.pop(place)] if place in _paused else []
        _paused[place] = reading
        surplus += [_paused.pop(each) for each in list(_paused)[:-_MOST_PAUSED]]
    for each in surplus:
        each.close()


class _OpenRows:
    """An open file, and the row groups of it that are being unpacked."""

    def __init__(self, file: ParquetFile, names: Sequence[str], at_once: int) -> None:
        self._file, self._at_once = file, at_once
        self._opened = file.location.open_file()
        self._reader = parquet_reader(self._opened, file.location)
        self._limits = row_groups(file, self._reader)
        self._names = [name for name in names if name in self._reader.schema_arrow.names]
        self._batches: Iterator[Any] = iter(())
        self._rest: Any = None
        """Of the last batch, what was not asked for."""
        self._row = self._end = 0
        """The next row, and the end of these groups."""

    def close(self) -> None:
        self._opened.close()

    @property
    def is_within_group(self) -> bool:
        return self._row < self._end

    def rows(self, start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        while start < stop:
            if self._row != start or not self.is_within_group:
                self._unpack(start, stop)
            for records in self._until(min(stop, self._end)):
                yield start, records
                start += len(records)

    def _unpack(self, start: int, stop: int) -> None:
        """Begin with the group of row `start`. Groups that are wanted whole are read together; one that is not is read
        alone, so that its batches are the same wherever reading began."""
        groups = [number for number, (first, end) in enumerate(self._limits) if first < stop and end > start]
        whole = [number for number in groups if start <= self._limits[number][0] and self._limits[number][1] <= stop]
        groups = whole if whole[:1] == groups[:1] else groups[:1]
        reader = self._reader
        sizes = list(accumulate(stored_bytes(reader, [group], self._names) for group in groups))
        fitting = max(1, bisect_right(sizes, _MOST_AHEAD))
        if sizes[0] > _MOST_AHEAD:
            reader = parquet_reader(self._opened, self._file.location, reader.metadata, ahead=False)
        meter.count(sizes[fitting - 1])
        groups = groups[:fitting]
        self._row, self._end = self._limits[groups[0]][0], self._limits[groups[-1]][1]
        self._batches = reader.iter_batches(self._at_once, groups, self._names, use_threads=False)
        self._rest = None
        for _ in self._until(start):
            pass

    def _until(self, stop: int) -> Iterator[pa.RecordBatch]:
        while self._row < stop:
            records = self._rest if self._rest is not None else next(self._batches, None)
            if records is None:
                reason = "has fewer rows than its footer promises"
                raise DamagedError(f"{self._file.location} {reason}", reason)
            taken = records.slice(0, stop - self._row)
            self._rest = records.slice(len(taken)) if len(taken) < len(records) else None
            self._row += len(taken)
            if len(taken):
                yield taken
